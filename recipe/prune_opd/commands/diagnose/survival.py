"""Course of the second verdict: sides of the responses, evidence, and what the metric separates.

Shapes: B responses, T positions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from recipe.prune_opd.commands.diagnose import advice
from recipe.prune_opd.commands.diagnose.arguments import Arguments
from recipe.prune_opd.commands.diagnose.gradients import cosines
from recipe.prune_opd.commands.diagnose.grading import Grade
from recipe.prune_opd.commands.diagnose.intervals import over_prompts
from recipe.prune_opd.commands.diagnose.passes import Passes, greedy_advice
from recipe.prune_opd.commands.diagnose.questions import Question, Solution
from recipe.prune_opd.commands.diagnose.recovery import cuts_of, gap_for, recover
from recipe.prune_opd.commands.diagnose.scores import PairScores
from recipe.prune_opd.commands.diagnose.signal import (
    AGREEMENT,
    NOISE,
    RESAMPLINGS,
    STEADINESS,
    Evidence,
    View,
    judge_signal,
    of_gradients,
    of_recovery,
    of_view,
)
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.rules import METRIC
from recipe.prune_opd.commands.pair.sampling import Rollout
from recipe.prune_opd.commands.pair.sides import NUCLEUS, Sides, rejection_rates, separation
from recipe.prune_opd.method.pruning import Drift


@dataclass(frozen=True)
class Case:
    """Everything that the evidence is made of."""

    args: Arguments
    pair: Pair
    other: Pair | None
    """Student with the other teacher."""
    passes: Passes
    rollouts: Sequence[Rollout]
    questions: Sequence[Question]
    """(B,), of each response."""
    solutions: Sequence[Solution]
    grade: Grade | None
    ungraded: str
    """Reason why there is no ``grade``."""
    scores: PairScores


def find_signal(case: Case, drift: Drift) -> tuple[dict[str, Any], list[str]]:
    """Measure and judge what the teacher's signal is worth after drift.

    Args:
        case: responses, models, and what is known of the answers.
        drift: by the planned rules.

    Returns:
        Content for ``--json``; notes.

    Raises:
        ValueError: a model cannot be loaded, or log-probs are not finite.
    """
    args, scores = case.args, case.scores
    rejected, sides = advice.first_rejected(scores, args.topk, args.top_p)
    view = _second_view(case)
    pieces = (
        _recovery(case, sides),
        _gradients(case, sides),
        of_view(view, sides, scores.groups, args.seed),
        "no --other-teacher" if case.other is None else "",
    )
    found = [one for one in pieces if isinstance(one, Evidence)]
    missing = [one for one in pieces if isinstance(one, str) and one]
    rejecting = int(sides.first.sum())
    separated, notes = _separation(case, drift, rejected, sides)
    splits = {advice.FIRST: sides, advice.SPENT: advice.spent(drift)}
    answer = {
        **asdict(judge_signal(found, missing, rejecting)),
        "rejecting": rejecting,
        "evidence": [one.answer() for one in found],
        "missing": missing,
        "advice_table": advice.table(scores, drift, rejected, view, splits),
        "separation": separated,
    }
    return answer, notes


def _second_view(case: Case) -> View:
    """Ask the other teacher, or the same one with noise on its weights."""
    asked, noise = (case.pair, NOISE) if case.other is None else (case.other, 0.0)
    second = greedy_advice(asked, case.passes, case.rollouts, noise)
    return View(
        STEADINESS if case.other is None else AGREEMENT,
        case.scores.scores.teacher.ids[..., 0] == second,
        advice.push(case.scores, case.args.topk),
    )


def _recovery(case: Case, sides: Sides) -> Evidence | str:
    """Evidence of recovery, or why there is none."""
    args = case.args
    if not args.recoveries:
        return "--recoveries 0"
    if case.grade is None:
        return f"no right answers: {case.ungraded}"
    gap = args.recovery_gap or gap_for(args.max_response_length)
    known = [question.truth is not None for question in case.questions]
    cuts = [
        cut
        for cut in cuts_of(sides, case.scores.groups, gap, len(known))
        if known[cut.response] and cut.after < args.max_response_length
    ][: args.recoveries]
    if not cuts:
        return f"no response goes on for {gap} tokens after one that the teacher would not accept"
    found = recover(
        case.pair,
        case.passes,
        case.rollouts,
        case.questions,
        cuts,
        args.max_response_length,
        case.grade,
    )
    return of_recovery(found, case.scores.groups, args.seed)


def _gradients(case: Case, sides: Sides) -> Evidence | str:
    """Evidence of gradients, or why there is none."""
    if not case.solutions:
        return "no --solutions"
    found = cosines(
        case.pair,
        case.passes,
        case.rollouts,
        case.scores,
        sides,
        case.solutions,
        case.args.gradients,
    )
    return of_gradients(found, case.scores.groups, case.args.seed)


def _separation(
    case: Case, drift: Drift, rejected: Tensor, sides: Sides
) -> tuple[dict[str, Any], list[str]]:
    """Rates of both metrics before and after, and a note where top-k overlap separates nothing."""
    args, groups = case.args, case.scores.groups
    own, nucleus = separation(drift.events, sides), rejection_rates(rejected, sides)
    counts = [
        ((drift.events & side).sum(-1).double(), side.sum(-1).double())
        for side in (sides.before, sides.after)
    ]

    def more(rows: Tensor) -> float:
        before, after = (
            (events[rows].sum() / tokens[rows].sum()).item() for events, tokens in counts
        )
        return after - before

    low, high = over_prompts(more, groups, RESAMPLINGS, args.seed)
    same = own.none or (own.known and own.before > 0 and low <= 0 <= high)
    answer = {
        "metric": args.metric,
        "before": own.before,
        "after": own.after,
        "difference_low": low,
        "difference_high": high,
        NUCLEUS: {"before": nucleus.before, "after": nucleus.after},
        "separates_nothing": same,
    }
    if not same or args.metric != METRIC:
        return answer, []
    said = (
        f"top-{args.topk} overlap separates nothing here: {own} the first token that the teacher"
        " would not accept"
    )
    if nucleus.none:
        return answer, [f"{said}; nor does {NUCLEUS}: {nucleus}"]
    return answer, [
        f"{said}; {NUCLEUS} does: {nucleus}. Set prune_opd.drift.metric={NUCLEUS}, and give"
        f" --metric {NUCLEUS} for settings that go with it"
    ]
