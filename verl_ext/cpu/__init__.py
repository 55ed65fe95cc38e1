"""Support for verl, Ray and vLLM on a machine without an accelerator, only where PyTorch has none.

This module imports neither verl nor vLLM: it is loaded while they load their plugins.
"""

import torch


def no_accelerator() -> bool:
    """Tell whether this PyTorch is built without an accelerator.

    The build is asked, not the devices: a CPU-only head node of a GPU cluster sees no device
    either, and must stay on verl's own platform.
    """
    built_for = (torch.version.cuda, torch.version.hip, getattr(torch.version, "xpu", None))
    return not any(built_for) and not hasattr(torch, "npu")


def disable_onednn_packing() -> None:
    """Plugin of vLLM that keeps linear layers' weights where an update can find them.

    vLLM's CPU layers drop ``weight`` after packing it for oneDNN, and a later weight sync hangs.
    """
    if not no_accelerator():
        return
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False
