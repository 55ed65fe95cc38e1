"""Work on a few positions at a time, whose tensors stay in a CPU's cache.

A chain of operations on (B, T, K) tensors of a real batch reads and writes 50 MB with each of them;
on pieces of them only the first reads memory and the last writes it.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CACHE_BYTES, DEVICE_BYTES = 1 << 19, 1 << 26
"""Most bytes of a piece of the widest tensor: of one in a CPU's memory, and on other devices."""


def pieces(lead: torch.Size, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors by position.

    Args:
        lead: the shape of positions that all tensors begin with, (B, T).
        *tensors: (*lead, ...) each.

    Yields:
        (N, ...) each, N positions at a time. Without positions there is one empty piece.
    """
    flat = [tensor.reshape(math.prod(lead), *tensor.shape[len(lead) :]) for tensor in tensors]
    widest = max(tensor[:1].nbytes for tensor in flat)
    most = CACHE_BYTES if flat[0].device.type == "cpu" else DEVICE_BYTES
    split = (tensor.split(max(1, most // max(1, widest))) for tensor in flat)
    yield from zip(*split, strict=True)


def in_pieces(function: Callable[..., Tensor], lead: torch.Size, *tensors: Tensor) -> Tensor:
    """Apply a function that treats every position by itself.

    Args:
        function: takes (N, ...) tensors and returns one.
        lead: see ``pieces``.
        *tensors: see ``pieces``.

    Returns:
        (*lead, ...).
    """
    done = torch.cat([function(*piece) for piece in pieces(lead, *tensors)])
    return done.reshape(lead + done.shape[1:])
