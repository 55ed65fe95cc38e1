"""Samples: a few responses token by token, what student and teacher would have said at each, and
where they parted.

Shapes: T tokens of one response, K candidates. These are the only per-token values that leave the
workers, for ``records.samples`` responses every ``records.every`` steps.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from recipe.prune_opd.method.pruning import Drift
from recipe.prune_opd.method.reward import Scores


def chosen(effective_lengths: list[float], count: int) -> list[int]:
    """Indices of responses from the least reliable to the most, evenly spread; all of them if there
    are not more.

    No chance in it: a random number drawn here would be missing in the training.
    """
    order = sorted(range(len(effective_lengths)), key=effective_lengths.__getitem__)
    if count >= len(order):
        return order
    if count == 1:
        return [order[len(order) // 2]]
    return [order[round(i * (len(order) - 1) / (count - 1))] for i in range(count)]


def rounded(value: float, digits: int) -> float | None:
    """Round to so many digits; None where it is not finite: JSON has no number for it, and a broken
    model is what one wants to look at."""
    return round(value, digits) if math.isfinite(value) else None


def token_data(
    scores: Scores, drift: Drift, topk: int, decode: Callable[[int], str]
) -> dict[str, Any]:
    """Values of one response for the records; ``docs/records.md`` says what each value means.

    Args:
        scores: of the response, B = 1, candidates by descending probability.
        drift: of the same. Where a token does not count the teacher gave no score, and there is no
            overlap.
        topk: candidates to keep.
        decode: the text of a token.
    """
    mask, overlap, events = (values[0] for values in (drift.mask, drift.overlap, drift.events))
    found: dict[str, Any] = {
        "tokens": scores.responses[0].tolist(),
        "overlap": [
            rounded(o, 4) if counts else None
            for o, counts in zip(overlap.tolist(), mask.tolist(), strict=True)
        ],
        "events": torch.where(events)[0].tolist(),
        "weight": [round(w, 6) for w in drift.reliability.weight[0].tolist()],
    }
    ids = set(found["tokens"])
    for name, own in (("student", scores.student), ("teacher", scores.teacher)):
        found[f"{name}_ids"] = own.ids[0, :, :topk].tolist()
        # Not every server reports all candidates: -inf stands for one that is missing, and JSON has
        # no number for it.
        kept = own.log_probs[0, :, :topk].clamp(min=-99.0)
        found[f"{name}_log_probs"] = [[rounded(value, 3) for value in row] for row in kept.tolist()]
        ids.update(value for row in found[f"{name}_ids"] for value in row)
    return found | {"pieces": {str(value): decode(value) for value in sorted(ids) if value >= 0}}
