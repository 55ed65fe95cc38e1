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


NEEDED = {
    "opd_fixed_length": ["prune_opd.budget.max=156"],
    "opd_first": ["prune_opd.drift.weights_args.tokens=64"],
}


@pytest.mark.parametrize(
    "recipe",
    [
        *("prune_opd", "prune_opd_gate", "opd", "opd_fixed_length", "opd_first", "iw_opd"),
        "semi_opd",
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_quickstart_is_accepted(compose, module, tmp_path, recipe, engine):
    run, given = module("examples/quickstart", "run"), NEEDED.get(recipe, [])
    assert recipe in run.RECIPES
    command = run.training_command(tmp_path, recipe, 40, given)
    config = compose(*command[2:], f"actor_rollout_ref.rollout.name={engine}")
    check_attention(config, check_values(config)[1].held)


def test_the_runs_of_the_tests_are_accepted(compose, module, tmp_path):
    harness, trainer = module("tests/e2e", "harness"), module("tests/e2e", "test_trainer")
    for settings in ({}, trainer.SAME):
        _, _, _, *overrides = harness.command(tmp_path, tmp_path, "prune_opd", settings)
        config = compose(*overrides)
        check_attention(config, check_values(config)[1].held)
