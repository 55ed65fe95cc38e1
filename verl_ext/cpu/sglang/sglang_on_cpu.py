"""SGLang without an accelerator: what it assumes of one, put right as its modules are imported.

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
"""Engine arguments that a CPU asks for, whatever was given: verl sets some of these to what a GPU
asks for."""
CACHE = 65536
"""Tokens of the cache of an engine, unless given: SGLang's default would take most of the machine's
memory."""


@when_imported("torch")
def declare_operators(torch: Any) -> None:
    """PyPI's torchvision is built for CUDA, its operators do not load; torchvision asks for their
    schemas."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.torchvision_schemas = library  # a library's schemas go when it goes


@when_imported("sglang.srt.server_args")
def choose_engine(server_args: Any) -> None:
    """Every engine is one for the CPU."""
    stock = server_args.ServerArgs.__post_init__

    def __post_init__(self: Any) -> None:
        vars(self).update(ENGINE)
        self.max_total_tokens = self.max_total_tokens or CACHE
        stock(self)

    server_args.ServerArgs.__post_init__ = __post_init__


class _Unpinned:
    """``torch``, whose tensors are not pinned. For one module: others hand it on where the real one
    is due."""

    def __init__(self, torch: ModuleType):
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def tensor(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        return self._torch.tensor(*args, **kwargs)


@when_imported("sglang.srt.layers.logits_processor")
def unpin(logits_processor: Any) -> None:
    """Log-probs of a prompt are read with pinned memory, which asks for a GPU."""
    logits_processor.torch = _Unpinned(logits_processor.torch)


@when_imported("sglang.srt.utils.common")
def send_values(common: Any) -> None:
    """Weights reach the server as they are, not as handles of a GPU's memory.

    Shared memory in the place of those would need torch's manager process, whose answer is waited
    for one second only.
    """
    common.ForkingPickler = pickle.Pickler


@when_imported("sglang.srt.utils.patch_torch")
def share_plainly(patch_torch: Any) -> None:
    """SGLang's patch of what shares tensors takes every tensor for one on a GPU."""
    patch_torch.monkey_patch_torch_reductions = lambda: None
