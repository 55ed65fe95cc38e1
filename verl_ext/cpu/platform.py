"""Platform for verl (``verl.plugin.platform``) on a CPU: gloo, and GPU slots that are logical."""

import contextlib
import os
from collections.abc import Iterator
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from wrapt import when_imported

from verl_ext.cpu import no_accelerator

ENVIRONMENT = {
    "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engines for cuda and npu only
    # Compilation would cost 20 s at the first generation of a tiny model.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share the cores
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB per engine; vLLM's default would be half of the machine
}
"""Variables set, unless the user has set them, in every process that imports verl here."""


def activate() -> None:
    """Register the platform with verl, and set the environment it needs, before verl looks."""
    from verl.plugin.platform.platform_manager import PlatformRegistry
    from verl.utils import distributed

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    PlatformRegistry.register(platform="cpu")(CPUPlatform)
    _default_to_gloo(distributed)
    when_imported("verl.utils.fsdp_utils")(_copy_saved_shards)


def _default_to_gloo(distributed: Any) -> None:
    """Default to gloo: verl would ask torch for "cpu:gloo,cpu:gloo", which it refuses."""
    stock = distributed.initialize_global_process_group_ray

    @wraps(stock, assigned=())  # for who looks for the source behind it
    def initialize_global_process_group_ray(
        timeout_second: int | None = None, backend: str | None = None
    ) -> None:
        stock(timeout_second, backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def _copy_saved_shards(fsdp_utils: Any) -> None:
    """Copy weights that are put by: verl moves them to the CPU, where here they are already, and
    the next update would change both."""
    stock = fsdp_utils.fsdp2_sharded_save_to_cpu

    @wraps(stock, assigned=())  # for who looks for the source behind it
    def fsdp2_sharded_save_to_cpu(model: torch.nn.Module) -> tuple[dict[str, Any], Any]:
        shards, spec = stock(model)
        return {name: (shard.clone(), own) for name, (shard, own) in shards.items()}, spec

    fsdp_utils.fsdp2_sharded_save_to_cpu = fsdp2_sharded_save_to_cpu


def _used_memory() -> int:
    return psutil.Process().memory_info().rss


def _device_module() -> ModuleType:
    """Module ``torch.cpu`` with the calls of ``torch.cuda`` that verl makes."""
    module = ModuleType("torch.cpu")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in torch.cpu.__all__})
    total = psutil.virtual_memory().total
    nothing = {
        name: lambda *args, **kwargs: None
        for name in (
            "empty_cache",
            "ipc_collect",
            "set_per_process_memory_fraction",
            "reset_peak_memory_stats",
        )
    }
    module.__dict__.update(
        nothing,
        memory_allocated=lambda *a: _used_memory(),
        memory_reserved=lambda *a: _used_memory(),
        max_memory_allocated=lambda *a: _used_memory(),
        max_memory_reserved=lambda *a: _used_memory(),
        mem_get_info=lambda *a: (psutil.virtual_memory().available, total),
        get_device_name=lambda *a: "cpu",
        get_device_properties=lambda *a: SimpleNamespace(name="cpu", total_memory=total),
        get_rng_state=lambda *a: torch.get_rng_state(),
        set_rng_state=lambda state, *a: torch.set_rng_state(state),
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
    )
    return module


class CPUPlatform(PlatformBase):
    """Answers of a CPU to verl's accelerator interface.

    Ray's "GPU" resource is kept as the unit of placement, so ``trainer.n_gpus_per_node`` counts
    logical slots (``+ray_kwargs.ray_init.num_gpus=N`` declares them).
    """

    device_name = "cpu"
    vendor_name = "cpu"

    def __init__(self) -> None:
        self._module = _device_module()

    @property
    def device_module(self) -> ModuleType:
        """See ``PlatformBase``."""
        return self._module

    def is_available(self) -> bool:
        """See ``PlatformBase``."""
        return no_accelerator()

    def current_device(self) -> torch.device:
        """Device as torch.device: for ``Tensor.to`` an index would mean an accelerator."""
        return torch.device("cpu")

    def device_count(self) -> int:
        """See ``PlatformBase``."""
        return 1

    def set_device(self, device_index: int) -> None:
        """See ``PlatformBase``."""

    def synchronize(self, device_index: int | None = None) -> None:
        """See ``PlatformBase``."""

    def manual_seed(self, seed: int) -> None:
        """See ``PlatformBase``."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """See ``PlatformBase``."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """See ``PlatformBase``."""

    def empty_cache(self) -> None:
        """See ``PlatformBase``."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """See ``PlatformBase``."""
        return None, None

    def communication_backend_name(self) -> str:
        """See ``PlatformBase``."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """See ``PlatformBase``."""
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """See ``PlatformBase``."""
        yield

    def profiler_start(self) -> None:
        """See ``PlatformBase``."""

    def profiler_stop(self) -> None:
        """See ``PlatformBase``."""

    def ray_resource_name(self) -> str:
        """See ``PlatformBase``."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """See ``PlatformBase``."""
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        """Answer False: verl then hands weights over through shared memory."""
        return False

    def cudart(self) -> Any:
        """See ``PlatformBase``."""
        return None
