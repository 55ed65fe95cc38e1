"""Settings that do not go with a trainer mode, which verl asserts once Ray runs, or not at all."""

import logging
import os

from omegaconf import DictConfig

from recipe.prune_opd.checks.numbers import ACTOR, ROLLOUT
from recipe.prune_opd.config import PruneOPDConfig


def check_mode(config: DictConfig, prune_opd: PruneOPDConfig, mode: str) -> None:
    """Check what depends on verl's trainer mode.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it.
        mode: the trainer's, by verl's name.

    Raises:
        ValueError: names the key, what it holds, what is allowed and why.
    """
    if mode != "sync":
        _check_late_responses(prune_opd, mode)
    if mode == "separate_async":
        _check_separate(config)
        _check_said(config)
    elif not config.actor_rollout_ref.hybrid_engine:
        _refuse(
            "actor_rollout_ref.hybrid_engine", False, mode, "True", "its rollout has no other place"
        )


def _check_late_responses(prune_opd: PruneOPDConfig, mode: str) -> None:
    """What takes it for granted that a step trains on the prompts that it sends out."""
    if prune_opd.semi.enable:
        why = "cached rollouts are trained on in the order of the data"
        _refuse("prune_opd.semi.enable", True, mode, "False, or the mode sync", why)
    if prune_opd.budget.rule == "random":
        why = "it repeats the lengths of another run step by step"
        _refuse("prune_opd.budget.rule", "random", mode, "another rule, or the mode sync", why)


def _check_separate(config: DictConfig) -> None:
    """Devices, weight transfer and updates of a rollout that has a place of its own."""
    mode, rollout = "separate_async", config.actor_rollout_ref.rollout
    for name in ("nnodes", "n_gpus_per_node"):
        if not isinstance(rollout[name], int) or rollout[name] < 1:
            why = "the rollout has devices of its own"
            _refuse(f"{ROLLOUT}.{name}", rollout[name], mode, "a whole number >= 1", why)
    devices = rollout.nnodes * rollout.n_gpus_per_node
    server = rollout.tensor_model_parallel_size * rollout.data_parallel_size
    if devices % server:
        key = f"{ROLLOUT}.nnodes x {ROLLOUT}.n_gpus_per_node"
        why = "verl would leave the rest idle"
        allowed = f"a multiple of the {server} devices of a server"
        _refuse(key, devices, mode, allowed, why)
    key, backend = f"{ROLLOUT}.checkpoint_engine.backend", rollout.checkpoint_engine.backend
    if backend == "naive":
        why = "weights go to another device; +platform=cpu sets gloo"
        _refuse(key, backend, mode, "nccl, nixl or another engine of verl's", why)
    parts = config.trainer.v1.separate_async.parameter_sync_step
    prompts, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if prompts != parts * mini:
        why = "a step is so many updates of so many prompts"
        allowed = (
            f"{parts * mini}, that is trainer.v1.separate_async.parameter_sync_step={parts} x"
            f" {ACTOR}.ppo_mini_batch_size={mini}"
        )
        _refuse("data.train_batch_size", prompts, mode, allowed, why)
    reward = config.reward.reward_model
    if reward.enable and not reward.enable_resource_pool:
        key = "reward.reward_model.enable_resource_pool"
        _refuse(key, False, mode, "True", "the rollout never pauses to make room for it")


def _check_said(config: DictConfig) -> None:
    """verl 0.9.1 ends in a TypeError at a message of its own that says that no rollout is on the
    training devices (``PPOTrainerSeparateAsync._setup``), unless messages of that level are off."""
    level = logging.getLevelName(os.environ.get("VERL_LOGGING_LEVEL", "INFO"))
    if not config.actor_rollout_ref.hybrid_engine and level in (logging.DEBUG, logging.INFO):
        allowed = "True, or False with VERL_LOGGING_LEVEL=WARNING in the environment"
        why = "verl 0.9.1 fails at a message about it"
        _refuse("actor_rollout_ref.hybrid_engine", False, "separate_async", allowed, why)


def _refuse(key: str, found: object, mode: str, allowed: str, why: str) -> None:
    raise ValueError(
        f"{key}: got {found!r}, allowed with prune_opd.trainer_mode={mode}: {allowed}, because"
        f" {why}"
    )
