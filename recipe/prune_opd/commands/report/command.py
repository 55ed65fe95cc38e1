"""One page about one or several runs, to be opened in a browser: it needs no server and no network.

A run is a folder that it wrote into, with the file of verl's logger (trainer.logger=[console,file])
and, where prune_opd.records.dir was there as well, our records; or just the file. Several runs are
laid over each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from recipe.prune_opd.commands.arguments import WHOLE, paths
from recipe.prune_opd.commands.files import check_out, write_out
from recipe.prune_opd.commands.report.reading import read_runs
from recipe.prune_opd.commands.report.summary import COLUMNS, cells, notes, summary
from recipe.prune_opd.commands.terminal import as_json, say, show


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    runs: Annotated[
        Positional[tuple[Path, ...]],
        paths("folders of runs, or files of verl's logger", "RUN"),
        arg(help_behavior_hint=""),
    ]
    """folder of a run, or file of verl's logger"""
    out: Annotated[Path, arg(metavar="FILE")] = Path("report.html")
    """file to write"""
    title: Annotated[str | None, arg(help_behavior_hint="(default: the names of the runs)")] = None
    """heading of the page"""
    step: Annotated[
        int | None, WHOLE, arg(help_behavior_hint="(default: the first and the last)")
    ] = None
    """step whose samples are shown"""
    json: bool = False
    """print the summary as JSON and write no page"""


def run(args: Arguments) -> int:
    """Write the page and print the summary.

    Raises:
        ValueError: there is no run at a path, no sample of the step, or the page cannot be written;
            names which.
    """
    if not args.json:
        _check_out(args.out)
    runs = read_runs(args.runs)
    summaries = [summary(one) for one in runs]
    if args.json:
        say(as_json(summaries))
        return 0
    # matplotlib: what prints alone need not wait for it.
    from recipe.prune_opd.commands.report.page import report

    text = report(runs, args.title or ", ".join(one.name for one in runs), args.step)
    write_out(args.out, text)
    _print_table(COLUMNS, [cells(one) for one in summaries])
    for note in notes(runs):
        say(f"note: {note}")
    say(f"{args.out}, {len(text.encode()) / 1e6:.2f} MB")
    return 0


def _check_out(out: Path) -> None:
    """Refuse a file that cannot be written, before the work of drawing."""
    folder = out.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"--out: {folder} does not exist, allowed: a file in a folder that exists")
    check_out(out, "a file")


def _print_table(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(caption="pairs: first and last step that has one", caption_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == "run" else "right")
    for row in rows:
        table.add_row(*row)
    show(table, width=130)
