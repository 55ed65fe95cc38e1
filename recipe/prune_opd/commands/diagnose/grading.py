"""Grades of responses by the reward function that a run on this data would have."""

from collections.abc import Callable, Sequence
from typing import Any

from recipe.prune_opd.checks.files import reason_of
from recipe.prune_opd.checks.scoring import PREPARED, verl_scores
from recipe.prune_opd.commands.diagnose.arguments import Arguments
from recipe.prune_opd.commands.diagnose.questions import Question

Grade = Callable[[Question, str], bool]
"""Tells whether a response to a question is right."""
RIGHT_ABOVE = 0.5
"""Score above which a response is right, where the reward function gives no ``acc``."""


def grade_of(args: Arguments, questions: Sequence[Question]) -> tuple[Grade | None, str]:
    """Find who grades responses.

    Args:
        args: ``reward_function`` and ``reward_name``; without them this package's function grades
            the rows of ``prepare``, and verl's those that it knows.
        questions: of the data.

    Returns:
        The function, and "". None and the reason where responses cannot be graded.

    Raises:
        ValueError: the user's function cannot be loaded; names the option.
    """
    if not any(question.truth is not None for question in questions):
        return None, "the data has no reward_model.ground_truth"
    if args.reward_function:
        return _graded_by(_loaded(args.reward_function, args.reward_name)), ""
    sources = sorted({str(question.source) for question in questions})
    if all(source in PREPARED for source in sources):
        from recipe.prune_opd.grading import compute_score

        return _graded_by(compute_score), ""
    unknown = next((source for source in sources if not verl_scores(source)), None)
    if unknown is not None:
        return None, (
            f"no reward function knows the data_source {unknown!r}: give --reward-function, the"
            " run's reward.custom_reward_function.path"
        )
    from verl.utils.reward_score import default_compute_score

    return _graded_by(default_compute_score), ""


def _loaded(path: str, name: str) -> Callable[..., Any]:
    from verl.utils.import_utils import load_extern_object

    try:
        return load_extern_object(path, name)
    except Exception as error:  # the user's code
        reason = reason_of(error.__cause__ or error)
        raise ValueError(
            f"--reward-function: {name!r} cannot be loaded from {path} ({reason})"
        ) from error


def _graded_by(function: Callable[..., Any]) -> Grade:
    """Grade by a function of verl's interface, which gives a number or an object with one."""

    def grade(question: Question, text: str) -> bool:
        found = function(
            data_source=question.source,
            solution_str=text,
            ground_truth=question.truth,
            extra_info=question.extra,
        )
        value: Any = found.get("acc", found.get("score")) if isinstance(found, dict) else found
        return float(value) > RIGHT_ABOVE

    return grade
