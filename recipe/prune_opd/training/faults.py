"""What the trainer does about answers of the teacher that came late or not at all, and about a
student that falls apart."""

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


KEPT = 0.8
"""Share of its top-k mass that a student may be left with."""


class TopKMass:
    """Warns once of a student whose probability leaves its own top k: the loss knows no other
    token, and where the teacher finds all of these too likely it lowers them all."""

    def __init__(self) -> None:
        self.most, self.said = 0.0, False

    def look(self, step: int, mass: float) -> None:
        """Look at a step.

        Args:
            step: its number.
            mass: mean probability of the student's top k, ``prune_opd/student_topk_mass``.
        """
        self.most = max(self.most, mass)
        if mass < KEPT * self.most and not self.said:
            self.said = True
            logger.warning(
                f"step {step}: the student's top k has {mass:.2f} of its probability,"
                f" {self.most:.2f} before: it flattens, and accuracy falls with it; a lower"
                " learning rate helps (docs/metrics.md, student_topk_mass)"
            )


def warn_of_gate(step: int, metrics: dict[str, float], error: str) -> None:
    """Warn of answers to the gate that came late or not at all.

    Args:
        step: its number.
        metrics: of ``summarise_gate``.
        error: text of the last of them.
    """
    late, failed, given_up = (
        metrics[f"prune_opd/gate/{n}"] for n in ("late_answers", "failed_answers", "given_up")
    )
    if late + failed:
        logger.warning(
            f"step {step}: the teacher was late {late:.0f} times and failed"
            f" {failed:.0f} times, {given_up:.0f} responses went on without a gate; {error}"
        )


def refuse_missing(
    step: int,
    metrics: dict[str, float],
    error: str,
    allowed: float,
    save: Callable[[], str],
    what: str = "the teacher's score",
) -> None:
    """Warn of scores that servers failed to give; stop where too many are missing.

    Args:
        step: its number.
        metrics: of ``summarise_scores``.
        error: text of the last late or failed question, or empty.
        allowed: share of the tokens, ``teacher.max_missing``.
        save: called before the end; saves what can be saved and says where the run goes on.
        what: is missing, for messages.

    Raises:
        RuntimeError: more than that.
    """
    late, failed, missing = (
        metrics[f"prune_opd/teacher/{n}"]
        for n in ("late_answers", "failed_answers", "missing_ratio")
    )
    error = error or "rows that are not finite"
    if missing > allowed:
        raise RuntimeError(
            f"step {step}: {missing:.1%} of the tokens lack {what},"
            f" allowed: prune_opd.teacher.max_missing={allowed:.1%}; {late:.0f} answers were"
            f" late, {failed:.0f} failed, the last error: {error}; {save()}"
        )
    if late + failed + missing:
        logger.warning(
            f"step {step}: the teacher was late {late:.0f} times and failed"
            f" {failed:.0f} times, {100 * missing:.2f}% of the tokens have no score; {error}"
        )
