"""A machine without an accelerator runs verl by itself, and a GPU machine never notices."""

import inspect
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import verl  # noqa: F401 - loads the plugin, which does not come up where its own parts are first
from omegaconf import OmegaConf

from verl_ext import cpu

on_cpu = pytest.mark.skipif(
    not cpu.no_accelerator(), reason="this PyTorch is built for an accelerator"
)


@pytest.fixture
def cpu_build(monkeypatch):
    """A PyTorch built for no accelerator."""
    for name in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(torch.version, name, None, raising=False)
    monkeypatch.delattr(torch, "npu", raising=False)


# -------------------------------------------------------------------------------- when it is active


@pytest.mark.usefixtures("cpu_build")
def test_a_cpu_build_has_no_accelerator():
    assert cpu.no_accelerator()


@pytest.mark.usefixtures("cpu_build")
@pytest.mark.parametrize("name", ["cuda", "hip", "xpu"])
def test_an_accelerator_build_has_one_even_without_a_device(monkeypatch, name):
    monkeypatch.setattr(torch.version, name, "12.8", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not cpu.no_accelerator()


@pytest.mark.usefixtures("cpu_build")
def test_an_npu_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch, "npu", object(), raising=False)
    assert not cpu.no_accelerator()


@pytest.mark.usefixtures("cpu_build")
@pytest.mark.parametrize(("cuda", "packs"), [(None, False), ("12.8", True)])
def test_vllm_keeps_its_weights_on_a_cpu_build_alone(monkeypatch, cuda, packs):
    vllm, custom_ops = ModuleType("vllm"), ModuleType("vllm._custom_ops")
    vllm._custom_ops, custom_ops._supports_onednn = custom_ops, True
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", custom_ops)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    cpu.disable_onednn_packing()
    assert custom_ops._supports_onednn is packs


def test_vllm_still_has_the_switch():
    try:
        version("vllm")
    except PackageNotFoundError:
        pytest.skip("vLLM is not installed")
    source = Path(find_spec("vllm").submodule_search_locations[0]) / "_custom_ops.py"
    assert "\n_supports_onednn = " in source.read_text()


# ------------------------------------------------------------------------------------- the platform


@pytest.fixture
def platform():
    from verl_ext.cpu.platform import CPUPlatform

    return CPUPlatform()


@on_cpu
def test_verl_chooses_the_platform_by_itself(platform):
    from verl.plugin.platform import get_platform
    from verl.utils.device import get_device_name

    assert isinstance(get_platform(), type(platform))
    assert get_device_name() == "cpu"


@on_cpu
def test_verls_process_group_goes_over_gloo():
    from verl.utils import distributed

    assert distributed.initialize_global_process_group_ray.__module__ == "verl_ext.cpu.platform"


@on_cpu
def test_the_environment_is_set():
    from verl_ext.cpu.platform import ENVIRONMENT

    assert ENVIRONMENT.keys() <= os.environ.keys()


def test_a_users_environment_wins(monkeypatch):
    from verl.plugin.platform.platform_manager import PlatformRegistry

    from verl_ext.cpu import platform

    monkeypatch.setattr(PlatformRegistry, "_platforms", {})
    monkeypatch.setattr(platform, "_default_to_gloo", lambda module: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.delenv("VERL_ENGINE_DEVICE", raising=False)
    platform.activate()
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert os.environ["VERL_ENGINE_DEVICE"] == "cuda"
    assert PlatformRegistry.get("cpu") is platform.CPUPlatform


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, (None, "cpu:gloo")),
        ((60,), {}, (60, "cpu:gloo")),
        ((), {"timeout_second": 60, "backend": "gloo"}, (60, "gloo")),
    ],
)
def test_the_default_backend_is_gloo(args, kwargs, expected):
    from verl_ext.cpu.platform import _default_to_gloo

    calls = []
    module = SimpleNamespace(initialize_global_process_group_ray=lambda *given: calls.append(given))
    _default_to_gloo(module)
    module.initialize_global_process_group_ray(*args, **kwargs)
    assert calls == [expected]


def test_every_call_of_verls_interface_is_answered(platform):
    from verl.plugin.platform.platform_base import PlatformBase

    for name in PlatformBase.__abstractmethods__:
        ours, theirs = getattr(type(platform), name), getattr(PlatformBase, name)
        if inspect.isfunction(theirs):
            assert list(inspect.signature(ours).parameters) == list(
                inspect.signature(theirs).parameters
            ), name
            assert name in vars(type(platform))


def test_answers(platform):
    assert (platform.device_name, platform.vendor_name, platform.device_count()) == (
        "cpu",
        "cpu",
        1,
    )
    assert platform.communication_backend_name() == "gloo"
    assert platform.ray_resource_name() == "GPU"  # logical slots
    assert platform.ray_resource_options(0.5) == {"num_gpus": 0.5}
    assert not platform.is_ipc_supported()
    assert platform.is_available() == cpu.no_accelerator()
    assert torch.zeros(1).to(platform.current_device()).device.type == "cpu"
    with platform.nvtx_range("message"):
        pass


def test_seeds_are_set(platform):
    for seed in (platform.manual_seed, platform.manual_seed_all):
        seed(5)
        first = torch.rand(3)
        seed(5)
        assert torch.equal(torch.rand(3), first)


def test_device_module_answers_verls_questions(platform):
    device = platform.device_module
    for name in (
        "memory_allocated",
        "memory_reserved",
        "max_memory_allocated",
        "max_memory_reserved",
    ):
        assert getattr(device, name)() > 2**20
    free, total = device.mem_get_info()
    assert 0 < free <= total == device.get_device_properties(0).total_memory
    assert device.get_device_name() == "cpu"
    device.empty_cache()
    device.reset_peak_memory_stats()
    device.synchronize()
    assert device.current_device() == "cpu"


def test_device_module_keeps_random_states(platform):
    device = platform.device_module
    device.manual_seed(3)
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_device_module_leaves_torch_alone(platform):
    assert platform.device_module is not torch.cpu
    assert not hasattr(torch.cpu, "mem_get_info")


# ------------------------------------------------------------------------------------- its settings


def test_platform_group_composes_with_the_recipe(compose):
    config = compose(
        "+recipe=prune_opd",
        "+platform=cpu",
        "prune_opd.teacher.path=T",
        "trainer.n_gpus_per_node=2",
    )
    assert config.trainer.device == "cpu"
    assert config.ray_kwargs.ray_init.num_gpus >= 2
    assert (
        config.actor_rollout_ref.actor.strategy
        == config.actor_rollout_ref.ref.fsdp_config.strategy
        == "fsdp2"
    )
    assert config.prune_opd.teacher.override_config == {"attn_implementation": "sdpa"}
    assert not OmegaConf.missing_keys(config.prune_opd)


def test_platform_group_works_for_any_recipe_of_verl(compose):
    config = compose("+platform=cpu")
    assert config.trainer.device == "cpu"
    assert "prune_opd" not in config


def test_recipe_allows_the_platforms_settings(compose):
    from recipe.prune_opd.checks.settings import check_settings

    for gate in ("false", "true"):
        check_settings(
            compose(
                "+recipe=prune_opd",
                "+platform=cpu",
                "prune_opd.teacher.path=T",
                f"prune_opd.gate.enable={gate}",
            )
        )
