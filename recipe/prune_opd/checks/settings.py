"""Settings of verl that are refused, each in one sentence. docs/configuration.md lists every
refusal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.kinds import check_kinds, check_mapping, look_up
from recipe.prune_opd.checks.numbers import ACTOR, ROLLOUT, check_numbers
from recipe.prune_opd.config import (
    ENGINES,
    LARGEST,
    PruneOPDConfig,
    load_config,
    read_config,
    require,
    shown,
)
from recipe.prune_opd.method.gates import GateRule


@dataclass(frozen=True)
class Setting:
    """A verl key that this method ignores or cannot go with, unless it has one of the allowed
    values."""

    key: str
    allowed: tuple[Any, ...]
    why: str


SHOW_LOGITS = ("fsdp", "fsdp2", "veomni", "megatron")
"""verl's training engines that show their logits to a loss."""
SETTINGS = (
    Setting("trainer.use_v1", (True,), "the trainer is built on verl's V1 trainer"),
    Setting(
        "algorithm.use_kl_in_reward",
        (False,),
        "the reference model is the teacher, its KL is the reward",
    ),
    Setting("algorithm.gamma", (1.0,), "the advantage is not discounted"),
    Setting("algorithm.lam", (1.0,), "the advantage is not discounted"),
    Setting(
        "algorithm.use_pf_ppo",
        (False,),
        "it reweighs responses by task rewards, and distillation with them",
    ),
    Setting(
        "algorithm.filter_groups.enable",
        (False,),
        "it drops prompts by task rewards, and they can be distilled from",
    ),
    Setting(
        "algorithm.rollout_correction.bypass_mode",
        (False,),
        "old log-probs are the trainer's own, or with prune_opd.student=rollout the rollout's",
    ),
    Setting(
        "algorithm.rollout_correction.rollout_is",
        (None,),
        "candidates are not sampled, so have no such weight",
    ),
    Setting(
        "algorithm.rollout_correction.rollout_rs",
        (None,),
        "the loss mask must stay that of the generated tokens",
    ),
    Setting("trainer.resume_mode", ("auto", "disable", "resume_path"), "verl has no other"),
    Setting("critic.enable", (False, None), "the advantage has no baseline"),
    Setting(
        "trainer.critic_warmup",
        (0,),
        "there is no critic to warm up, and the student would not be trained",
    ),
    Setting("distillation.enabled", (False,), "it would replace the actor's loss"),
    Setting(
        f"{ACTOR}.strategy",
        SHOW_LOGITS,
        "verl's other engines show no logits to a loss",
    ),
    Setting(
        f"{ACTOR}.use_kl_loss", (False,), "the reference model is the teacher, its KL is the reward"
    ),
    Setting(f"{ACTOR}.entropy_coeff", (0,), "the loss has no entropy term"),
    Setting(
        f"{ACTOR}.calculate_entropy",
        (False,),
        "the update does not compute it; actor/entropy is always logged",
    ),
    Setting(
        f"{ACTOR}.calculate_sum_pi_squared",
        (False,),
        "it is for a baseline, and the advantage has none",
    ),
    Setting(
        f"{ACTOR}.loss_agg_mode",
        ("token-mean",),
        "the loss is divided by the number of generated tokens",
    ),
    Setting(
        f"{ACTOR}.policy_loss.loss_mode",
        ("vanilla",),
        "the loss is the clipped one over candidates",
    ),
    Setting(f"{ACTOR}.use_prefix_grouper", (False,), "it takes another path through the model"),
    Setting(
        "actor_rollout_ref.model.use_fused_kernels", (False,), "fused kernels never show the logits"
    ),
    Setting(
        f"{ACTOR}.checkpoint.async_save",
        (False,),
        "verl would not find the checkpoint again",
    ),
    Setting(f"{ROLLOUT}.name", ("vllm", "sglang", "trtllm"), "verl has no other"),
    Setting(f"{ROLLOUT}.mode", ("async",), "verl has no other"),
    Setting(f"{ROLLOUT}.pipeline_model_parallel_size", (1,), "verl's rollout has no pipeline"),
)


GATE_SETTINGS = (
    Setting(f"{ROLLOUT}.name", ENGINES, "the servers of other engines cannot be followed"),
    Setting(
        f"{ROLLOUT}.disaggregation.enabled",
        (False, None),
        "a followed response stays on one server",
    ),
)
"""Settings that are refused where the rollout reports its top k."""

PLAIN = {"temperature": (1,), "top_p": (1,), "top_k": (-1, 0)}
"""Keys of the rollout with which it samples from the distribution that its servers report."""

ALL = -1
"""Value of vLLM's ``max_logprobs`` that stands for the whole vocabulary."""

SEMI_SETTINGS = (
    Setting(
        "skip.rollout_tq.enable", (False, None), "it would put other rollouts in the place of these"
    ),
    Setting(
        "trainer.v1.sampler.sync_refill_failed_groups",
        (False, None),
        "it would train on prompts that have no cached rollouts",
    ),
)
"""Settings that are refused with ``prune_opd.semi.enable`` alone."""


def check_settings(config: DictConfig) -> PruneOPDConfig:
    """Check values alone: ``prune_opd.*`` and the verl keys it depends on.

    Args:
        config: verl's composed configuration.

    Raises:
        ValueError: the first key that is not allowed, what it holds, what is allowed and why.
    """
    if look_up(config, "prune_opd") is None:
        raise ValueError(
            "prune_opd: the configuration has no such node, start with +recipe=prune_opd"
        )
    check_kinds(config)  # first: keys of ours follow verl's
    typed = load_config(config.prune_opd)
    check_allowed(config, SETTINGS, "prune_opd")
    if typed.semi.enable:
        check_allowed(config, SEMI_SETTINGS, "prune_opd.semi.enable")
    check_numbers(config)
    _check_folders(config)
    typed = read_config(config)
    typed.budget.build()
    if typed.student == "rollout":
        _check_plain(config)
        check_followed(config, typed, "student=rollout")
    if typed.gate.enable:
        check_followed(config, typed, "gate.enable")
        _check_reach(typed.gate_rule, typed.gate.min_tokens, typed.budget.longest)
    return typed


def check_allowed(config: DictConfig, settings: tuple[Setting, ...], wanted: str) -> None:
    """Check that verl's keys have values that are allowed.

    Args:
        config: verl's composed configuration.
        settings: what is allowed.
        wanted: what they cannot go with, named in the message.

    Raises:
        ValueError: the first key that has another value, what it holds, what is allowed and why.
    """
    for setting in settings:
        found = look_up(config, setting.key)
        if found not in setting.allowed:
            allowed = " or ".join(str(value) for value in setting.allowed)
            raise ValueError(
                f"{setting.key}: got {shown(found)}, allowed with {wanted}: {allowed}, because"
                f" {setting.why}"
            )


def _check_folders(config: DictConfig) -> None:
    """Folders by name: the one to resume from, and the one of the paper's benchmarks."""
    resumed = config.trainer.resume_from_path
    step = str(resumed).rpartition("global_step_")[2]
    if config.trainer.resume_mode == "resume_path" and not (step.isascii() and step.isdecimal()):
        raise ValueError(
            f"trainer.resume_from_path: got {shown(resumed)}, allowed with"
            " trainer.resume_mode=resume_path: a folder global_step_N"
        )
    given = OmegaConf.to_container(config.data)  # nothing resolved
    assert isinstance(given, dict)
    folder = given.get("benchmarks")
    if "${data.benchmarks}" in str(given["val_files"]) and not Path(str(folder)).is_absolute():
        raise ValueError(
            f"data.benchmarks: got {'no value' if folder == '???' else repr(folder)}, allowed: the"
            " absolute path of the folder that prepare wrote, because the trainer may run in"
            " another folder or on another machine"
        )


def check_followed(config: DictConfig, prune_opd: PruneOPDConfig, needed_by: str) -> None:
    """Check that the rollout can report its top k, and that verl does not compare log-probs of two
    distributions.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it.
        needed_by: the key of ``prune_opd`` that asks for them.

    Raises:
        ValueError: names the key, what was found and what is allowed.
    """
    check_allowed(config, GATE_SETTINGS, f"prune_opd.{needed_by}")
    rollout = config.actor_rollout_ref.rollout
    key = f"{ROLLOUT}.engine_kwargs.{rollout.name}"
    engine = check_mapping(key, rollout.engine_kwargs.get(rollout.name))
    check_engine(key, engine, prune_opd.topk, needed_by)
    plain = all(rollout[name] in allowed for name, allowed in PLAIN.items())
    if rollout.calculate_log_probs and not plain:
        raise ValueError(
            f"{ROLLOUT}.calculate_log_probs: got True, allowed with prune_opd.{needed_by}: False"
            " where the rollout has a temperature, top_p or top_k, because the servers then report"
            " the unprocessed distribution"
        )


def _check_plain(config: DictConfig) -> None:
    """The rollout reports the unprocessed distribution: it must be that which is sampled from."""
    rollout = config.actor_rollout_ref.rollout
    for key, allowed in PLAIN.items():
        if rollout[key] not in allowed:
            raise ValueError(
                f"{ROLLOUT}.{key}: got {shown(rollout[key])}, allowed with"
                f" prune_opd.student=rollout: {allowed[0]}, because the servers report the"
                " unprocessed distribution"
            )


def _check_reach(rule: GateRule, min_tokens: int, longest: int) -> None:
    """A rule that needs more tokens than a response may have would stop nothing."""
    if rule.reach > longest:
        earliest = f"holds at {rule.reach} tokens at the earliest"
        raise ValueError(
            f"prune_opd.gate.kind: got {rule}, which"
            f" {'never holds' if rule.reach == math.inf else earliest}, allowed: a rule that can"
            f" hold within budget.max, {longest} tokens"
        )
    require(min_tokens < longest, "gate.min_tokens", min_tokens, f"less than budget.max, {longest}")


def check_engine(
    key: str, arguments: Mapping[str, Any], topk: int, needed_by: str, needed: str = "topk"
) -> None:
    """Check arguments of an engine, which go past the keys that verl and this recipe set.

    Args:
        key: that holds them.
        arguments: by the engine's names.
        topk: K.
        needed_by: what asks the engine for its top k, a key of ``prune_opd`` with its value.
        needed: key of ``prune_opd`` that holds ``topk``.

    Raises:
        ValueError: an argument would change what is reported.
    """
    mode, most = arguments.get("logprobs_mode"), arguments.get("max_logprobs")
    if mode not in (None, "raw_logprobs"):
        raise ValueError(
            f"{key}.logprobs_mode: got {shown(mode)}, allowed with prune_opd.{needed_by}:"
            " 'raw_logprobs'"
        )
    if arguments.get("incremental_streaming_output"):
        raise ValueError(
            f"{key}.incremental_streaming_output: got True, allowed with prune_opd.{needed_by}:"
            " False"
        )
    whole = type(most) is int
    if most is not None and (not whole or not (most == ALL or topk <= most <= LARGEST)):
        raise ValueError(
            f"{key}.max_logprobs: got {shown(most)}, allowed with prune_opd.{needed_by}: {ALL} for"
            f" all, or a whole number of at least prune_opd.{needed}, {topk}"
        )
