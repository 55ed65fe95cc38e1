"""Validation dumps of verl, read: which responses count, to which problem, right or wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.evaluate.evaluation import Response
from recipe.prune_opd.commands.files import json_lines

DUMP = "a file {step}.jsonl of trainer.validation_data_dir"
"""Name of what is read, in messages."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= 2**53


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 2**53


def _is_flag(value: Any) -> bool:
    return isinstance(value, (int, float)) and value in (0, 1)  # true and false are numbers


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "input": (_is_text, "text"),
    "output": (_is_text, "text"),
    "data_source": (_is_text, "text or null"),
    "unread": (_is_text, "text or null"),
    "tokens": (_is_length, "a number >= 0 or null"),
    "truncated": (_is_flag, "true, false or null"),
    "step": (_is_whole, "a whole number or null"),
}
"""Fields of a response -> test of what they may hold, and its name."""
DIGITS = 10
"""Digits that the number of an output has not."""
NEEDED = ("input", "output", "score")


def read_dump(file: Path) -> list[dict[str, Any]]:
    """Read the responses of a dump, of each session the last output, each with its ``problem``.

    See ``_problems`` for what that is.

    Raises:
        ValueError: the file cannot be read, holds no responses, or a line is not a response.
    """
    check_readable("", file, DUMP)
    rows = [_checked(where, row) for where, row in json_lines("", file)]
    if not rows:
        raise ValueError(f"{file} holds no responses, allowed: {DUMP}")
    return list(_last_outputs(_problems(rows)).values())


def _checked(where: str, row: Any) -> dict[str, Any]:
    missing = [name for name in NEEDED if not isinstance(row, dict) or name not in row]
    if missing:
        raise ValueError(
            f"{where} is no response of a validation dump, it lacks {', '.join(missing)}"
        )
    for name, (holds, allowed) in FIELDS.items():
        value = row.get(name)
        if not holds(value) and (value is not None or name in NEEDED):
            raise ValueError(f"{where}: {name} is {value!r:.60}, allowed: {allowed}")
    return row


def _problems(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add ``problem`` to rows: what samples of one problem have in common.

    verl gives every row of the validation file a uid, and files repeat a problem to have it sampled
    more often. So it is not the uid that tells problems apart, but the prompt and the ground truth.
    Of a uid with several outputs it is the prompt of the first: later ones hold what was said
    before.
    """
    firsts: dict[str, tuple[int, str, str]] = {}
    keys = [_key(row) for row in rows]
    for row, (uid, session, output) in zip(rows, keys, strict=True):
        first = (output, session or "", row["input"])
        firsts[uid] = min(firsts.get(uid, first), first)
    return [
        {**row, "problem": json.dumps([firsts[uid][2], row.get("gts")], sort_keys=True)}
        for row, (uid, _, _) in zip(rows, keys, strict=True)
    ]


def repeats(rows: list[dict[str, Any]], file: Path) -> list[str]:
    """Note, in a sentence, that a validation file holds problems several times, if it does.

    Args:
        rows: of ``read_dump``.
        file: where they are from.
    """
    prompts = len({_key(row)[0] for row in rows})
    problems = len({row["problem"] for row in rows})
    if prompts <= problems:
        return []
    return [
        f"{file}: its {prompts:,} prompts are {problems:,} problems; equal ones with one ground"
        " truth count as one"
    ]


def _last_outputs(rows: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Pick the last output of each session: of several of an agent loop verl scores that one."""
    last: dict[Any, dict[str, Any]] = {}
    highest: dict[Any, int] = {}
    for number, row in enumerate(rows):
        uid, session, output = _key(row)
        key = (uid, session) if session is not None else number
        if output >= highest.get(key, 0):
            last[key], highest[key] = row, output
    return last


def _key(row: dict[str, Any]) -> tuple[str, str | None, int]:
    """Split verl's key ``{uid}_{session}_{output}``; without one the prompt stands for the uid."""
    parts = str(row.get("uid", "")).rsplit("_", 2)
    if len(parts) == 3 and parts[2].isdecimal() and len(parts[2]) < DIGITS:
        return parts[0], parts[1], int(parts[2])
    return row["input"], None, 0


def by_step(
    rows: list[dict[str, Any]], file: Path, benchmark: str
) -> dict[int | None, list[Response]]:
    """Group graded responses by step.

    Args:
        rows: of ``read_dump``.
        file: where they are from, for messages.
        benchmark: name where a row has none.

    Raises:
        ValueError: a score is neither right nor wrong.
    """
    steps: dict[int | None, list[Response]] = {}
    for row in rows:
        response = Response(
            benchmark=row.get("data_source") or benchmark,
            problem=row["problem"],
            correct=_correct(row, file),
            unread=row.get("unread") or "",
            tokens=row.get("tokens"),
            truncated=row.get("truncated"),
        )
        steps.setdefault(row.get("step"), []).append(response)
    return steps


def _correct(row: dict[str, Any], file: Path) -> bool:
    found = row["score"] if row.get("acc") is None else row["acc"]
    if found not in (0, 1):  # True and False are equal to them
        raise ValueError(
            f"{file}: got the score {found!r}, allowed: 0 or 1, or a field acc; --regrade grades"
            " the texts"
        )
    return bool(found)
