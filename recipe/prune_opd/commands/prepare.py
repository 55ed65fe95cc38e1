"""A dataset as parquet in verl's format, from the hub or from a local file.

Prompts end as the paper's do, the ground truth is in reward_model.ground_truth, and ids and answers are checked. The
same input gives the same bytes, with the same version of pyarrow.
"""

import argparse
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.prune_opd.commands.terminal import show

SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."
"""End of every validation prompt of the paper."""
DAPO_HEAD = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_TAIL = '\n\nRemember to put your answer on its own line after "Answer:".'
"""DAPO-Math-17K comes with prompts of its own, on which the paper trains."""


@dataclass(frozen=True)
class Dataset:
    """Where a dataset is, how its columns are called and what its rows become."""

    hub: str
    split: str
    source: str
    """``data_source`` of its rows."""
    rows: int
    """Rows without repeats, to tell another version."""
    config: str | None = None
    question: str = "problem"
    answer: str = "answer"
    id: str | None = "id"
    head: str = ""
    tail: str = SUFFIX
    final: Callable[[str], str] = field(default=str.strip)
    """Ground truth out of the answer column."""


def _after_hashes(solution: str) -> str:
    """GSM8K's answers are solutions that end in ``#### 1,234``."""
    return solution.rpartition("####")[2].strip().replace(",", "")


DATASETS = {
    "dapo_math_17k": Dataset(
        "BytedTsinghua-SIA/DAPO-Math-17k", "train", "math_dapo", 17917, head=DAPO_HEAD, tail=DAPO_TAIL
    ),
    "math_500": Dataset("HuggingFaceH4/MATH-500", "test", "MATH-500", 500, id="unique_id"),
    "aime24": Dataset("HuggingFaceH4/aime_2024", "train", "AIME24", 30),
    "aime25": Dataset("math-ai/aime25", "test", "AIME25", 30),
    "amc23": Dataset("AI-MO/aimo-validation-amc", "train", "AMC23", 83),
    "hmmt24": Dataset("MathArena/hmmt_feb_2024", "train", "HMMT24", 30, id="problem_idx"),
    "hmmt25": Dataset("MathArena/hmmt_feb_2025", "train", "HMMT25", 30, id="problem_idx"),
    "gsm8k": Dataset(
        "openai/gsm8k", "test", "GSM8K", 1319, config="main", question="question", id=None, final=_after_hashes
    ),
}
"""By name, which is also that of the file."""


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
    parser.add_argument("--split", help="split on the hub, and extra_info.split (default: the dataset's usual one)")
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="parquet in verl's format that should share no question with this one: the training data, say; repeatable",
    )
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="leave out questions that repeat or are in an --against file"
    )
    parser.add_argument("--suffix", help="end of every prompt, instead of the paper's")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """See ``recipe.prune_opd.__main__``.

    Raises:
        ValueError: no such dataset, or input that cannot be used; one sentence that names file and row.
    """
    name = args.dataset.lower().replace("-", "_")
    if name not in DATASETS:
        raise ValueError(f"got {args.dataset!r}, allowed: {', '.join(DATASETS)}")
    dataset, out = DATASETS[name], args.out or Path("data") / f"{name}.parquet"
    split = args.split or dataset.split
    if args.input:
        raw, origin = read_local(args.input), str(args.input)
    else:
        raw, origin = read_hub(name, dataset, split), f"{dataset.hub}, {split}"
    problems, repeats = unique_rows(_progress(parse_rows(raw, dataset, origin), f"reading {name}"), origin)
    others = {file: questions_of(file) for file in args.against}
    found = Overlaps.of(problems, others)
    if args.drop_duplicates:
        problems = [problem for number, problem in enumerate(problems) if number not in found.all]
        if not problems:
            raise ValueError(f"{origin}: every question is in an --against file, nothing is left to write")
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


@dataclass(frozen=True)
class Problem:
    """A row, whatever format it came in."""

    id: str
    question: str
    answer: str
    before: tuple[tuple[str, str], ...] = ()
    """(role, content) of messages before the question, a system prompt for instance."""


def read_hub(name: str, dataset: Dataset, split: str) -> Iterable[dict[str, Any]]:
    """Rows from the hub, or from the ``datasets`` library's cache of it.

    Raises:
        ValueError: it cannot be reached, or has no such split.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset.hub, dataset.config, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: split {split!r} of {dataset.hub} cannot be loaded from the hub ({reason}); with a copy of it "
            "give --input FILE"
        ) from error


def read_local(file: Path) -> Iterable[dict[str, Any]]:
    """Rows of a .parquet, .json or .jsonl file.

    Raises:
        ValueError: the file does not exist, has another ending, or cannot be read.
    """
    readers = {".parquet": _read_parquet, ".json": _read_json, ".jsonl": _read_jsonl}
    if file.suffix not in readers:
        raise ValueError(f"--input: {file} ends in {file.suffix!r}, allowed: {', '.join(readers)}")
    if not file.is_file():
        raise ValueError(f"--input: {file} does not exist, allowed: a .parquet, .json or .jsonl file")
    return readers[file.suffix](file)


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no readable parquet file ({error})") from error


def _read_json(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is no readable JSON file ({error}); one object per line needs the ending .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds a JSON {type(rows).__name__}, allowed: a list of objects")
    return rows


def _read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except ValueError as error:  # no UTF-8 or no JSON
                raise ValueError(f"{file}, line {number} is no JSON in UTF-8 ({error})") from error
            yield row


def parse_rows(rows: Iterable[Any], dataset: Dataset, origin: str) -> Iterator[Problem]:
    """Problems out of rows in the dataset's own columns or in verl's format.

    Args:
        rows: one dict each.
        dataset: whose they are.
        origin: where they are from, for messages.

    Raises:
        ValueError: a column is missing, or a question, an answer or an id is empty.
    """
    for number, row in enumerate(rows):
        place = f"{origin}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{place} is no object but a {type(row).__name__}")
        problem = _from_verl(row, place) if "reward_model" in row else _from_raw(row, dataset, number, place)
        for part in ("id", "question", "answer"):
            if not getattr(problem, part).strip():
                raise ValueError(f"{place} has an empty {part}, allowed: text")
        yield problem


def _from_raw(row: dict[str, Any], dataset: Dataset, number: int, place: str) -> Problem:
    needed = [dataset.question, dataset.answer, *([dataset.id] if dataset.id else [])]
    missing = [column for column in needed if column not in row]
    if missing:
        raise ValueError(
            f"{place} has no column {', '.join(map(repr, missing))}, its columns: {', '.join(row)}; needed: "
            f"{', '.join(needed)}, or verl's prompt and reward_model"
        )
    question, answer = _text(row[dataset.question]), dataset.final(_text(row[dataset.answer]))
    return Problem(_text(row[dataset.id]) if dataset.id else str(number), question, answer)


def _from_verl(row: dict[str, Any], place: str) -> Problem:
    reward, prompt = row["reward_model"], row.get("prompt")
    if not isinstance(reward, dict) or "ground_truth" not in reward:
        raise ValueError(f"{place} has no reward_model.ground_truth")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise ValueError(
            f"{place} has the prompt {prompt!r:.60}, allowed: a text or a list of messages with role and content"
        )
    *before, last = messages
    extra = row.get("extra_info") or {}
    if not isinstance(extra, dict):
        raise ValueError(f"{place} has the extra_info {extra!r:.60}, allowed: an object, with index")
    index = extra.get("index")
    return Problem(
        _text(row.get("id") if index is None else index),
        bare_question(_text(last["content"])),
        _text(reward["ground_truth"]).strip(),
        tuple((_text(message["role"]), _text(message["content"])) for message in before),
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and {"role", "content"} <= message.keys()


def _text(value: Any) -> str:
    """As the paper's data has it: 142.0 stays 142.0."""
    return "" if value is None else str(value)


def bare_question(prompt: str) -> str:
    """A prompt without the instructions of DAPO or the paper around it."""
    if prompt.startswith(DAPO_HEAD) and prompt.endswith(DAPO_TAIL):
        return prompt[len(DAPO_HEAD) : -len(DAPO_TAIL)]
    return prompt.removesuffix(SUFFIX)


def unique_rows(problems: Iterable[Problem], origin: str) -> tuple[list[Problem], int]:
    """Problems with identical rows left out, and how many those were. The hub's DAPO-Math-17K has each row 100 times.

    Raises:
        ValueError: two different rows have one id, or there are no rows.
    """
    by_id: dict[str, Problem] = {}
    repeats = 0
    for problem in problems:
        first = by_id.setdefault(problem.id, problem)
        if first is not problem:
            if first != problem:
                raise ValueError(f"{origin}: two different rows have the id {problem.id!r}, allowed: one")
            repeats += 1
    if not by_id:
        raise ValueError(f"{origin} holds no rows")
    return list(by_id.values()), repeats


FENCES = re.compile(r"\\[()\[\]]|\\left(?![a-z])|\\right(?![a-z])|\\[,;:! ]|\.(?!\d)|[$\s?~{}]")


def normalise(question: str) -> str:
    """What two writings of one question have in common: no white space, dollar signs, braces or end marks, one case.

    The point of ``1.5`` or ``.5`` is no end mark.
    """
    text = unicodedata.normalize("NFKC", question).casefold()
    return FENCES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


def questions_of(file: Path) -> set[str]:
    """Normalised questions of a parquet file in verl's format.

    Raises:
        ValueError: the file does not exist or is in another format.
    """
    if not file.is_file():
        raise ValueError(f"--against: {file} does not exist, allowed: a parquet file in verl's format")
    found = set()
    for number, row in enumerate(_progress(_read_parquet(file), f"reading {file.name}")):
        if "reward_model" not in row:
            raise ValueError(
                f"--against: {file} has no column 'reward_model', allowed: a parquet file in verl's format"
            )
        found.add(normalise(_from_verl(row, f"{file}, row {number}").question))
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


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write parquet whose bytes depend on the rows and the version of pyarrow alone. Never leaves half a file."""
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
        parquet.write_table(table, part, version="2.6", compression="snappy", row_group_size=4096, store_schema=False)
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
            table.add_row(key.replace("_", " "), ", ".join(value[:3]) + (", ..." if len(value) > 3 else "") or "none")
        elif value is not None:
            table.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
    show(table, width=100)
    if found["expected_rows"] not in (None, found["rows"] + found["duplicates_left_out"]):
        print(f"note: {found['rows']:,} rows, {found['expected_rows']:,} were expected: another version of the data?")
