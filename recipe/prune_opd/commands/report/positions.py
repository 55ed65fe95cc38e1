"""Values by position in the response, drawn: early and late in training, and over all steps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from recipe.prune_opd.commands import html
from recipe.prune_opd.commands.report.curves import DASHES, POINTS, draw, name_dashes
from recipe.prune_opd.commands.report.runs import Run

BY_POSITION = {
    "overlap": "Overlap of the top k",
    "weight": "Reliability weight",
    "events": "Drift events per token",
}


def position_charts(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    """Draw means by position over the last tenth of the steps, and over the first."""
    recorded = [(index, run) for index, run in enumerate(runs) if run.recorded]
    return [
        (title, position_chart(recorded, name)) for name, title in BY_POSITION.items() if recorded
    ]


def position_chart(runs: Sequence[tuple[int, Run]], name: str) -> Markup:
    """Draw a value of ``BY_POSITION``.

    Args:
        runs: with records, each with its number in the page.
        name: of the value.
    """
    with html.style():
        fig = html.new_figure()
        axes = fig.subplots()
        for index, run in runs:
            records = [run.recorded[step] for step in sorted(run.recorded)]
            tenth = -(-len(records) // 10)
            for dashes, part in zip(DASHES, (records[-tenth:], records[:tenth]), strict=False):
                x, y = by_position(part, name)
                draw(axes, x, y, index, dashes, "o" * (len(x) == 1))
        name_dashes(fig, ["last tenth of the steps", "first tenth"])
        axes.set_xlabel("position in the response, tokens")
        axes.grid()
    return html.figure(fig, f"{BY_POSITION[name]} by position")


def by_position(records: Iterable[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Average a value over all tokens of each position bucket.

    Args:
        records: of steps.
        name: a value by position; one that is no number is left out.

    Returns:
        Middles of the buckets that have any token, and the means in them.
    """
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
    """Draw means by position and step, a map per run and value.

    The colours of a value mean the same in all runs.

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
    """Draw a map.

    Args:
        run: whose it is.
        title: name of the value.
        values: see ``grid``.
        edges: of the position buckets.
        bounds: least and most of the values that have a colour.
    """
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
    """Average a value by position and step.

    Args:
        run: with records.
        name: a value by position.
        edges: of the buckets. A step recorded with others, under another ``budget.max``, is left
            out.

    Returns:
        (N buckets, columns), a column per step or per block of steps; NaN where there was no token
        or no number.
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
