"""One page about one or several runs: their numbers, curves, positions, time, and samples token by
token.

Everything that a run has not logged is left out and named. See ``runs`` for what is read, ``html``
for how it is shown.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray
from tqdm import tqdm

from recipe.prune_opd.commands import html
from recipe.prune_opd.commands.report.runs import AXES, Run
from recipe.prune_opd.commands.report.summary import COLUMNS, cells, notes, summary
from recipe.prune_opd.commands.report.tokens import token_views

MOST_RUNS = len(html.SERIES)
POINTS = 400
"""Most points of a curve and columns of a heat map: more would not be seen, but would have to be
loaded."""
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")

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


# ------------------------------------------------------------------------------------ what is shown


def of(metric: str, *record: str) -> Values:
    """Step -> a metric of verl's logger, and where that is not there the same out of the
    records."""
    return lambda run: (run.record(*record) if record else {}) | run.metric(metric)


def recorded(*record: str) -> Values:
    """Step -> a value of the records."""
    return lambda run: run.record(*record)


def accuracy_on(benchmark: str) -> Values:
    """Step -> Avg@N on a benchmark."""
    return lambda run: run.accuracies().get(benchmark, {})


def so_far(values: Values, scale: float) -> Values:
    """Step -> sum of the values up to it, up to the first step without one."""

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
    """Step -> teacher's minus student's entropy per token, each within its own candidates, where
    both are numbers."""
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

TIMES = {
    "rollout": ("gen",),
    "student's pass": ("old_log_prob",),
    "teacher": ("ref",),
    "advantage": ("adv",),
    "update": ("update_actor",),
    "weights to the rollout": ("update_weights",),
    "validation, checkpoint": ("testing", "save_checkpoint"),
}
"""Part of a step -> verl's ``timing_s``."""

BY_POSITION = {
    "overlap": "Overlap of the top k",
    "weight": "Reliability weight",
    "events": "Drift events per token",
}


# --------------------------------------------------------------------------------------------- page


def report(runs: Sequence[Run], title: str, step: int | None = None) -> str:
    """The page.

    Args:
        runs: at least one.
        title: of the page.
        step: whose samples are shown; None for the first and the last that have some.

    Raises:
        ValueError: more runs than colours, no samples of that step, or a file of samples is
            damaged.
    """
    if len(runs) > MOST_RUNS:
        raise ValueError(
            f"RUN: got {len(runs)} runs, allowed: at most {MOST_RUNS}, which can still be told"
            " apart"
        )
    views = token_views(runs, step)  # before the drawing, which takes long
    accuracy = {name for run in runs for name in run.accuracies()}
    charts = [
        Chart(f"Accuracy, {name}", {"": accuracy_on(name)}, marked=True)
        for name in sorted(accuracy)
    ]
    charts += CHARTS
    shown = [
        chart
        for chart in charts
        if any(values(run) for run in runs for values in chart.lines.values())
    ]
    absent = [chart.title for chart in charts if chart not in shown]
    if not accuracy:
        absent.insert(0, "Accuracy")
    found = [summary(run) for run in runs]
    drawn = tqdm(shown, desc="drawing", unit="chart", disable=None)
    return html.render(
        "report.html",
        title=title,
        names=[run.name for run in runs],
        columns=COLUMNS,
        rows=[cells(one) for one in found],
        notes=notes(runs),
        absent=absent,
        axes=list(AXES.values()),
        charts=[(chart, [curves(runs, chart, axis) for axis in AXES]) for chart in drawn],
        positions=position_charts(runs),
        unrecorded=[run.name for run in runs if not run.recorded],
        maps=heat_maps(
            [
                run
                for run in runs
                if any(record["positions"]["tokens"] for record in run.recorded.values())
            ]
        ),
        times=time_split(runs),
        **views,
    )


def curves(runs: Sequence[Run], chart: Chart, axis: str) -> Markup:
    """A chart along an axis of ``AXES``."""
    lines = {
        name: values for name, values in chart.lines.items() if any(values(run) for run in runs)
    }
    with html.style():
        fig = html.new_figure()
        axes = fig.subplots()
        for index, run in enumerate(runs):
            along = run.along(axis)
            for dashes, values in zip(DASHES, lines.values(), strict=False):
                points = sorted(
                    (along[step], value) for step, value in values(run).items() if step in along
                )
                x, y = thinned(points)
                marker = "o" if chart.marked or len(x) == 1 else ""
                axes.plot(
                    x,
                    y,
                    dashes,
                    color=html.series_colour(index),
                    linewidth=1.4,
                    marker=marker,
                    markersize=3.5,
                )
        if len(lines) > 1:
            styles = [
                Line2D([], [], color=html.INK, linestyle=d, linewidth=1)
                for d in DASHES[: len(lines)]
            ]
            fig.legend(
                styles, list(lines), loc="outside upper left", ncols=4, fontsize=8, handlelength=1.8
            )
        axes.set_xlabel(AXES[axis])
        if axes.get_ylim()[1] >= 1e5:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if axis == "step":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()
    return html.figure(fig, f"{chart.title} by {AXES[axis]}")


def thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """x and y of a curve with at most ``POINTS`` points, each the mean of as many neighbours,
    not-numbers left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return [], []
    size = -(-len(finite) // POINTS)
    blocks = [np.mean(finite[i : i + size], axis=0) for i in range(0, len(finite), size)]
    return [float(x) for x, _ in blocks], [float(y) for _, y in blocks]


# ---------------------------------------------------------------------------------------- positions


def position_charts(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    """Means by position over the last tenth of the steps, and over the first."""
    recorded = [(index, run) for index, run in enumerate(runs) if run.recorded]
    if not recorded:
        return []
    found = []
    for name, title in BY_POSITION.items():
        with html.style():
            fig = html.new_figure()
            axes = fig.subplots()
            for index, run in recorded:
                records = [run.recorded[step] for step in sorted(run.recorded)]
                tenth = -(-len(records) // 10)
                for dashes, part in zip(DASHES, (records[-tenth:], records[:tenth]), strict=False):
                    x, y = by_position(part, name)
                    axes.plot(
                        x,
                        y,
                        dashes,
                        color=html.series_colour(index),
                        linewidth=1.4,
                        marker="." * (len(x) == 1),
                    )
            styles = [
                Line2D([], [], color=html.INK, linestyle=dashes, linewidth=1)
                for dashes in DASHES[:2]
            ]
            labels = ["last tenth of the steps", "first tenth"]
            fig.legend(
                styles, labels, loc="outside upper left", ncols=2, fontsize=8, handlelength=1.8
            )
            axes.set_xlabel("position in the response, tokens")
            axes.grid()
        found.append((title, html.figure(fig, f"{title} by position")))
    return found


def by_position(records: Iterable[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Middles of the position buckets, and the mean over all tokens in each that has any, of what
    is a number."""
    total: dict[tuple[int, int], tuple[float, float]] = {}
    for record in records:
        where = record["positions"]
        edges = zip(where["edges"], where["edges"][1:], strict=False)
        for bucket, count, mean in zip(edges, where["tokens"], where[name], strict=True):
            if mean is not None:
                tokens, value = total.get(bucket, (0.0, 0.0))
                total[bucket] = tokens + count, value + count * mean
    return [sum(bucket) / 2 for bucket in sorted(total)], [
        total[b][1] / total[b][0] for b in sorted(total)
    ]


def heat_maps(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Means by position and step, for every run one map each; the colours of a value mean the same
    in all runs.

    Args:
        runs: with records of at least one token each.
    """
    edges = [
        max((record["positions"]["edges"] for record in run.recorded.values()), key=len)
        for run in runs
    ]
    grids = {
        name: [grid(run, name, its) for run, its in zip(runs, edges, strict=True)]
        for name in BY_POSITION
    }
    bounds = {name: _bounds(given) for name, given in grids.items()}
    return [
        (
            run.name,
            [
                (title, heat_map(run, title, grids[name][index], edges[index], bounds[name]))
                for name, title in BY_POSITION.items()
            ],
        )
        for index, run in enumerate(runs)
    ]


def _bounds(grids: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    found = np.concatenate([grid[np.isfinite(grid)] for grid in grids]) if grids else np.zeros(0)
    return (float(found.min()), float(found.max())) if found.size else (0.0, 1.0)


def heat_map(
    run: Run, title: str, values: NDArray[np.float64], edges: list[int], bounds: tuple[float, float]
) -> Markup:
    """One map; see ``grid`` for its values and ``heat_maps`` for what bounds their colours."""
    with html.style():
        fig = html.new_figure()
        axes = fig.subplots()
        image = axes.imshow(
            values,
            extent=(min(run.recorded) - 0.5, max(run.recorded) + 0.5, 0, len(edges) - 1),
            origin="lower",
            aspect="auto",
            interpolation="none",
            vmin=bounds[0],
            vmax=bounds[1],
        )
        fig.colorbar(image)
        ticks = range(0, len(edges), max(1, len(edges) // 7))
        axes.set_yticks(list(ticks), [f"{edges[i]:,}" for i in ticks])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel("position")
    return html.figure(fig, f"{title} of {run.name} by step and position")


def grid(run: Run, name: str, edges: list[int]) -> NDArray[np.float64]:
    """(N buckets, columns), a column per step or per block of steps; NaN where there was no token
    or no number.

    Args:
        run: with records.
        name: a value by position.
        edges: of the buckets. A step recorded with others, under another ``budget.max``, is left
            out.
    """
    first, last = min(run.recorded), max(run.recorded)
    size = -(-(last - first + 1) // POINTS)
    total = np.zeros((len(edges) - 1, -(-(last - first + 1) // size)))
    tokens = np.zeros_like(total)
    for step, record in run.recorded.items():
        where = record["positions"]
        if where["edges"] != edges[: len(where["edges"])]:
            continue
        for bucket, (count, mean) in enumerate(zip(where["tokens"], where[name], strict=True)):
            if mean is not None:  # no token, or a run that has diverged
                tokens[bucket, (step - first) // size] += count
                total[bucket, (step - first) // size] += count * mean
    return np.divide(total, tokens, out=np.full_like(total, np.nan), where=tokens > 0)


# --------------------------------------------------------------------------------------------- time


def time_split(runs: Sequence[Run]) -> Markup | None:
    """Mean seconds of a step by what they went into, a bar per run."""
    splits = [seconds(run) for run in runs]
    if not any(splits):
        return None
    with html.style():
        fig = html.new_figure(height=1.7 + 0.3 * len(runs))
        axes = fig.subplots()
        left = [0.0] * len(runs)
        for index, part in enumerate([*TIMES, "other"]):
            widths = [split.get(part, 0.0) for split in splits]
            axes.barh(
                range(len(runs)), widths, 0.6, left, color=html.series_colour(index), label=part
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        _name_bars(axes, [run.name for run in runs])
        axes.set_xlabel("seconds of a step, mean")
        fig.legend(loc="outside upper left", ncols=2, fontsize=8, handlelength=1)
    return html.figure(fig, "Mean seconds of a step by what they went into")


def _name_bars(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(
        range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    )
    axes.invert_yaxis()


def seconds(run: Run) -> dict[str, float]:
    """Part of a step -> mean seconds, what no part explains as ``other``. Empty without times."""
    whole = run.metric("timing_s/step")
    if not whole:
        return {}
    parts = {
        part: (
            sum(
                sum(run.metric(f"timing_s/{name}").get(step, 0.0) for name in names)
                for step in whole
            )
            / len(whole)
        )
        for part, names in TIMES.items()
    }
    return parts | {"other": max(0.0, sum(whole.values()) / len(whole) - sum(parts.values()))}
