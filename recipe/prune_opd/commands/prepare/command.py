"""A dataset as parquet in verl's format, from the hub or from a local file.

Prompts end as the paper's do, the ground truth is in reward_model.ground_truth, and ids and answers
are checked. The same input gives the same bytes, with the same version of pyarrow.
"""

import argparse
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.prepare.datasets import DATASETS, Dataset
from recipe.prune_opd.commands.prepare.problems import (
    Problem,
    from_verl,
    parse_rows,
    read_hub,
    read_local,
    read_parquet,
    unique_rows,
)
from recipe.prune_opd.commands.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``recipe.prune_opd.__main__``."""
    parser.add_argument("dataset", metavar="DATASET", help=", ".join(DATASETS))
    parser.add_argument("--out", type=Path, help="file to write (default: data/DATASET.parquet)")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help=".parquet, .json or .jsonl instead of the hub, raw or in verl's format",
    )
    parser.add_argument(
        "--split", help="split on the hub, and extra_info.split (default: the dataset's usual one)"
    )
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=(
            "parquet in verl's format that should share no question with this one: the training"
            " data, say; repeatable"
        ),
    )
    parser.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="leave out questions that repeat or are in an --against file",
    )
    parser.add_argument("--suffix", help="end of every prompt, instead of the paper's")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of the table"
    )


def run(args: argparse.Namespace) -> int:
    """See ``recipe.prune_opd.__main__``.

    Raises:
        ValueError: no such dataset, or input that cannot be used; one sentence that names file and
            row.
    """
    name = args.dataset.lower().replace("-", "_")
    if name not in DATASETS:
        raise ValueError(f"got {args.dataset!r}, allowed: {', '.join(DATASETS)}")
    dataset, out = DATASETS[name], args.out or Path("data") / f"{name}.parquet"
    _check_out(out)
    split = args.split or dataset.split
    if args.input:
        raw, origin = read_local(args.input), str(args.input)
    else:
        raw, origin = read_hub(name, dataset, split), f"{dataset.hub}, {split}"
    problems, repeats = unique_rows(
        _progress(parse_rows(raw, dataset, origin), f"reading {name}"), origin
    )
    others = {file: questions_of(file) for file in args.against}
    found = Overlaps.of(problems, others)
    if args.drop_duplicates:
        problems = [problem for number, problem in enumerate(problems) if number not in found.all]
        if not problems:
            raise ValueError(
                f"{origin}: every question is in an --against file, nothing is left to write"
            )
    write(out, [verl_row(problem, dataset, split, args.suffix) for problem in problems])
    _report(
        {
            "dataset": name,
            "from": origin,
            "file": str(out),
            "rows": len(problems),
            "expected_rows": dataset.rows if split == dataset.split else None,
            "identical_rows_left_out": repeats,
            "repeated_questions": len(found.repeated),
            "repeated_with_another_answer": found.contradictions,
            "shared": {str(file): len(shared) for file, shared in found.shared.items()},
            "duplicates_left_out": len(found.all) if args.drop_duplicates else 0,
            "first_shared_ids": found.first_ids,
            "data_source": dataset.source,
            "bytes": out.stat().st_size,
            "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        },
        args.json,
    )
    return 0


FENCES = re.compile(r"\\[()\[\]]|\\left(?![a-z])|\\right(?![a-z])|\\[,;:! ]|\.(?!\d)|[$\s?~{}]")


def normalise(question: str) -> str:
    """What two writings of one question have in common: no white space, dollar signs, braces or end
    marks, one case.

    The point of ``1.5`` or ``.5`` is no end mark.
    """
    text = unicodedata.normalize("NFKC", question).casefold()
    return FENCES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


def questions_of(file: Path) -> set[str]:
    """Normalised questions of a parquet file in verl's format.

    Raises:
        ValueError: the file does not exist or is in another format.
    """
    check_readable("--against: ", file, "a parquet file in verl's format")
    found = set()
    for number, row in enumerate(_progress(read_parquet(file), f"reading {file.name}")):
        if "reward_model" not in row:
            raise ValueError(
                f"--against: {file} has no column 'reward_model', allowed: a parquet file in verl's"
                " format"
            )
        found.add(normalise(from_verl(row, f"{file}, row {number}").question))
    return found


@dataclass(frozen=True)
class Overlaps:
    """Row numbers of questions that occur elsewhere."""

    repeated: set[int]
    """Questions that an earlier row has."""
    contradictions: int
    """Repeated questions whose answer differs from the earlier row's."""
    shared: dict[Path, list[int]]
    """By file, rows whose question is in it."""
    first_ids: list[str]
    """Ids of the first ten of them."""

    @classmethod
    def of(cls, problems: list[Problem], others: dict[Path, set[str]]) -> "Overlaps":
        """Compare problems with each other and with the normalised questions of other files."""
        first: dict[str, str] = {}
        repeated, contradictions = set(), 0
        shared: dict[Path, list[int]] = {file: [] for file in others}
        for number, problem in enumerate(problems):
            question = normalise(problem.question)
            if question in first:
                repeated.add(number)
                contradictions += first[question] != problem.answer
            first.setdefault(question, problem.answer)
            for file, questions in others.items():
                if question in questions:
                    shared[file].append(number)
        rows = sorted({number for numbers in shared.values() for number in numbers})
        return cls(repeated, contradictions, shared, [problems[number].id for number in rows[:10]])

    @property
    def all(self) -> set[int]:
        """Rows that another row or file makes superfluous."""
        return self.repeated.union(*self.shared.values())


def verl_row(problem: Problem, dataset: Dataset, split: str, suffix: str | None) -> dict[str, Any]:
    """A row in verl's format.

    Args:
        problem: with the bare question.
        dataset: whose it is.
        split: for ``extra_info.split``.
        suffix: end of the prompt; None for the dataset's own head and tail.
    """
    head, tail = (dataset.head, dataset.tail) if suffix is None else ("", suffix)
    messages = [*problem.before, ("user", f"{head}{problem.question}{tail}")]
    return {
        "data_source": dataset.source,
        "prompt": [{"content": content, "role": role} for role, content in messages],
        "ability": "math",
        "reward_model": {"ground_truth": problem.answer, "style": "rule"},
        "extra_info": {"index": problem.id, "split": split},
    }


def _check_out(out: Path) -> None:
    """Before the work of reading: verl tells formats apart by the ending."""
    if out.suffix != ".parquet":
        raise ValueError(f"--out: {out} ends in {out.suffix!r}, allowed: .parquet")
    if os.path.isdir(out):
        raise ValueError(f"--out: {out} is a folder, allowed: a file ending in .parquet")


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write parquet whose bytes depend on the rows and the version of pyarrow alone. Never leaves
    half a file."""
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    schema = pyarrow.schema(
        {
            "data_source": text,
            "prompt": pyarrow.list_(pyarrow.struct({"content": text, "role": text})),
            "ability": text,
            "reward_model": pyarrow.struct({"ground_truth": text, "style": text}),
            "extra_info": pyarrow.struct({"index": text, "split": text}),
        }
    )
    table = pyarrow.Table.from_pylist(rows, schema)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        parquet.write_table(
            table,
            part,
            version="2.6",
            compression="snappy",
            row_group_size=4096,
            store_schema=False,
        )
        part.replace(file)
    except OSError as error:
        raise ValueError(f"--out: {file} cannot be written ({error})") from error


def _progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit="row", disable=None)


def _report(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
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
        print(
            f"note: {found['rows']:,} rows, {found['expected_rows']:,} were expected: another"
            " version of the data?"
        )
