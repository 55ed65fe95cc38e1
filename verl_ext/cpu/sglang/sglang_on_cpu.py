"""Repairs of what SGLang assumes of an accelerator, made as its modules are imported.

A ``.pth`` file loads this in every process of the environment, because SGLang's own processes
import nothing of ours. Nothing heavy is imported here.
"""

import os
import pickle
from types import ModuleType
from typing import Any

from wrapt import when_imported

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

ENGINE = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_cuda_graph": True,
    "enable_memory_saver": False,
    "skip_server_warmup": True,
    "sleep_on_idle": True,  # idle engines would poll, each a third of a core
}
"""Engine arguments for a CPU, whatever was given: verl sets some of these for a GPU."""
CACHE = 65536
"""Tokens of an engine's cache, unless given: SGLang's default would take most of the memory."""


@when_imported("torch")
def declare_operators(torch: Any) -> None:
    """Declare operators that torchvision asks for: PyPI's are built for CUDA and do not load."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.torchvision_schemas = library  # a library's schemas go when it goes


@when_imported("sglang.srt.server_args")
def choose_engine(server_args: Any) -> None:
    """Make every engine one for the CPU."""
    stock = server_args.ServerArgs.__post_init__

    def __post_init__(self: Any) -> None:
        vars(self).update(ENGINE)
        self.max_total_tokens = self.max_total_tokens or CACHE
        stock(self)

    server_args.ServerArgs.__post_init__ = __post_init__


class _Unpinned:
    """Module ``torch`` without pinned tensors, for a module that does not hand it on."""

    def __init__(self, torch: ModuleType):
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def tensor(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        return self._torch.tensor(*args, **kwargs)


@when_imported("sglang.srt.layers.logits_processor")
def unpin(logits_processor: Any) -> None:
    """Read a prompt's log-probs without pinned memory, which asks for a GPU."""
    logits_processor.torch = _Unpinned(logits_processor.torch)


@when_imported("sglang.srt.utils.common")
def send_values(common: Any) -> None:
    """Send weights to the server as they are, not as handles of a GPU's memory.

    Shared memory in the place of those would need torch's manager process, whose answer is waited
    for one second only.
    """
    common.ForkingPickler = pickle.Pickler


@when_imported("sglang.srt.utils.patch_torch")
def share_plainly(patch_torch: Any) -> None:
    """Undo SGLang's patch of what shares tensors: it takes every tensor for one on a GPU."""
    patch_torch.monkey_patch_torch_reductions = lambda: None
