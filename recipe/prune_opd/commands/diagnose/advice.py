"""Advice of the teacher before and after drift: how sure it is, and what a second teacher says.

Shapes: B responses, T positions.
"""

from typing import Any

from torch import Tensor

from recipe.prune_opd.commands.diagnose.scores import PairScores, mean
from recipe.prune_opd.commands.diagnose.signal import View
from recipe.prune_opd.commands.pair.sides import Sides, rejections, sides_of
from recipe.prune_opd.method.pruning import Drift

FIRST, SPENT = "first rejected token", "end of reliability"
"""Names of the splits."""


def push(scores: PairScores, k: int) -> Tensor:
    """Probability that the teacher would move away from the student's candidates, (B, T) float32.

    Σ max(p - q, 0) over the student's top k: how strongly OPD acts on a token. Where both models
    are certain of the same token, as on much of any text, it is 0, and advice matters not.

    Args:
        scores: of the pair.
        k: candidates.
    """
    own = scores.at(k)
    assert own.teacher_on_student is not None
    return (own.student.log_probs.exp() - own.teacher_on_student.exp()).clamp(min=0).sum(-1)


def first_rejected(scores: PairScores, topk: int, top_p: float) -> tuple[Tensor, Sides]:
    """Find tokens outside the teacher's nucleus, and part responses at the first of each.

    Args:
        scores: of the pair.
        topk: candidates of the nucleus, as the run has them.
        top_p: probability of the nucleus.

    Returns:
        (B, T) bool; sides.
    """
    rejected = rejections(scores.at(topk), scores.mask, top_p)
    return rejected, sides_of(rejected, scores.mask)


def spent(drift: Drift) -> Sides:
    """Part responses where their reliability is used up, which is where the method ends them."""
    return sides_of(drift.mask & (drift.reliability.weight == 0), drift.mask)


def table(
    scores: PairScores,
    drift: Drift,
    rejected: Tensor,
    view: View,
    splits: dict[str, Sides],
) -> dict[str, Any]:
    """Means of both sides of every split.

    Args:
        scores: of the pair.
        drift: by the planned rules.
        rejected: (B, T) bool, tokens outside the teacher's nucleus.
        view: second view of the teacher's advice.
        splits: name -> sides.
    """
    student, teacher = (top.ids[..., 0] for top in (scores.scores.student, scores.scores.teacher))
    values = {
        **scores.spread,
        "push": view.weight,
        "event_rate": drift.events,
        "student_agreement": student == teacher,
        "second_view": view.same,
    }

    def side(mask: Tensor, counted: Tensor) -> dict[str, Any]:
        means: dict[str, Any] = {name: mean(value, mask) for name, value in values.items()}
        return {"tokens": int(mask.sum()), "accepted": 1 - mean(rejected, counted), **means}

    return {
        name: {"before": side(sides.before, sides.until), "after": side(sides.after, sides.after)}
        for name, sides in splits.items()
    }
