"""Answers of teacher servers about responses, as tensors.

Shapes: B responses, R tokens of a response, K candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verl_ext.rollout.rows import TopKRows

SERVED_IDS, SERVED_LOG_PROBS = "teacher_ids", "teacher_logprobs"
"""Fields of a response, jagged (B, R, K), or K + 1 with the sampled token first. These are verl's
names: its padding rows are resized under no others. They have more rows than their response has
tokens."""


def served(
    rows: TopKRows, tokens: Sequence[int], sampled: NDArray[np.float32] | None
) -> dict[str, Tensor]:
    """A response's answers as the two fields.

    Args:
        rows: (R, K).
        tokens: R ids of the response.
        sampled: (R,) log-probs of the tokens themselves; None where nobody needs them.
    """
    # Copies: Ray's arrays are read-only.
    ids, log_probs = torch.tensor(rows.ids), torch.tensor(rows.log_probs)
    if sampled is not None:
        own = torch.tensor(tokens, dtype=torch.int32).unsqueeze(-1)
        ids = torch.cat([own, ids], -1)
        log_probs = torch.cat([torch.tensor(sampled).unsqueeze(-1), log_probs], -1)
    return {SERVED_IDS: ids, SERVED_LOG_PROBS: log_probs}


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
