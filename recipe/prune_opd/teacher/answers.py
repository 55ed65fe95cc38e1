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
order, each only where somebody needs it: the sampled token, the teacher's K candidates, the
student's K, and these once more with what the student itself says of them. These are verl's names:
its padding rows are resized under no others. They have more rows than their response has
tokens."""


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
    tokens: Sequence[int],
    teacher: TopKRows | None,
    sampled: NDArray[np.float32] | None = None,
    student_ids: NDArray[np.int32] | None = None,
    student: TopKRows | None = None,
) -> dict[str, Tensor]:
    """A response's answers as the two fields.

    Args:
        tokens: R ids of the response.
        teacher: (R, K); None where no server scores finished responses.
        sampled: (R,) the teacher's log-probs of the tokens themselves; None where nobody needs
            them.
        student_ids: (R, K), which ``teacher.chosen`` are of; None where nobody needs them.
        student: (R, K) of the rollout; None where the trainer tells them.
    """
    blocks = []
    if sampled is not None:
        blocks.append((np.array(tokens, dtype=np.int32)[:, None], sampled[:, None]))
    if teacher is not None:
        blocks.append((teacher.ids, teacher.log_probs))
        if student_ids is not None and teacher.chosen is not None:
            blocks.append((student_ids, teacher.chosen.log_probs))
    if student is not None:
        blocks.append((student.ids, student.log_probs))
    ids, log_probs = (
        torch.from_numpy(np.concatenate(one, -1)) for one in zip(*blocks, strict=True)
    )
    return {SERVED_IDS: ids, SERVED_LOG_PROBS: log_probs}


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
