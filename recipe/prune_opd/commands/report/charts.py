"""Curves over training that a page shows, and which values of a run they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recipe.prune_opd.commands.report.runs import Run

Values = Callable[[Run], Mapping[int, float]]


@dataclass(frozen=True)
class Chart:
    """Curves over training, one colour per run; several lines of a run differ in their dashes."""

    title: str
    lines: Mapping[str, Values]
    """Name -> step -> value."""
    about: str = ""
    marked: bool = False
    """Points are few: each is marked."""


def of(metric: str, *record: str) -> Values:
    """Take a metric of verl's logger by step, and where there is none the same of the records."""
    return lambda run: (run.record(*record) if record else {}) | run.metric(metric)


def recorded(*record: str) -> Values:
    """Take a value of the records by step."""
    return lambda run: run.record(*record)


def accuracy_on(benchmark: str) -> Values:
    """Take Avg@N on a benchmark by step."""
    return lambda run: run.accuracies().get(benchmark, {})


def so_far(values: Values, scale: float) -> Values:
    """Add values up, step by step, until the first step without one."""

    def summed(run: Run) -> dict[int, float]:
        each, total, course = values(run), 0.0, {}
        for step in range(1, run.last + 1):
            if step not in each:
                break
            total += each[step] / scale
            course[step] = total
        return course

    return summed


def entropy_gap(run: Run) -> dict[int, float]:
    """Subtract the student's entropy from the teacher's by step, in nats per token.

    Each is of a model's own candidates. Buckets in which one is no number are left out.
    """
    found = {}
    for step, record in run.recorded.items():
        where = record["positions"]
        pairs = zip(
            where["tokens"], where["teacher_entropy"], where["student_entropy"], strict=True
        )
        gaps = [
            (count, teacher - student)
            for count, teacher, student in pairs
            if None not in (teacher, student)
        ]
        if gaps:
            found[step] = sum(count * gap for count, gap in gaps) / sum(count for count, _ in gaps)
    return found


CHARTS = (
    Chart(
        "Response limit, tokens",
        {"": of("prune_opd/current_max_response_length", "limit")},
        "What the longest response of the step could have.",
    ),
    Chart(
        "Effective length, tokens",
        {
            "mean": of("prune_opd/effective_response_length_mean", "effective_length", "mean"),
            "90 % quantile": recorded("effective_length", "q90"),
            "10 % quantile": recorded("effective_length", "q10"),
        },
        "Tokens of a response before its reliability is used up.",
    ),
    Chart("Response length, tokens", {"mean": of("response_length/mean", "length", "mean")}),
    Chart(
        "Overlap of the top k",
        {"": of("prune_opd/overlap_ratio")},
        "Share of candidates that both models have.",
    ),
    Chart("Drift events per token", {"": of("prune_opd/event_rate")}),
    Chart("Reliability weight", {"": of("prune_opd/reliability_weight")}, "Mean of R over tokens."),
    Chart(
        "How responses end, share",
        {
            "by the limit": of("prune_opd/limit_hit_ratio", "share", "limit"),
            "by themselves": of("prune_opd/ended_ratio", "share", "ended"),
            "by the gate": of("prune_opd/gate/stopped_ratio"),
        },
    ),
    Chart(
        "Tokens of a step",
        {
            "generated": Run.generated,
            "scored": recorded("tokens", "scored"),
            "reliable": of("prune_opd/kept_tokens", "tokens", "reliable"),
            "trained on": recorded("tokens", "trained"),
        },
        "Generated; with a teacher's score; with R > 0; with a weight above 0 in the loss.",
    ),
    Chart(
        "Tokens saved so far, at most, millions",
        {"": so_far(recorded("tokens", "saved"), 1e6)},
        "What the responses that did not end by themselves lack to the largest limit.",
    ),
    Chart(
        "Seconds of a step",
        {
            "step": of("timing_s/step"),
            "rollout": of("timing_s/gen"),
            "update": of("timing_s/update_actor"),
            "teacher": of("timing_s/ref"),
        },
    ),
    Chart("Gradient norm", {"": of("actor/grad_norm")}, "Before clipping."),
    Chart("Student's entropy, nats per token", {"": of("actor/entropy")}),
    Chart(
        "Entropy gap, nats per token",
        {"": entropy_gap},
        "Teacher's minus student's, within the top k of each.",
    ),
    Chart("Reward before weighting, nats per token", {"": of("prune_opd/reward_mean")}),
)
