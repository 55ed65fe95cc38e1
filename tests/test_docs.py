"""The documentation names every key, refusal and metric there is."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from recipe.prune_opd import check, config, metrics

ROOT = Path(__file__).resolve().parents[1]


def text(name):
    return (ROOT / name).read_text()


def keys(cls, prefix=""):
    groups = {"teacher": config.TeacherConfig, "drift": config.DriftConfig, "budget": config.BudgetConfig}
    for field in fields(cls):
        if field.name in groups:
            yield from keys(groups[field.name], f"{field.name}.")
        else:
            yield prefix + field.name


def test_every_key_is_in_the_configuration_page():
    page = text("docs/configuration.md")
    assert [key for key in keys(config.PruneOPDConfig) if f"| `{key}` |" not in page] == []


@pytest.mark.parametrize("setting", check.SETTINGS, ids=lambda setting: setting.key)
def test_every_refused_setting_is_in_the_configuration_page(setting):
    (row,) = [line for line in text("docs/configuration.md").splitlines() if line.startswith(f"| `{setting.key}` |")]
    assert setting.why in row


def test_every_metric_is_in_the_metrics_page():
    import torch

    page = text("docs/metrics.md")
    logged = metrics.summarise(torch.ones(1, len(metrics.COLUMNS)), max_length=8)
    names = {re.sub(r"/from_\d+$", "", name.removeprefix("prune_opd/")) for name in logged}
    assert sorted(name for name in names if name not in page) == []


def test_the_six_lines_and_the_keys_are_in_the_readme():
    readme = text("README.md")
    for key in ("teacher.path", "topk", "strategy", "weighting", "drift.threshold", "dump_dir"):
        assert f"`prune_opd.{key}`" in readme
    for command in ("make quickstart", "make test", "pip install '.[vllm]'"):
        assert command in readme
