"""Every configuration that this project starts itself passes the start check.

Nothing is trained.
"""

import importlib
import sys
from pathlib import Path

import pytest

from recipe.prune_opd.checks.attention import check_attention
from recipe.prune_opd.training.preflight import check_values

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def module(monkeypatch):
    """A module out of a folder that is no package; it is forgotten afterwards."""

    def load(folder: str, name: str):
        monkeypatch.syspath_prepend(ROOT / folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize("recipe", ["prune_opd", "opd", "semi_opd"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_quickstart_is_accepted(compose, module, tmp_path, recipe, engine):
    command = module("examples/quickstart", "run").training_command(tmp_path, recipe, 40, [])
    config = compose(*command[2:], f"actor_rollout_ref.rollout.name={engine}")
    check_attention(config, check_values(config)[1].held)


def test_the_runs_of_the_tests_are_accepted(compose, module, tmp_path):
    harness, trainer = module("tests/e2e", "harness"), module("tests/e2e", "test_trainer")
    for settings in ({}, trainer.SAME):
        _, _, _, *overrides = harness.command(tmp_path, tmp_path, "prune_opd", settings)
        config = compose(*overrides)
        check_attention(config, check_values(config)[1].held)
