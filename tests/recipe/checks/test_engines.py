"""Each training engine that shows its logits is checked by its own keys; all others are refused."""

import copy
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks import engines
from recipe.prune_opd.checks.attention import attentions
from recipe.prune_opd.checks.engines import (
    FSDP,
    MEGATRON,
    VEOMNI,
    check_model,
    check_package,
    numbers_of,
)
from recipe.prune_opd.training.preflight import check_values

NAMES = {engine.name: engine for engine in (FSDP, VEOMNI, MEGATRON)}
PARTS = ("actor", "ref")
WRONG = {
    "pad_to_length": True,
    "lora_rank": 8,
    "veomni.pad_to_length": True,
    "veomni.router_replay.mode": "R2",
    "megatron.pad_to_length": True,
    "megatron.router_replay.mode": "R3",
    "megatron.use_mbridge": False,
    "megatron.dynamic_context_parallel": True,
    "megatron.override_transformer_config.fp8": "e4m3",
    "megatron.forward_only": False,
}
EVERY = [(name, setting) for name, engine in NAMES.items() for setting in engine.settings]


@pytest.fixture(scope="session")
def composed_for(compose):
    return {
        name: compose("+recipe=prune_opd", "prune_opd.teacher.path=T", f"model_engine={name}")
        for name in NAMES
    }


@pytest.fixture
def of(composed_for):
    """A configuration for an engine, free to change."""
    return lambda name: copy.deepcopy(composed_for[name])


def refusal(config: DictConfig) -> str:
    with pytest.raises(ValueError, match="allowed") as refused:
        check_values(config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_starts_with_each_engine(of, name):
    assert check_values(of(name))[0].teacher.path == "T"


@pytest.mark.parametrize("name", ["veomni", "megatron"])
def test_other_attentions_are_the_engines_own(of, name):
    config = of(name)
    assert list(attentions(config, check_values(config)[1].held)) == []


def test_an_engine_that_shows_no_logits_is_refused(compose):
    config = compose("+recipe=prune_opd", "prune_opd.teacher.path=T", "model_engine=torchtitan")
    assert refusal(config) == (
        "actor_rollout_ref.actor.strategy: got 'torchtitan', allowed with prune_opd: fsdp or fsdp2"
        " or veomni or megatron, because verl's other engines show no logits to a loss"
    )


def test_the_engines_keys_come_with_it(of):
    config = of("dp")
    config.actor_rollout_ref.actor.strategy = "megatron"
    assert refusal(config) == (
        "actor_rollout_ref.actor.megatron: got None, allowed: a group of keys; the keys of an"
        " engine come with verl's model_engine=megatron"
    )


def test_student_and_teacher_share_an_engine(of):
    config = of("megatron")
    config.actor_rollout_ref.ref.strategy = "fsdp2"
    assert refusal(config).startswith(
        "actor_rollout_ref.ref.strategy: got 'fsdp2', allowed with prune_opd: megatron, because"
    )
    config = of("dp")
    config.actor_rollout_ref.ref.strategy = "fsdp2"  # verl's two kinds of FSDP go together
    check_values(config)


def test_every_setting_of_an_engine_has_a_case_here():
    keys = {setting.key.split(".", 2)[2] for _, setting in EVERY}
    assert keys == set(WRONG)


@pytest.mark.parametrize(("name", "setting"), EVERY, ids=lambda each: getattr(each, "key", each))
def test_what_an_engine_cannot_do_is_refused(of, name, setting):
    config, found = of(name), WRONG[setting.key.split(".", 2)[2]]
    OmegaConf.update(config, setting.key, found, force_add=True)
    if setting.key.startswith("actor_rollout_ref.actor."):  # the teacher's would follow
        config.actor_rollout_ref.ref = of(name).actor_rollout_ref.ref
    allowed = " or ".join(map(str, setting.allowed))
    assert refusal(config) == (
        f"{setting.key}: got {found!r}, allowed with prune_opd: {allowed}, because {setting.why}"
    )


@pytest.mark.parametrize("found", [-7, "2", None])
@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, engine in NAMES.items() for key in numbers_of(engine)]
)
def test_what_is_no_number_or_outside_any_range_is_refused(of, name, key, found):
    config = of(name)
    OmegaConf.update(config, key, found)
    assert refusal(config).split(": ", 1)[1].startswith(f"got {found!r}, allowed: a whole number")


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, engine in NAMES.items() for key in engine.shared]
)
def test_student_and_teacher_group_ranks_alike(of, name, key):
    config = of(name)
    student = OmegaConf.select(config, f"actor_rollout_ref.actor.{key}")
    OmegaConf.update(config, f"actor_rollout_ref.ref.{key}", 2)
    assert refusal(config) == (
        f"actor_rollout_ref.ref.{key}: got 2, allowed: {student!r}, as"
        f" actor_rollout_ref.actor.{key}, because verl groups the ranks once, for both"
    )
    config.prune_opd.teacher.home, config.prune_opd.strategy = "server", "intersection"
    check_values(config)


@pytest.mark.parametrize(
    ("name", "keys", "ranks"),
    [
        ("veomni", {"veomni.ulysses_parallel_size": 4}, 2),
        ("megatron", {"megatron.tensor_model_parallel_size": 4}, 2),
        ("megatron", {"megatron.context_parallel_size": 2}, 4),
        (
            "megatron",
            {
                "megatron.tensor_model_parallel_size": 2,
                "megatron.pipeline_model_parallel_size": 2,
                "megatron.context_parallel_size": 2,
            },
            1,
        ),
    ],
)
def test_ranks_that_share_responses_are_one_data_parallel_rank(of, name, keys, ranks):
    config = of(name)
    for key, size in keys.items():
        OmegaConf.update(config, f"actor_rollout_ref.actor.{key}", size)  # the teacher follows
    config.actor_rollout_ref.actor.ppo_mini_batch_size = ranks
    check_values(config)
    if ranks > 1:
        config.actor_rollout_ref.actor.ppo_mini_batch_size = 2 * ranks + 1
        assert f"the {ranks} data-parallel ranks of actor_rollout_ref.actor" in refusal(config)
    OmegaConf.update(config, f"actor_rollout_ref.actor.{next(iter(keys))}", 3)
    assert " allowed: a divisor of trainer.nnodes x trainer.n_gpus_per_node, 8" in refusal(config)


@pytest.mark.parametrize(
    ("name", "key", "shares"),
    [
        ("veomni", "veomni.ulysses_parallel_size", True),
        ("megatron", "megatron.context_parallel_size", True),
        ("megatron", "megatron.tensor_model_parallel_size", False),
    ],
)
def test_ranks_that_share_sequences_hold_longer_ones(of, name, key, shares):
    config = of(name)
    config.data.max_prompt_length, config.data.max_response_length = 100, 400
    config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu = 250
    assert "allowed: at least 500" in refusal(config)
    OmegaConf.update(config, f"actor_rollout_ref.actor.{key}", 2)
    if shares:
        check_values(config)
        config.actor_rollout_ref.model.use_remove_padding = False
        assert refusal(config) == (
            "actor_rollout_ref.model.use_remove_padding: got False, allowed with"
            f" actor_rollout_ref.actor.{key}=2: True"
        )
    else:
        assert "allowed: at least 500" in refusal(config)


# -------------------------------------------------------------------------------------------- files


def model(**sizes: object) -> SimpleNamespace:
    given = {"num_attention_heads": 8, "num_hidden_layers": 6, "model_type": "qwen3"}
    return SimpleNamespace(path="M", config=SimpleNamespace(**(given | sizes)))


@pytest.mark.parametrize("part", PARTS)
def test_a_model_that_ranks_cannot_share_is_refused(of, part):
    config = of("megatron")
    node, key = config.actor_rollout_ref[part].megatron, f"actor_rollout_ref.{part}.megatron"
    node.tensor_model_parallel_size = node.pipeline_model_parallel_size = 2
    node.context_parallel_size = 2
    check_model(config, part, model())
    with pytest.raises(ValueError, match=rf"^{key}.tensor_model_parallel_size: got 2, .* 3 att"):
        check_model(config, part, model(num_attention_heads=3))
    with pytest.raises(ValueError, match=rf"^{key}.pipeline_model_parallel_size: got 2, .* 7 lay"):
        check_model(config, part, model(num_hidden_layers=7))
    with pytest.raises(ValueError, match=rf"^{key}.context_parallel_size: got 2, .*deepseek_v4: 1"):
        check_model(config, part, model(model_type="deepseek_v4"))
    layout = {"num_layers_in_first_pipeline_stage": 3}
    OmegaConf.update(node, "override_transformer_config", layout, force_add=True)
    check_model(config, part, model(num_hidden_layers=7))


def test_other_engines_share_no_model(of):
    config = of("veomni")
    config.actor_rollout_ref.actor.veomni.ulysses_parallel_size = 8
    check_model(config, "actor", model(num_attention_heads=3))


@pytest.mark.parametrize(("name", "module"), [("megatron", "megatron.core"), ("veomni", "veomni")])
def test_an_engine_that_is_not_installed_is_refused(of, name, module, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=rf"got '{name}', which needs the module {module} on"):
        check_package(of(name))
    monkeypatch.setattr(engines, "find_spec", lambda module: "a module")
    check_package(of(name))
