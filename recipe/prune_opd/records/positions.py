"""Where in their responses student and teacher part: sums per response over buckets of positions.

Shapes: B responses, T positions, K candidates, F = len(BY_POSITION) values, N buckets. A response's
sums are one row of F * N numbers, so that nothing of shape (B, T) has to reach the driver.
"""

import torch
from torch import Tensor

from recipe.prune_opd.method.pruning import Pruned
from recipe.prune_opd.method.reward import Scores

FINEST, DOUBLINGS = 4, 7
"""Buckets between one doubling of the position and the next, and doublings there are."""
BUCKETS = FINEST * (1 + DOUBLINGS)
"""Most buckets there are."""

BY_POSITION = (
    "tokens",
    "overlap",
    "events",
    "weight",
    "trained",
    "reward",
    "student_entropy",
    "teacher_entropy",
)
"""Per-token values that are summed: 1, O, D, R, 1[L > 0], the reward of all candidates before
weighting, and of each model the part of its entropy in its own K candidates, in nats."""


def bucket_edges(longest: int) -> list[int]:
    """Starts of the buckets in ascending order, and the end of the last: N + 1 positions.

    The first ``2 * FINEST`` buckets are equally wide, then the width doubles after every
    ``FINEST``. With 32 equal ones drift that begins at token 200 of 12288 would lie in the first of
    them; like this a bucket is at most a quarter of the position at which it begins, but for the
    first ``FINEST``. The edges depend on the largest limit alone, so they keep their meaning while
    the limit moves.

    Args:
        longest: the largest limit, in tokens, >= 1.
    """
    width = -(-longest // (FINEST * 2**DOUBLINGS))
    edges = [width * i for i in range(FINEST)]
    for doubling in range(DOUBLINGS):
        edges += [width * 2**doubling * (FINEST + i) for i in range(FINEST)]
    return [edge for edge in edges if edge < longest] + [longest]


def position_sums(pruned: Pruned, scores: Scores, edges: list[int]) -> Tensor:
    """One row of sums per response: all buckets of the first of ``BY_POSITION``, then of the next.

    Args:
        pruned: the batch. A padding row counts like any other; it is the caller who knows it.
        scores: it was made of.
        edges: of ``bucket_edges``; the last bucket also takes what lies beyond.

    Returns:
        (B, F * N) float32.
    """
    values = {
        "tokens": torch.ones_like(pruned.overlap),
        "overlap": pruned.overlap,
        "events": pruned.events,
        "weight": pruned.reliability.weight,
        "trained": pruned.reliability.loss_weight > 0,
        "reward": pruned.reward.reward.sum(-1),
        "student_entropy": torch.special.entr(scores.student.log_probs.exp()).sum(-1),
        "teacher_entropy": torch.special.entr(scores.teacher.log_probs.exp()).sum(-1),
    }
    mask = pruned.mask
    rows = torch.stack([torch.where(mask, values[name].float(), 0.0) for name in BY_POSITION], 1)
    inner = torch.tensor(edges[1:-1], dtype=torch.long)
    buckets = torch.bucketize(torch.arange(mask.shape[1]), inner, right=True)
    return torch.zeros(*rows.shape[:2], len(edges) - 1).index_add(-1, buckets, rows).flatten(1)


def by_position(sums: Tensor, edges: list[int]) -> dict[str, list[float]]:
    """Sums over responses: name -> N numbers.

    Args:
        sums: (B, F * N), real responses only.
        edges: with which they were made.
    """
    total = sums.double().sum(0).view(len(BY_POSITION), len(edges) - 1)
    return {name: row.tolist() for name, row in zip(BY_POSITION, total, strict=True)}
