r"""Grades of mathematical answers: a reward function for verl that reads the last ``\boxed{}``.

``reward.custom_reward_function.path=pkg://recipe.prune_opd.grading``; ``+recipe=prune_opd_eval``
sets it.

A response goes through five steps, a module each: ``answers`` finds the answer, ``notation`` writes
it in one kind of LaTeX, ``reading`` makes a value of it (with math-verify's parser), ``equality``
compares it with the ground truth's value, and ``graders`` runs the last three in processes with
limits.
"""

from typing import Any

from recipe.prune_opd.grading.answers import read_answer
from recipe.prune_opd.grading.graders import PROCESSES, SECONDS, compare
from recipe.prune_opd.grading.verdicts import NO_TRUTH, RIGHT, UNREAD

__all__ = ["PROCESSES", "TOKENS", "TRUNCATED", "UNREAD", "compare", "compute_score", "read_answer"]

TOKENS, TRUNCATED = "response_tokens", "truncated"
"""Keys of a validation response's ``extra_info``, from our agent loop: tokens, and whether cut."""

SHOWN = 200
"""Characters of an answer that the result keeps."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    seconds: float = SECONDS,
    **kwargs: Any,
) -> dict[str, Any]:
    """Grade one response, by the interface of ``reward.custom_reward_function``.

    Args:
        data_source: the row's field of that name.
        solution_str: the response; no text makes this raise.
        ground_truth: the row's ``reward_model.ground_truth``.
        extra_info: the row's, with ``TOKENS`` and ``TRUNCATED`` where our agent loop generated it.
        seconds: processor time for the comparison.
        **kwargs: what verl passes besides; not used.

    Returns:
        ``score`` 1.0 or 0.0; ``acc`` the same as bool; ``pred`` the answer's first 200 characters;
        ``unread`` one of ``UNREAD`` or "". Since verl's validation dumps hold nothing else of a
        response, also ``data_source``, ``tokens`` and ``truncated`` (None where not known).

    Raises:
        RuntimeError: math-verify is not installed, or no process could be started.
    """
    truth = "" if ground_truth is None else str(ground_truth)
    answer, verdict = _grade(solution_str, data_source, truth, seconds)
    known = extra_info or {}
    return {
        "score": float(verdict == RIGHT),
        "acc": verdict == RIGHT,
        "pred": answer[:SHOWN],
        "unread": verdict if verdict in UNREAD else "",
        "data_source": data_source,
        "tokens": known.get(TOKENS),
        "truncated": known.get(TRUNCATED),
    }


def _grade(response: str, data_source: str, truth: str, seconds: float) -> tuple[str, str]:
    """Find a response's answer, and judge it: a verdict, or the reason of ``UNREAD`` for none."""
    answer, unread = read_answer(response, data_source)
    if not truth.strip(" $"):
        return answer, NO_TRUTH
    return answer, unread or compare(answer, truth, seconds)
