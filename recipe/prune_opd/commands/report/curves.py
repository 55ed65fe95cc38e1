"""Lines of runs, drawn: a colour per run, dashes per value."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from recipe.prune_opd.commands import html
from recipe.prune_opd.commands.report.charts import Chart
from recipe.prune_opd.commands.report.runs import AXES, Run

POINTS = 400
"""Most points of a curve and columns of a heat map: more would not be seen, but would have to be
loaded."""
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")


def curves(runs: Sequence[Run], chart: Chart, axis: str) -> Markup:
    """Draw a chart along an axis of ``AXES``."""
    lines = {
        name: values for name, values in chart.lines.items() if any(values(run) for run in runs)
    }
    with html.style():
        fig = html.new_figure()
        axes = fig.subplots()
        for index, run in enumerate(runs):
            along = run.along(axis)
            for dashes, values in zip(DASHES, lines.values(), strict=False):
                points = [(along[step], v) for step, v in values(run).items() if step in along]
                x, y = thinned(sorted(points))
                marker = "o" if chart.marked or len(x) == 1 else ""
                draw(axes, x, y, index, dashes, marker)
        if len(lines) > 1:
            name_dashes(fig, list(lines))
        axes.set_xlabel(AXES[axis])
        if axes.get_ylim()[1] >= 1e5:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if axis == "step":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()
    return html.figure(fig, f"{chart.title} by {AXES[axis]}")


def draw(
    axes: Axes, x: list[float], y: list[float], run: int, dashes: Any, marker: str = ""
) -> None:
    """Draw a line of a run.

    Args:
        axes: to draw on.
        x: of its points.
        y: of its points.
        run: number of the run, which says the colour.
        dashes: one of ``DASHES``.
        marker: of its points; none for a line alone.
    """
    colour = html.series_colour(run)
    axes.plot(x, y, dashes, color=colour, linewidth=1.4, marker=marker, markersize=3.5)


def name_dashes(fig: Figure, names: Sequence[str]) -> None:
    """Add a legend above a figure that says which dashes are which value."""
    styles = [
        Line2D([], [], color=html.INK, linestyle=dashes, linewidth=1)
        for dashes in DASHES[: len(names)]
    ]
    fig.legend(styles, names, loc="outside upper left", ncols=4, fontsize=8, handlelength=1.8)


def thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Thin a curve out to at most ``POINTS`` points, each the mean of as many neighbours.

    Args:
        points: (x, y); those whose y is no number are left out.

    Returns:
        x and y.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return [], []
    size = -(-len(finite) // POINTS)
    blocks = [np.mean(finite[i : i + size], axis=0) for i in range(0, len(finite), size)]
    return [float(x) for x, _ in blocks], [float(y) for _, y in blocks]
