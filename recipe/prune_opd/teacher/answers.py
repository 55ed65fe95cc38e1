"""Answers of teacher servers about responses, as tensors.

Shapes: B responses, R tokens of a response, K candidates.
"""

import torch
from torch import Tensor

SERVED_IDS, SERVED_LOG_PROBS = "teacher_ids", "teacher_logprobs"
"""Fields of a response, jagged (B, R, K), or K + 1 with the sampled token first. These are verl's
names: its padding rows are resized under no others. They have more rows than their response has
tokens."""


def served_rows(field: Tensor, responses: Tensor) -> Tensor:
    """The rows of the response tokens alone.

    Args:
        field: jagged (B, R or more, K), the last R rows being the response's.
        responses: jagged (B, R).

    Returns:
        jagged (B, R, K).
    """
    # torch declares offsets for nested tensors only.
    offsets = responses.offsets()  # type: ignore[attr-defined]
    lengths = offsets.diff().tolist()
    rows = [
        block[len(block) - length :] for block, length in zip(field.unbind(), lengths, strict=True)
    ]
    return torch.nested.nested_tensor_from_jagged(torch.cat(rows), offsets)


def is_missing(teacher_log_probs: Tensor) -> Tensor:
    """Tokens without the teacher's score, (..., K) -> (...) bool: even its most likely candidate
    has probability 0."""
    return teacher_log_probs[..., 0].isneginf()
