"""Dataset as parquet in verl's format, from the hub or from a local file.

Prompts end as the paper's do, the ground truth is in reward_model.ground_truth, and ids and answers
are checked. The same input gives the same bytes, with the same version of pyarrow.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from recipe.prune_opd.commands.files import check_out
from recipe.prune_opd.commands.prepare.datasets import DATASETS
from recipe.prune_opd.commands.prepare.overlaps import Overlaps, questions_of
from recipe.prune_opd.commands.prepare.problems import (
    Problem,
    parse_rows,
    read_hub,
    read_local,
    unique_rows,
)
from recipe.prune_opd.commands.prepare.rows import verl_row, write
from recipe.prune_opd.commands.terminal import as_json, progress, say, show


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    dataset: Annotated[
        Positional[str], arg(metavar="DATASET", help_behavior_hint=f"({', '.join(DATASETS)})")
    ]
    """name of the dataset"""
    out: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: data/DATASET.parquet)")
    ] = None
    """file to write"""
    input: Annotated[Path | None, arg(metavar="FILE")] = None
    """.parquet, .json or .jsonl instead of the hub, raw or in verl's format"""
    split: Annotated[str | None, arg(help_behavior_hint="(default: the dataset's usual one)")] = (
        None
    )
    """split on the hub, and extra_info.split"""
    against: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE")] = ()
    """parquet in verl's format that should share no question with this one: training data, say"""
    drop_duplicates: bool = False
    """leave out questions that repeat or are in an --against file"""
    suffix: str | None = None
    """end of every prompt, instead of the paper's"""
    json: bool = False
    """print a JSON object instead of the table"""


def run(args: Arguments) -> int:
    """Write the file and print what is in it.

    Raises:
        ValueError: no such dataset, or input that cannot be used; one sentence that names file and
            row.
    """
    name = args.dataset.lower().replace("-", "_")
    if name not in DATASETS:
        raise ValueError(f"got {args.dataset!r}, allowed: {', '.join(DATASETS)}")
    for option, text in (("--suffix", args.suffix), ("--split", args.split)):
        _check_text(option, text)
    dataset, out = DATASETS[name], args.out or Path("data") / f"{name}.parquet"
    _check_out(out, args)
    split = args.split or dataset.split
    problems, origin, repeats = _read(name, split, args.input)
    found = Overlaps.of(problems, {file: questions_of(file) for file in args.against})
    if args.drop_duplicates:
        problems = found.left_of(problems, origin)
    write(out, [verl_row(problem, dataset, split, args.suffix) for problem in problems])
    report = {
        "dataset": name,
        "from": origin,
        "file": str(out),
        "rows": len(problems),
        "expected_rows": dataset.rows if split == dataset.split else None,
        "identical_rows_left_out": repeats,
        **found.counts(),
        "duplicates_left_out": len(found.all) if args.drop_duplicates else 0,
        "first_shared_ids": found.first_ids,
        "data_source": dataset.source,
        "bytes": out.stat().st_size,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }
    if args.json:
        say(as_json(report, ascii_only=False))
    else:
        _print_table(report)
    return 0


def _read(name: str, split: str, file: Path | None) -> tuple[list[Problem], str, int]:
    """Distinct problems of a dataset, where they are from, and how many rows repeated another."""
    dataset = DATASETS[name]
    if file:
        raw, origin = read_local(file), str(file)
    else:
        raw, origin = read_hub(name, dataset, split), f"{dataset.hub}, {split}"
    rows = progress(parse_rows(raw, dataset, origin), f"reading {name}", "row")
    problems, repeats = unique_rows(rows, origin)
    return problems, origin, repeats


def _check_text(option: str, text: str | None) -> None:
    """Refuse what parquet cannot hold: bytes of a terminal that are no UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{option}: got {text!r:.60}, allowed: text in UTF-8") from error


def _check_out(out: Path, args: Arguments) -> None:
    """Refuse a file whose ending, by which verl tells formats, is not parquet's, a place that is
    no file's, and what is read."""
    if out.suffix != ".parquet":
        raise ValueError(f"--out: {out} ends in {out.suffix!r}, allowed: .parquet")
    check_out(out, "a file ending in .parquet")
    read = {"--input": [args.input] if args.input else [], "--against": list(args.against)}
    for option, files in read.items():
        for file in files:
            if os.path.exists(out) and os.path.exists(file) and os.path.samefile(out, file):
                raise ValueError(f"--out: {out} is the file of {option}, allowed: another file")


def _print_table(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("key", "value", show_header=False)
    table.columns[1].overflow = "fold"
    for key, value in found.items():
        if isinstance(value, dict):
            for file, count in value.items():
                table.add_row(f"questions also in {file}", f"{count:,}")
        elif isinstance(value, list):
            table.add_row(
                key.replace("_", " "),
                ", ".join(value[:3]) + (", ..." if len(value) > 3 else "") or "none",
            )
        elif value is not None:
            table.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
    show(table, width=100)
    if found["expected_rows"] not in (None, found["rows"] + found["duplicates_left_out"]):
        say(
            f"note: {found['rows']:,} rows, {found['expected_rows']:,} were expected: another"
            " version of the data?"
        )
