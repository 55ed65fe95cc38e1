"""Problems out of rows of any format: question, answer, id. A row that is none is refused."""

import ast
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.files import json_lines, parsed
from recipe.prune_opd.commands.prepare.datasets import Dataset, bare_question


@dataclass(frozen=True)
class Problem:
    """Question with its answer, whatever format its row had."""

    id: str
    question: str
    answer: str
    before: tuple[tuple[str, str], ...] = ()
    """(role, content) of messages before the question, a system prompt for instance."""


def read_hub(name: str, dataset: Dataset, split: str) -> Iterable[dict[str, Any]]:
    """Read rows from the hub, or from the ``datasets`` library's cache of it.

    Raises:
        ValueError: it cannot be reached, or has no such split.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset.hub, dataset.config, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: split {split!r} of {dataset.hub} cannot be loaded from the hub ({reason});"
            " with a copy of it give --input FILE"
        ) from error


def read_local(file: Path) -> Iterable[Any]:
    """Read rows of a .parquet, .json or .jsonl file.

    Raises:
        ValueError: the file does not exist, has another ending, or cannot be read.
    """
    readers = {".parquet": read_parquet, ".json": _read_json, ".jsonl": _read_jsonl}
    check_readable("--input: ", file, "a .parquet, .json or .jsonl file")
    if file.suffix not in readers:
        raise ValueError(f"--input: {file} ends in {file.suffix!r}, allowed: {', '.join(readers)}")
    return readers[file.suffix](file)


def read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """Read rows of a parquet file.

    Raises:
        ValueError: it is none.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is no readable parquet file ({reason})") from error


def _read_json(file: Path) -> list[Any]:
    try:
        rows = parsed(str(file), file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{error}; one object per line needs the ending .jsonl") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds a JSON {type(rows).__name__}, allowed: a list of objects")
    return rows


def _read_jsonl(file: Path) -> Iterator[Any]:
    return (row for _, row in json_lines("", file))


def parse_rows(rows: Iterable[Any], dataset: Dataset, origin: str) -> Iterator[Problem]:
    """Make problems out of rows in the dataset's own columns or in verl's format.

    Args:
        rows: one dict each.
        dataset: whose they are.
        origin: where they are from, for messages.

    Raises:
        ValueError: a column is missing, or a question, an answer or an id is empty or something
            else; names the row.
    """
    for number, row in enumerate(rows):
        yield _problem(row, dataset, number, f"{origin}, row {number}")


def _problem(row: Any, dataset: Dataset, number: int, place: str) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no object but a {type(row).__name__}")
    problem = (
        from_verl(row, place) if "reward_model" in row else _from_raw(row, dataset, number, place)
    )
    for part in ("id", "question", "answer"):
        if not getattr(problem, part).strip():
            raise ValueError(f"{place} has an empty {part}, allowed: text")
    return problem


def _from_raw(row: dict[str, Any], dataset: Dataset, number: int, place: str) -> Problem:
    needed = [dataset.question, dataset.answer, *([dataset.id] if dataset.id else [])]
    missing = [column for column in needed if column not in row]
    if missing:
        raise ValueError(
            f"{place} has no column {', '.join(map(repr, missing))}, its columns: {', '.join(row)};"
            f" needed: {', '.join(needed)}, or verl's prompt and reward_model"
        )
    question = _text(row[dataset.question], f"{place} has the question")
    answer = truth(row[dataset.answer], f"{place} has the answer")
    try:
        answer = dataset.final(answer)
    except ValueError as error:
        raise ValueError(f"{place} has the answer {answer!r:.60} {error}") from error
    identity = _identity(row[dataset.id], f"{place} has the id") if dataset.id else str(number)
    return Problem(identity, question, answer)


def from_verl(row: dict[str, Any], place: str) -> Problem:
    """Make a problem out of a row in verl's format.

    Raises:
        ValueError: it is in another; begins with ``place``.
    """
    reward = row["reward_model"]
    if not isinstance(reward, dict) or "ground_truth" not in reward:
        raise ValueError(f"{place} has no reward_model.ground_truth")
    turns = _turns(row.get("prompt"), place)
    extra = row.get("extra_info") or {}
    if not isinstance(extra, dict):
        raise ValueError(
            f"{place} has the extra_info {extra!r:.60}, allowed: an object, with index"
        )
    index = extra.get("index")
    return Problem(
        _identity(row.get("id") if index is None else index, f"{place} has the id"),
        bare_question(turns[-1][1]),
        truth(reward["ground_truth"], f"{place} has the ground truth").strip(),
        tuple(turns[:-1]),
    )


def _turns(prompt: Any, place: str) -> list[tuple[str, str]]:
    """List (role, content) of a prompt, the last of which asks the question."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise ValueError(
            f"{place} has the prompt {prompt!r:.60}, allowed: a text or a list of messages with"
            " role and content"
        )
    if any(message["content"] is None for message in messages[:-1]):
        raise ValueError(
            f"{place} has a message without content before the question, allowed: text"
        )
    turns = [
        (message["role"], _text(message["content"], f"{place} has the content"))
        for message in messages
    ]
    if turns[-1][0] != "user":
        raise ValueError(
            f"{place} has a prompt that ends with a turn of {turns[-1][0]!r}, {turns[-1][1]!r:.60},"
            " allowed: one that ends with the question, a turn of 'user'"
        )
    return turns


def _is_message(message: Any) -> bool:
    known = isinstance(message, dict) and {"role", "content"} <= message.keys()
    return known and isinstance(message["role"], str)


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{what} {value!r:.60}, allowed: text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} {value!r:.60}, allowed: text in Unicode (half a surrogate pair)"
        ) from error
    return value


def _identity(value: Any, what: str) -> str:
    if _is_number(value):
        return str(value)
    return _text(value, what)


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite real number; ``bool`` is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


PRINTED_LIST = re.compile(r"""\[\s*(['"]).*\1\s*\]""", re.DOTALL)
"""List of texts that something has printed where its one element was meant."""


def truth(value: Any, what: str) -> str:
    """Write a ground truth as text: numbers as printed (142.0 stays 142.0), a list's only element.

    Args:
        value: of the answer's column.
        what: beginning of the message.

    Raises:
        ValueError: several answers, true or false, no number, or no text at all.
    """
    if isinstance(value, str) and PRINTED_LIST.fullmatch(value.strip()):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            return _text(value, what)
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError(f"{what} {value!r:.60}, {len(value)} of them, allowed: one")
        return truth(value[0], what) if value else ""
    if _is_number(value):
        return str(value)
    if value is None or isinstance(value, str):
        return _text(value, what)
    raise ValueError(f"{what} {value!r:.60}, allowed: text or a number")


def unique_rows(problems: Iterable[Problem], origin: str) -> tuple[list[Problem], int]:
    """Leave identical rows out, and count them: the hub's DAPO-Math-17K has each row 100 times.

    Raises:
        ValueError: two different rows have one id, or there are no rows.
    """
    by_id: dict[str, Problem] = {}
    repeats = 0
    for problem in problems:
        first = by_id.setdefault(problem.id, problem)
        if first is not problem:
            if first != problem:
                raise ValueError(
                    f"{origin}: two different rows have the id {problem.id!r}, allowed: one"
                )
            repeats += 1
    if not by_id:
        raise ValueError(f"{origin} holds no rows")
    return list(by_id.values()), repeats
