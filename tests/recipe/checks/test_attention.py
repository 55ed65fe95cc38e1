"""An attention that cannot work here, or not with these ranks, is refused with what to install."""

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from transformers import AttentionInterface
from verl.utils import torch_functional

from recipe.prune_opd.checks import attention
from recipe.prune_opd.checks.attention import check_attention, warn_of_slow_log_probs
from recipe.prune_opd.training.preflight import check_values

STUDENT = "actor_rollout_ref.model.override_config"
TEACHER = "prune_opd.teacher.override_config"
PARALLEL = {
    name: f"actor_rollout_ref.{name}.ulysses_sequence_parallel_size" for name in ("actor", "ref")
}


def choose(config: DictConfig, node: str, name: Any) -> None:
    OmegaConf.update(config, node, {"attn_implementation": name}, force_add=True, merge=False)


def refusal(check, *arguments) -> str:
    with pytest.raises(ValueError, match=r"attn_implementation|use_remove_padding") as refused:
        check(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def check(config: DictConfig) -> None:
    check_attention(config, check_values(config)[1].held)


@pytest.fixture
def packages(monkeypatch):
    """What can be imported, beside this machine's own: name of a module -> what importing it
    raises, or nothing."""

    def given(**modules: Exception | None) -> None:
        def import_module(name: str) -> ModuleType:
            if name not in modules:
                raise ModuleNotFoundError(f"No module named {name!r}")
            if (error := modules[name]) is not None:
                raise error
            module = ModuleType(name)
            module.flash_attn_varlen_func = None
            return module

        monkeypatch.setattr(attention, "importlib", SimpleNamespace(import_module=import_module))

    return given


# ------------------------------------------------------------------------------------------- import


def test_verls_default_needs_flash_attention(config, packages):
    packages()
    message = refusal(check, config)
    assert (
        message
        == f"{STUDENT}.attn_implementation: got 'flash_attention_2', verl's default, which cannot"
        " be imported (ModuleNotFoundError: No module named 'flash_attn'): install it on every"
        " node, pip install flash-attn==2.8.3 --no-build-isolation; or choose"
        f" +{STUDENT}.attn_implementation=sdpa, which is slower and goes without sequence"
        " parallelism"
    )
    packages(flash_attn=None)
    check(config)


def test_a_package_built_for_another_pytorch_is_told_from_one_that_works(config, packages):
    packages(flash_attn=ImportError("flash_attn_2_cuda.so:\n undefined symbol: _ZN3c10"))
    assert "(ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c10)" in refusal(
        check, config
    )


def test_a_package_without_the_function_is_refused(config, monkeypatch):
    """flash-attn 4 is a package of the same name, without what version 2 has."""
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert "AttributeError: module 'flash_attn' has no attribute" in refusal(check, config)


@pytest.mark.parametrize(
    ("name", "module"),
    [("flash_attention_3", "flash_attn_interface"), ("flash_attention_4", "flash_attn.cute")],
)
def test_other_versions_come_from_other_packages(config, packages, name, module):
    choose(config, STUDENT, name)
    packages(flash_attn=None)
    assert f"No module named '{module}'" in refusal(check, config)
    packages(**{module: None})
    check(config)


def test_kernels_of_the_hub_take_the_place_of_a_missing_package(config, packages, monkeypatch):
    packages()
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: True)
    check(config)
    choose(config, STUDENT, "kernels-community/flash-attn3")
    check(config)
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: False)
    assert "a kernel of the hub, which needs the package kernels" in refusal(check, config)


def test_a_cpu_has_no_flash_attention(config, packages):
    packages(flash_attn=None)
    config.trainer.device = "cpu"
    assert "which needs a GPU, allowed with trainer.device=cpu: sdpa or eager" in refusal(
        check, config
    )


@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention", None, {"text_config": "sdpa"}])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_pytorchs_own_need_nothing(config, packages, name, device):
    packages()
    config.trainer.device = device
    choose(config, STUDENT, name)
    check(config)


def test_the_teachers_own_counts_where_a_worker_holds_it(config, packages):
    packages()
    choose(config, STUDENT, "sdpa")
    choose(config, TEACHER, "flash_attention_2")
    assert refusal(check, config).startswith(
        f"{TEACHER}.attn_implementation: got 'flash_attention_2'"
    )
    OmegaConf.update(config, TEACHER, {}, merge=False)
    assert refusal(check, config).startswith(
        f"{TEACHER}.attn_implementation: got 'flash_attention_2'"
    )
    config.prune_opd.teacher.home, config.prune_opd.strategy = "server", "intersection"
    check(config)


def test_a_name_that_nobody_registered_is_refused(config, monkeypatch):
    choose(config, STUDENT, "mine")
    message = refusal(check, config)
    assert message.startswith(
        f"{STUDENT}.attn_implementation: got 'mine', allowed: eager, flash_attention_2, "
    )
    monkeypatch.setattr(
        AttentionInterface, "_global_mapping", {**AttentionInterface._global_mapping, "mine": print}
    )
    check(config)


def test_the_users_library_registers_its_attention_first(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        AttentionInterface, "_global_mapping", {**AttentionInterface._global_mapping}
    )
    (tmp_path / "my_attention.py").write_text(
        "from transformers import AttentionInterface\nAttentionInterface.register('gathering',"
        " print)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    choose(config, STUDENT, "gathering")
    refusal(check, config)
    config.actor_rollout_ref.model.external_lib = "my_attention"
    check(config)


def test_the_trainer_asks_in_its_own_process(config):
    """On a cluster the driver has not."""
    from recipe.prune_opd.training.trainer import PruneOPDTrainer

    config.trainer.device = "cpu"
    assert "which needs a GPU" in refusal(PruneOPDTrainer, config)


# ----------------------------------------------------------------------------- sequence parallelism


@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention", "paged|sdpa", None])
@pytest.mark.parametrize(("node", "part"), [(STUDENT, "actor"), (TEACHER, "ref")])
def test_ranks_that_see_their_own_part_alone_are_refused(config, name, node, part):
    choose(config, TEACHER, "flash_attention_2")
    choose(config, node, name)
    check_values(config)
    OmegaConf.update(config, PARALLEL[part], 2)
    message = refusal(check_values, config)
    assert message.startswith(
        f"{node}.attn_implementation: got {name!r}, allowed with {PARALLEL[part]}=2: a flash"
    )


def test_the_engines_own_key_is_no_way_around(config):
    choose(config, STUDENT, "sdpa")
    config.actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size = 2
    refusal(check_values, config)


@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "mine"]
)
def test_attentions_that_gather_the_sequence_are_allowed(config, name):
    choose(config, STUDENT, name)
    config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 2
    check_values(config)


def test_a_teacher_on_servers_is_not_asked(config):
    choose(config, TEACHER, "sdpa")
    config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 2
    refusal(check_values, config)
    config.prune_opd.teacher.home, config.prune_opd.strategy = "server", "intersection"
    check_values(config)


def test_padded_batches_are_not_shared_out(config):
    config.actor_rollout_ref.model.use_remove_padding = False
    check_values(config)
    config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 2
    message = refusal(check_values, config)
    assert message.startswith(
        "actor_rollout_ref.model.use_remove_padding: got False, allowed with actor_rollout_ref."
    )


# ---------------------------------------------------------------------------------------- log-probs


@pytest.mark.parametrize(
    ("device", "kernel", "said"),
    [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)],
)
def test_log_probs_in_a_loop_are_said(config, caplog, monkeypatch, device, kernel, said):
    monkeypatch.setattr(torch_functional, "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE", kernel)
    config.trainer.device = device
    with caplog.at_level(logging.WARNING):
        warn_of_slow_log_probs(config)
    assert ["logprobs_from_logits_v2" in record.getMessage() for record in caplog.records] == [
        True
    ] * said
