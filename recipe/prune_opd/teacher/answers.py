"""Answers of teacher servers about responses, as tensors.

Shapes: B responses, R tokens of a response, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verl_ext.rollout.rows import TopKRows

SERVED_IDS, SERVED_LOG_PROBS = "teacher_ids", "teacher_logprobs"
"""Fields of a response, jagged (B, R, columns): ids and what the teacher says of each. In this
order, the first and the last only where somebody needs them: the sampled token, the teacher's K
candidates, the student's K. These are verl's names: its padding rows are resized under no others.
They have more rows than their response has tokens."""


@dataclass(frozen=True)
class Known:
    """What was found out about a response while it grew, rows of all of its tokens."""

    student: TopKRows | None = None
    """(R, K), the rollout's; of tokens that the student did not generate none. None: it was not
    asked for them."""
    teacher: TopKRows | None = None
    """(R, K); None: not all are known."""


NOTHING = Known()


def served(
    rows: TopKRows,
    tokens: Sequence[int],
    sampled: NDArray[np.float32] | None,
    student_ids: NDArray[np.int32] | None = None,
) -> dict[str, Tensor]:
    """A response's answers as the two fields.

    Args:
        rows: (R, K).
        tokens: R ids of the response.
        sampled: (R,) log-probs of the tokens themselves; None where nobody needs them.
        student_ids: (R, K), which ``rows.chosen`` are of; None where nobody needs them.
    """
    # Copies: Ray's arrays are read-only.
    ids, log_probs = [torch.tensor(rows.ids)], [torch.tensor(rows.log_probs)]
    if sampled is not None:
        ids.insert(0, torch.tensor(tokens, dtype=torch.int32).unsqueeze(-1))
        log_probs.insert(0, torch.tensor(sampled).unsqueeze(-1))
    if student_ids is not None and rows.chosen is not None:
        ids.append(torch.tensor(student_ids))
        log_probs.append(torch.tensor(rows.chosen.log_probs))
    return {SERVED_IDS: torch.cat(ids, -1), SERVED_LOG_PROBS: torch.cat(log_probs, -1)}


def served_rows(field: Tensor, responses: Tensor, columns: slice | int = slice(None)) -> Tensor:
    """The rows of the response tokens alone, or some columns of them.

    Args:
        field: jagged (B, R or more, columns), the last R rows being the response's.
        responses: jagged (B, R).
        columns: which to take; a number takes one out.

    Returns:
        jagged (B, R, columns) or (B, R).
    """
    # torch declares offsets for nested tensors only.
    offsets = responses.offsets()  # type: ignore[attr-defined]
    lengths = offsets.diff().tolist()
    rows = [
        block[len(block) - length :] for block, length in zip(field.unbind(), lengths, strict=True)
    ]
    found = torch.cat(rows)[:, columns].contiguous()  # as TransferQueue wants it
    return torch.nested.nested_tensor_from_jagged(found, offsets)


def is_missing(teacher_log_probs: Tensor) -> Tensor:
    """Tokens without the teacher's score, (..., K) -> (...) bool: even its most likely candidate
    has probability 0."""
    return teacher_log_probs[..., 0].isneginf()
