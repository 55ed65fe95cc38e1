"""Seconds of a training step by what they go into, drawn."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from recipe.prune_opd.commands import html
from recipe.prune_opd.commands.report.runs import Run

VALIDATION = "validation"
TIMES = {
    "rollout": ("gen",),
    "student's pass": ("old_log_prob",),
    "teacher": ("ref",),
    "advantage": ("adv",),
    "update": ("update_actor",),
    "weights to the rollout": ("update_weights",),
    "checkpoint": ("save_checkpoint",),
    VALIDATION: ("testing",),
}
"""Part of a step -> verl's ``timing_s``. Validation comes after the step, whose seconds are without
it."""


def time_split(runs: Sequence[Run]) -> Markup | None:
    """Draw mean seconds of a step by what they went into, a bar per run; None without any."""
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
        axes.set_xlabel("seconds of a step, and of validation beside it, mean")
        fig.legend(loc="outside upper left", ncols=2, fontsize=8, handlelength=1)
    return html.figure(fig, "Mean seconds of a step by what they went into")


def _name_bars(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(
        range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    )
    axes.invert_yaxis()


def seconds(run: Run) -> dict[str, float]:
    """Average the seconds of a step by its parts.

    Returns:
        Part -> mean seconds, what no part explains as ``other``; empty without times.
    """
    whole = run.metric("timing_s/step")
    if not whole:
        return {}

    def total(name: str) -> float:
        each = run.metric(f"timing_s/{name}")
        return sum(each.get(step, 0.0) for step in whole)

    parts = {part: sum(map(total, names)) / len(whole) for part, names in TIMES.items()}
    known = sum(value for part, value in parts.items() if part != VALIDATION)
    return parts | {"other": max(0.0, sum(whole.values()) / len(whole) - known)}
