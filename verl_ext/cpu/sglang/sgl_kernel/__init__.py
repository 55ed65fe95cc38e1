"""Stands for SGLang's kernels for accelerators, which SGLang imports on a CPU too and does not call
there."""

from collections.abc import Callable
from typing import Any


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} needs an accelerator")

    return kernel
