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


RECIPES = (
    *("prune_opd", "prune_opd_gate", "opd", "opd_fixed_length", "opd_first", "iw_opd"),
    "semi_opd",
)
NEEDED = {
    "opd_fixed_length": "prune_opd.budget.max",
    "opd_first": "prune_opd.drift.weights_args.tokens",
}
"""Number of tokens that a recipe leaves to its user."""


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("task", ["walk", "signposts"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_pairs_of_the_examples_are_accepted(compose, module, tmp_path, recipe, task, engine):
    launch = module("examples/pairs", "launch")
    setup = getattr(launch, task.upper())
    given = [f"{NEEDED[recipe]}={setup.max_response_tokens // 2}"] if recipe in NEEDED else []
    given += [f"actor_rollout_ref.rollout.name={engine}"]
    command = launch.training_command(tmp_path, tmp_path / recipe, recipe, 40, given, setup)
    config = compose(*command[2:])
    check_attention(config, check_values(config)[1].held)


def test_the_quickstart_takes_recipes_that_are_accepted(module):
    assert set(module("examples/quickstart", "run").RECIPES) <= set(RECIPES)


def test_the_runs_of_the_tests_are_accepted(compose, module, tmp_path):
    harness, trainer = module("tests/e2e", "harness"), module("tests/e2e", "test_trainer")
    for settings in ({}, trainer.SAME):
        _, _, _, *overrides = harness.command(tmp_path, tmp_path, "prune_opd", settings)
        config = compose(*overrides)
        check_attention(config, check_values(config)[1].held)
