"""Jagged fields of responses, as TransferQueue keeps them.

Shapes: B responses, T positions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def jagged_values(values: Tensor, offsets: Tensor) -> Tensor:
    """(tokens of all responses, ...) -> jagged (B, response, ...), contiguous as TransferQueue
    wants it."""
    return torch.nested.nested_tensor_from_jagged(values.contiguous(), offsets)


def jagged(padded: Tensor, offsets: Tensor) -> Tensor:
    """(B, T, ...) -> jagged (B, response, ...)."""
    rows = [row[:length] for row, length in zip(padded, offsets.diff().tolist(), strict=True)]
    return jagged_values(torch.cat(rows), offsets)


def refuse_nan(padded: Mapping[str, Tensor]) -> None:
    """Stop where a model's scores are no numbers.

    Args:
        padded: (B, T, ...) fields by name.

    Raises:
        ValueError: names the field.
    """
    for name, value in padded.items():
        if value.is_floating_point() and value.isnan().any():
            raise ValueError(
                f"{name}: NaN at {int(value.isnan().any(-1).sum())} positions; its model is broken"
                " or overflows in its dtype"
                " (actor_rollout_ref.{actor,ref}: fsdp_config.mixed_precision, megatron.dtype)"
            )
