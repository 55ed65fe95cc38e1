"""The documentation names every key, refusal and metric there is."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from recipe.prune_opd import config
from recipe.prune_opd.__main__ import COMMANDS
from recipe.prune_opd.checks.numbers import NUMBERS, OPTIONAL
from recipe.prune_opd.checks.settings import GATE_SETTINGS, SETTINGS
from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.pruning import Drift
from recipe.prune_opd.method.reward import Scores, TopK
from recipe.prune_opd.records import metrics
from recipe.prune_opd.records.tally import COLUMNS

ROOT = Path(__file__).resolve().parents[1]


def text(name):
    return (ROOT / name).read_text()


def keys(cls, prefix=""):
    for field in fields(cls):
        if is_dataclass(field.type):
            yield from keys(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_every_key_is_in_the_configuration_page():
    page = text("docs/configuration.md") + text("docs/teachers.md")
    names = list(keys(config.PruneOPDConfig))
    assert {"topk", "gate.chunk", "teacher.server.replicas"} <= set(names)
    assert [key for key in names if f"| `{key}` |" not in page] == []


@pytest.mark.parametrize("kind", config.GATES)
def test_every_gate_is_in_the_configuration_and_formulas_pages(kind):
    for page in ("docs/configuration.md", "docs/formulas.md"):
        assert f"\n| `{kind}` |" in text(page)


@pytest.mark.parametrize("setting", SETTINGS + GATE_SETTINGS, ids=lambda setting: setting.key)
def test_every_refused_setting_is_in_the_configuration_page(setting):
    rows = [
        line
        for line in text("docs/configuration.md").splitlines()
        if line.startswith(f"| `{setting.key}` |")
    ]
    assert [row for row in rows if setting.why in row]  # the gate allows fewer values of some keys


@pytest.mark.parametrize("key", [*NUMBERS, *OPTIONAL])
def test_every_checked_number_is_in_the_configuration_page(key):
    words = (NUMBERS | OPTIONAL)[key].words.replace(">=", "≥") + (
        ", or null" if key in OPTIONAL else ""
    )
    (row,) = [
        line
        for line in text("docs/configuration.md").splitlines()
        if line.startswith(f"| {words} |")
    ]
    assert f"`{key}`" in row


def test_every_metric_is_in_the_metrics_page(tally_of):
    page = text("docs/metrics.md")
    logged = metrics.summarise(tally_of({"tokens": 1}))
    names = {re.sub(r"/from_\d+$", "", name.removeprefix("prune_opd/")) for name in logged}
    assert sorted(name for name in names if name not in page) == []


def test_every_metric_of_the_gate_is_in_the_metrics_page(tally_of):
    gate = {name: 1 for name in COLUMNS if name.startswith("gate_")}
    logged = metrics.summarise_gate(tally_of({"tokens": 1} | gate))
    names = [name.removeprefix("prune_opd/") for name in logged]
    assert "gate/event_agreement" in names
    assert "gate/stop_position_mean" in names
    page = text("docs/metrics.md")
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_every_metric_of_the_teachers_servers_is_in_the_metrics_page(tally_of):
    score = {name: 1 for name in COLUMNS if name.startswith("score_")}
    logged = metrics.summarise_scores(tally_of({"tokens": 1} | score))
    names = [name.removeprefix("prune_opd/") for name in logged]
    assert "teacher/hidden_ratio" in names
    page = text("docs/metrics.md")
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_every_value_of_the_records_is_in_their_page(tally_of):
    import torch

    from recipe.prune_opd.records.recorder import step_record
    from recipe.prune_opd.records.samples import token_data

    record = step_record(tally_of({"tokens": 1}), limit=4, next_limit=4)
    token = torch.ones(1, 1).long()
    own = TopK(token.unsqueeze(-1), token.unsqueeze(-1).float())
    drift = Drift(
        token.bool(), token, token.bool(), reliability(token, token, w_drop=0.1, w_base=0)
    )
    sample = token_data(Scores(token, own, own), drift, 1, str)
    names = [
        *sample,
        *(name for name in record if not isinstance(record[name], dict)),
        *record["positions"],
    ]
    names += [f"{group}.{name}" for group in ("share", "tokens") for name in record[group]]
    assert {"limit", "tokens.saved", "teacher_entropy", "pieces"} <= set(names)
    page = text("docs/records.md")
    assert [
        name for name in names if f"`{name}`" not in page and f"`positions.{name}`" not in page
    ] == []
    assert [name for name in record["length"] if f"`{name}`" not in page] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command):
    assert f"| [`{command}`](docs/" in text("README.md")


def test_the_six_lines_and_the_keys_are_in_the_readme():
    readme = text("README.md")
    for key in (
        "teacher.path",
        "topk",
        "strategy",
        "weighting",
        "drift.threshold",
        "gate.enable",
        "dump_dir",
    ):
        assert f"`prune_opd.{key}`" in readme
    for command in ("make quickstart", "make test", "pip install '.[vllm]'"):
        assert command in readme
