"""Kinds of verl's values that the checks read beside numbers: a check that goes on from here need
not ask again what it holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from recipe.prune_opd.config import named, shown


@dataclass(frozen=True)
class Kind:
    """Kind of a value.

    Args:
        words: in words.
        holds: whether a value is of it.
    """

    words: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_group(value: Any) -> bool:
    return isinstance(value, DictConfig)


def _are_texts(value: Any) -> bool:
    return isinstance(value, ListConfig) and all(map(_is_text, value))


GROUP = Kind("a group of keys", _is_group)
GROUP_OR_NULL = Kind("a group of keys, or null", lambda value: value is None or _is_group(value))
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", _is_text)
TEXT_OR_NULL = Kind("a text, or null", lambda value: value is None or _is_text(value))
TEXTS_OR_NULL = Kind(
    "a text, a list of texts, or null",
    lambda value: value is None or _is_text(value) or _are_texts(value),
)
NAMES_OR_NULL = Kind(
    "a text, a group of texts, or null",
    lambda value: (
        value is None
        or _is_text(value)
        or (_is_group(value) and all(map(TEXT_OR_NULL.holds, value.values())))
    ),
)

MODEL, ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"
KINDS = {
    "algorithm": GROUP,
    "algorithm.adv_estimator": TEXT,
    "data": GROUP,
    "trainer": GROUP,
    "trainer.v1": GROUP,
    "actor_rollout_ref": GROUP,
    MODEL: GROUP,
    f"{MODEL}.override_config": GROUP_OR_NULL,
    f"{MODEL}.override_config.model_config": GROUP_OR_NULL,
    f"{MODEL}.override_config.attn_implementation": NAMES_OR_NULL,
    ROLLOUT: GROUP,
    f"{ROLLOUT}.agent": GROUP,
    f"{ROLLOUT}.engine_kwargs": GROUP,
    f"{ROLLOUT}.engine_kwargs.vllm": GROUP_OR_NULL,
    f"{ROLLOUT}.engine_kwargs.sglang": GROUP_OR_NULL,
    "actor_rollout_ref.actor": GROUP,
    "actor_rollout_ref.ref": GROUP,
    "data.apply_chat_template_kwargs": GROUP,
    "data.custom_cls.path": TEXT_OR_NULL,
    "data.prompt_key": TEXT,
    f"{MODEL}.path": TEXT,
    f"{MODEL}.hf_config_path": TEXT_OR_NULL,
    f"{MODEL}.tokenizer_path": TEXT_OR_NULL,
    f"{MODEL}.custom_chat_template": TEXT_OR_NULL,
    f"{MODEL}.external_lib": TEXTS_OR_NULL,
    f"{MODEL}.trust_remote_code": SWITCH,
    f"{MODEL}.use_remove_padding": SWITCH,
    f"{ROLLOUT}.agent.default_agent_loop": TEXT,
    f"{ROLLOUT}.agent.agent_loop_config_path": TEXT_OR_NULL,
    f"{ROLLOUT}.calculate_log_probs": SWITCH,
    f"{ROLLOUT}.checkpoint_engine": GROUP,
    f"{ROLLOUT}.checkpoint_engine.backend": TEXT,
    "actor_rollout_ref.hybrid_engine": SWITCH,
    "actor_rollout_ref.actor.use_dynamic_bsz": SWITCH,
    f"{ROLLOUT}.log_prob_use_dynamic_bsz": SWITCH,
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": SWITCH,
    "reward.custom_reward_function.path": TEXT_OR_NULL,
    "trainer.default_local_dir": TEXT,
    "trainer.del_local_ckpt_after_load": SWITCH,
    "trainer.device": TEXT,
    "trainer.resume_from_path": TEXT_OR_NULL,
    "trainer.v1.trainer_mode": TEXT,
}
"""Keys by what they hold; a group is before what is in it."""


def look_up(config: DictConfig, key: str) -> Any:
    """Value at a key; None where there is no such key.

    Raises:
        ValueError: no value was given, or an interpolation leads nowhere; names the key.
    """
    try:
        return OmegaConf.select(config, key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise unresolved(error, key) from error


def unresolved(error: OmegaConfBaseException, key: str | None = None) -> ValueError:
    """OmegaConf's error, whose message has three lines, in one sentence.

    Args:
        error: about a value.
        key: that was looked up; None: as the error knows it.
    """
    known = key or named(*str(error.full_key or "the configuration").split("."))
    if isinstance(error, MissingMandatoryValue):
        return ValueError(f"{known}: no value was given")
    return ValueError(f"{known}: {str(error.msg or error).splitlines()[0]}")


def check_kinds(config: DictConfig) -> None:
    """Check that every value that later checks read is of a kind they can read.

    Raises:
        ValueError: the first key whose value is not; names the key, what it holds, what is allowed.
    """
    for key, kind in KINDS.items():
        found = look_up(config, key)
        if not kind.holds(found):
            raise ValueError(f"{key}: got {shown(found)}, allowed: {kind.words}")


def check_mapping(key: str, value: Any) -> Mapping[str, Any]:
    """Group of keys at a key that is known only now; none where it is null.

    Raises:
        ValueError: it is none.
    """
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{key}: got {shown(value)}, allowed: a group of keys, or null")
    return value or {}
