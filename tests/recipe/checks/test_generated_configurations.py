"""A configuration with values of any kind and size starts, as far as values alone can tell, or ends
in one sentence that names a key; nothing else happens, and no run without pruning begins.

``HYPOTHESIS_PROFILE=long`` generates many.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.engines import FSDP, numbers_of
from recipe.prune_opd.checks.kinds import KINDS
from recipe.prune_opd.checks.numbers import NUMBERS, OPTIONAL
from recipe.prune_opd.checks.settings import GATE_SETTINGS, SEMI_SETTINGS, SETTINGS
from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.training.preflight import check_values


def keys_of(group: type, prefix: str) -> Iterator[str]:
    for name, field in group.model_fields.items():
        yield f"{prefix}.{name}"
        if hasattr(field.annotation, "model_fields"):
            yield from keys_of(field.annotation, f"{prefix}.{name}")


OURS = list(keys_of(PruneOPDConfig, "prune_opd"))
VERLS = [
    *KINDS,
    *NUMBERS,
    *OPTIONAL,
    *numbers_of(FSDP),
    *(setting.key for setting in (*SETTINGS, *FSDP.settings, *GATE_SETTINGS, *SEMI_SETTINGS)),
]
GROUPS = {"prune_opd", *(key for key in KINDS if "." not in key)}
"""What a message may begin with that is no key of a group."""
IMPORTED = ("trainer.v1.trainer_mode", "agent.default_agent_loop", "agent_loop_config_path")
"""Keys whose other values are looked up in verl, which takes seconds: test_start.py has them."""
SWITCHES = [
    {},
    {"prune_opd.gate.enable": True},
    {"prune_opd.semi.enable": True},
    {"prune_opd.teacher.home": "server", "prune_opd.strategy": "only_tch"},
    {"prune_opd.budget.rule": "quantile"},
    {"prune_opd.drift.weights": "importance"},
]
NAMES = ["vllm", "overlap_ratio", "url", "no.module:Name", "os:path", "never", "random", "union"]
NUMBER = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 3, 7, 8, 512, 513, 2**31, 2**63, 10**30, 10**400]),
    st.integers(-5, 20000),
    st.floats(),
)
TEXT = st.one_of(
    st.sampled_from(["", " ", "1", "nope", "${nope}", "???", "a\nb", "\ud800", "x" * 5000, *NAMES]),
    st.text(max_size=8).filter(lambda text: "${" not in text and "\\" not in text),
)
LEAF = st.one_of(st.none(), st.booleans(), NUMBER, TEXT)
VALUE = st.one_of(
    LEAF,
    st.lists(LEAF, max_size=3),
    st.dictionaries(st.one_of(TEXT, st.integers(0, 3)), LEAF, max_size=2),
    st.just([[1]]),
)


@st.composite
def changes(draw: Any) -> dict[str, Any]:
    """One to three keys and their values, on top of a recipe that starts."""
    found = dict(draw(st.sampled_from(SWITCHES)))
    known = [key for key in (*OURS, *VERLS) if not key.endswith(IMPORTED)]
    for key in draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True)):
        found[key] = draw(VALUE)
    return found


def changed(config: DictConfig, values: dict[str, Any]) -> DictConfig:
    config = copy.deepcopy(config)
    for key, value in values.items():
        try:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        except Exception:  # a group above it was changed to what can hold no key
            note(f"{key} could not be set")
    return config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=changes())
def test_any_configuration_starts_or_ends_in_one_sentence(composed, values):
    config = changed(composed, values)
    try:
        prune_opd, _ = check_values(config)
    except ValueError as error:
        message = str(error)
        note(message)
        assert message == " ".join(message.splitlines())
        assert len(message) < 2000
        key = message.split(":")[0]
        names = {part for given in values for part in given.split(".")}
        assert "." in key or key in GROUPS
        assert any(name in message for name in names), "names none of the keys that were changed"
    else:
        assert isinstance(prune_opd, PruneOPDConfig)
        assert config.trainer.v1.trainer_mode == "prune_opd"
        alone = config.algorithm.adv_estimator == "prune_opd"
        assert alone == (prune_opd.task_reward.factor == 0)
        assert config.trainer.use_v1 is True


def test_the_configuration_that_is_changed_starts(composed):
    for values in SWITCHES:
        if "prune_opd.teacher.home" not in values:
            values = values | {"actor_rollout_ref.rollout.n": 8}
        assert check_values(changed(composed, values))


NAMED = {
    "data.max_response_length": [0, "x", None, [512], 10**400],
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": [None, "x", [1], 0, True],
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": [None, "2", [1], 0],
    "actor_rollout_ref.ref.fsdp_config.fsdp_size": [None, "2", [1], -2],
    "trainer.n_gpus_per_node": [None, "8", [8], 0, {"a": 1}],
    "actor_rollout_ref.model.override_config": [[[1]], "x", 5],
    "actor_rollout_ref.rollout.engine_kwargs": [["a"], None, "x"],
    "actor_rollout_ref.rollout.engine_kwargs.vllm": [["a"], "x", 5],
    "actor_rollout_ref.rollout": [None, 5, ["a"]],
    "actor_rollout_ref.actor.use_dynamic_bsz": ["yes", 1, None],
    "prune_opd.teacher.override_config": [[[1]], "x"],
    "prune_opd.teacher.server.engine_kwargs": [["a"], "x"],
    "prune_opd.teacher.url.urls": [["http://[::1"], "http://a", [5]],
    "prune_opd.topk": ["${nope}", "???", 10**400, [16]],
    "trainer.nnodes": ["${nope}", "???"],
    "data.train_max_samples": [None, "all", 0.5],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NAMED.items() for value in values]
)
def test_a_value_of_the_wrong_kind_is_named_by_its_key(composed, key, value):
    with pytest.raises(ValueError, match="^" + key.replace(".", r"\.")) as refused:
        check_values(changed(composed, {key: value}))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("most", ["20", [20], 2.5, True, -5, 3, 10**400])
@pytest.mark.parametrize("key", ["actor_rollout_ref.rollout.engine_kwargs.vllm", "teacher"])
def test_max_logprobs_of_an_engine_is_a_number_that_is_enough(composed, key, most):
    key = {"teacher": "prune_opd.teacher.server.engine_kwargs"}.get(key, key)
    values = {"prune_opd.gate.enable": True, key: {"max_logprobs": most}}
    with pytest.raises(ValueError, match=rf"^{key}\.max_logprobs: got "):
        check_values(changed(composed, values))


def test_a_key_with_a_line_break_is_one_line(composed):
    config = copy.deepcopy(composed)
    OmegaConf.update(config.prune_opd, "topk", 16)
    with_break = DictConfig({**OmegaConf.to_container(config.prune_opd), "a\nb": 1})
    config.prune_opd = with_break
    with pytest.raises(ValueError, match=r"^prune_opd\.'a\\nb': there is no such key") as refused:
        check_values(config)
    assert "\n" not in str(refused.value)
