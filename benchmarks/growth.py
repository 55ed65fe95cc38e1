"""Numbers of a run's processes over its steps, and whether they grow."""

import csv
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from rich.table import Table

WARM_UP, STRETCH = 0.2, 0.2
"""Shares of a start's steps: those that are left out, and those that are compared."""
BOUND = 0.03
"""Growth that is let pass."""


@dataclass(frozen=True)
class Look:
    """One number at one moment."""

    start: int
    """Of the training: 0, and one more with each time it is started again."""
    step: int
    seconds: float
    """Since the beginning of the soak."""
    who: str
    """Name of a process, with its id, or of a part of the run."""
    what: str
    """``memory``, ``files``, ``objects`` or ``entries``."""
    value: float


def growth(looks: list[Look]) -> Iterator[tuple[str, str, float, float]]:
    """Every process and part of the longest start: name, what, and its medians behind the warm-up
    and at the end. Without those that came later or went earlier."""
    spans = [
        [one.step for one in looks if one.start == start] for start in range(looks[-1].start + 1)
    ]
    longest = max(range(len(spans)), key=lambda start: len(spans[start]))
    first, last = min(spans[longest]), max(spans[longest])
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in looks:
        if one.start == longest:
            place = (one.step - first) / max(1, last - first)
            groups.setdefault((one.who, one.what), []).append((place, one.value))
    for (who, what), values in groups.items():
        early = [value for place, value in values if WARM_UP <= place <= WARM_UP + STRETCH]
        late = [value for place, value in values if place >= 1 - STRETCH]
        if early and late:
            yield who, what, statistics.median(early), statistics.median(late)


def table(looks: list[Look]) -> Table:
    """Medians early and late, and the growth, of all that is looked at."""
    shown = Table("process", "what", "early", "late", "growth", "", title_justify="left")
    shown.title = f"Medians over {STRETCH:.0%} of the steps, behind the warm-up and at the end"
    for who, what, early, late in sorted(growth(looks)):
        grown = late / early - 1 if early else math.inf * (late > 0) if late else 0.0
        mark = "" if grown < BOUND else f"over {BOUND:.0%}"
        shown.add_row(who, what, f"{early:,.0f}", f"{late:,.0f}", f"{grown:+.1%}", mark)
    return shown


def plot(looks: list[Look], file: Path) -> None:
    """Draw memory and files of the run over the steps, and what Ray and TransferQueue hold; a
    process that grew by a tenth is named."""
    grown = {(who, what) for who, what, early, late in growth(looks) if late > 1.1 * early}
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    titles = {
        "memory": "memory of each process, MB",
        "files": "open files of each process",
        "objects": "objects in Ray's store",
        "entries": "entries of TransferQueue",
    }
    for axis, (what, title) in zip(axes.flat, titles.items(), strict=True):
        lines: dict[tuple[int, str], list[Look]] = {}
        for one in looks:
            if one.what == what:
                lines.setdefault((one.start, one.who), []).append(one)
        for (_, who), line in lines.items():
            name = who if ":" in who and (who, what) in grown else None
            steps, values = [one.step for one in line], [one.value for one in line]
            axis.plot(steps, values, linewidth=0.8, label=name)
        axis.set(title=title, xlabel="step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if any(line.get_label()[0] != "_" for line in axis.lines):
            axis.legend(loc="center right")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def save(looks: list[Look], file: Path) -> None:
    """Append to a CSV file, which gets a head if it is new."""
    with file.open("a", newline="") as output:
        writer = csv.writer(output)
        if not output.tell():
            writer.writerow(Look.__dataclass_fields__)
        writer.writerows(vars(one).values() for one in looks)
