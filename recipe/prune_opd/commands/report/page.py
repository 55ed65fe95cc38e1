"""One page about one or several runs: numbers, curves, positions, time, samples token by token.

Everything that a run has not logged is left out and named. See ``runs`` for what is read, ``html``
for how it is shown.
"""

from collections.abc import Sequence

from recipe.prune_opd.commands import html
from recipe.prune_opd.commands.report.charts import CHARTS, Chart, accuracy_on
from recipe.prune_opd.commands.report.curves import curves
from recipe.prune_opd.commands.report.positions import heat_maps, position_charts
from recipe.prune_opd.commands.report.runs import AXES, Run
from recipe.prune_opd.commands.report.summary import COLUMNS, cells, notes, summary
from recipe.prune_opd.commands.report.times import time_split
from recipe.prune_opd.commands.report.tokens import token_views
from recipe.prune_opd.commands.terminal import progress

MOST_RUNS = len(html.SERIES)


def report(runs: Sequence[Run], title: str, step: int | None = None) -> str:
    """Make the page.

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
    charts, absent = _charts(runs)
    drawn = progress(charts, "drawing", "chart")
    return html.render(
        "report.html",
        title=title,
        names=[run.name for run in runs],
        columns=COLUMNS,
        rows=[cells(summary(run)) for run in runs],
        notes=notes(runs),
        absent=absent,
        axes=list(AXES.values()),
        charts=[(chart, [curves(runs, chart, axis) for axis in AXES]) for chart in drawn],
        positions=position_charts(runs),
        unrecorded=[run.name for run in runs if not run.recorded],
        maps=heat_maps([run for run in runs if _has_positions(run)]),
        times=time_split(runs),
        **views,
    )


def _charts(runs: Sequence[Run]) -> tuple[list[Chart], list[str]]:
    """Charts of which some run has a value, and titles of the others."""
    benchmarks = sorted({name for run in runs for name in run.accuracies()})
    accuracy = [
        Chart(f"Accuracy, {name}", {"": accuracy_on(name)}, marked=True) for name in benchmarks
    ]
    charts = [*accuracy, *CHARTS]
    shown = [
        chart
        for chart in charts
        if any(values(run) for run in runs for values in chart.lines.values())
    ]
    absent = [chart.title for chart in charts if chart not in shown]
    return shown, absent if benchmarks else ["Accuracy", *absent]


def _has_positions(run: Run) -> bool:
    return any(record["positions"]["tokens"] for record in run.recorded.values())
