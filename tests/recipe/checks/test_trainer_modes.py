"""What does not go with a trainer mode is refused in one sentence, before Ray starts."""

import re

import pytest
from omegaconf import OmegaConf

from recipe.prune_opd.training.preflight import check_values

SEPARATE = {
    "prune_opd.trainer_mode": "separate_async",
    "actor_rollout_ref.rollout.nnodes": 1,
    "actor_rollout_ref.rollout.n_gpus_per_node": 2,
    "actor_rollout_ref.rollout.checkpoint_engine.backend": "nccl",
    "data.train_batch_size": 1024,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
}
COLOCATED = {"prune_opd.trainer_mode": "colocate_async"}


NAMED = {
    "reward.reward_model.enable": "reward.reward_model.enable_resource_pool",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": (
        "actor_rollout_ref.rollout.nnodes x actor_rollout_ref.rollout.n_gpus_per_node"
    ),
}
"""Keys that stand for others in a sentence."""


def changed(config, settings):
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    return config


@pytest.mark.parametrize(
    "settings", [{}, COLOCATED, SEPARATE, SEPARATE | {"actor_rollout_ref.hybrid_engine": False}]
)
def test_each_mode_starts(config, settings, monkeypatch):
    monkeypatch.setenv("VERL_LOGGING_LEVEL", "WARN")
    prune_opd, _ = check_values(changed(config, settings))
    assert prune_opd.trainer_mode == settings.get("prune_opd.trainer_mode", "sync")


@pytest.mark.parametrize(
    ("settings", "key", "value", "sentence"),
    [
        ({}, "actor_rollout_ref.hybrid_engine", False, "trainer_mode=sync: True, because"),
        (COLOCATED, "actor_rollout_ref.hybrid_engine", False, "colocate_async: True, because"),
        (COLOCATED, "prune_opd.semi.enable", True, "False, or the mode sync, because"),
        (SEPARATE, "prune_opd.budget.rule", "random", "another rule, or the mode sync, because"),
        (SEPARATE, "actor_rollout_ref.rollout.nnodes", 0, "a whole number >= 1, because"),
        (SEPARATE, "actor_rollout_ref.rollout.n_gpus_per_node", None, "a whole number >= 1"),
        (
            SEPARATE,
            "actor_rollout_ref.rollout.checkpoint_engine.backend",
            "naive",
            "nccl, nixl or another engine of verl's, because weights go to another device",
        ),
        (
            SEPARATE,
            "data.train_batch_size",
            512,
            "1024, that is trainer.v1.separate_async.parameter_sync_step=4 x"
            " actor_rollout_ref.actor.ppo_mini_batch_size=256, because",
        ),
        (
            SEPARATE,
            "actor_rollout_ref.rollout.tensor_model_parallel_size",
            4,
            "a multiple of the 4 devices of a server",
        ),
        (SEPARATE, "reward.reward_model.enable", True, "True, because the rollout never pauses"),
    ],
)
def test_what_does_not_go_with_a_mode_is_refused(
    config, settings, key, value, sentence, monkeypatch
):
    config = changed(config, settings | {key: value})
    if value == "random":  # what it reads is not looked for
        monkeypatch.setattr("recipe.prune_opd.config.BudgetConfig.build", lambda self: None)
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        check_values(config)
    mode = settings.get("prune_opd.trainer_mode", "sync")
    named = NAMED.get(key, key)
    assert str(refused.value).startswith(f"{named}: got ")
    assert f"allowed with prune_opd.trainer_mode={mode}: " in str(refused.value)


def test_where_verl_would_fail_at_its_own_message_it_must_be_quiet(config, monkeypatch):
    changed(config, SEPARATE | {"actor_rollout_ref.hybrid_engine": False})
    monkeypatch.delenv("VERL_LOGGING_LEVEL", raising=False)
    with pytest.raises(ValueError, match=r"^actor_rollout_ref.hybrid_engine: .*LEVEL=WARNING in"):
        check_values(config)


def test_a_mode_that_there_is_not_is_refused_with_those_there_are(config):
    config.prune_opd.trainer_mode = "late"
    with pytest.raises(ValueError, match=r"^prune_opd.trainer_mode: got 'late', allowed: .*sync"):
        check_values(config)
