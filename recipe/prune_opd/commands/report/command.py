"""One page about one or several runs, to be opened in a browser: it needs no server and no network.

A run is a folder that it wrote into, with the file of verl's logger (trainer.logger=[console,file])
and, where prune_opd.records.dir was there as well, our records; or just the file. Several runs are
laid over each other.
"""

import argparse
import json
from pathlib import Path

from recipe.prune_opd.commands.report.runs import read_runs
from recipe.prune_opd.commands.report.summary import COLUMNS, cells, notes, summary
from recipe.prune_opd.commands.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``recipe.prune_opd.__main__``."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run, or file of verl's logger",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file to write (default: %(default)s)"
    )
    parser.add_argument("--title", help="heading of the page (default: the names of the runs)")
    parser.add_argument(
        "--step", type=int, help="step whose samples are shown (default: the first and the last)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON and write no page"
    )


def run(args: argparse.Namespace) -> int:
    """See ``recipe.prune_opd.__main__``.

    Raises:
        ValueError: there is no run at a path, no sample of the step, or the page cannot be written;
            names which.
    """
    if not args.json:
        _check_out(args.out)
    runs = read_runs(args.runs)
    summaries = [summary(one) for one in runs]
    if args.json:
        print(json.dumps(summaries, indent=2))
        return 0
    # matplotlib: what prints alone need not wait for it.
    from recipe.prune_opd.commands.report.page import report

    text = report(runs, args.title or ", ".join(one.name for one in runs), args.step)
    try:
        args.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out: {args.out} cannot be written ({error})") from error
    _print_table(COLUMNS, [cells(one) for one in summaries])
    for note in notes(runs):
        print(f"note: {note}")
    print(f"{args.out}, {len(text.encode()) / 1e6:.2f} MB")
    return 0


def _check_out(out: Path) -> None:
    """Before the work of drawing."""
    folder = out.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"--out: {folder} does not exist, allowed: a file in a folder that exists")
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder, allowed: a file")


def _print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(caption="pairs: first and last step that has one", caption_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == "run" else "right")
    for row in rows:
        table.add_row(*row)
    show(table, width=130)
