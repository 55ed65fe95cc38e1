"""Accuracy, lengths and failures from verl's validation dumps.

Reads the files {step}.jsonl that verl writes to trainer.validation_data_dir. Which benchmark a
response belongs to, its length in tokens and whether the limit cut it are in the dump where
recipe.prune_opd.grading graded it.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.evaluate.evaluation import (
    LEVEL,
    NONE,
    SEED,
    Estimate,
    Response,
    Summary,
    summarise,
)
from recipe.prune_opd.commands.files import TEXT_FILES, check_model, json_lines
from recipe.prune_opd.commands.terminal import show

UNKNOWN = "unknown"
"""Benchmark of responses whose dump does not name one."""

DUMP = "a file {step}.jsonl of trainer.validation_data_dir"
"""What a FILE is."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


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
"""What the fields of a response may hold, and how that is called."""
NEEDED = ("input", "output", "score")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``recipe.prune_opd.__main__``."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.jsonl", help="validation dumps of verl"
    )
    parser.add_argument(
        "--k", type=int, nargs="+", default=[], help="k of pass@k (default: responses per problem)"
    )
    parser.add_argument("--benchmark", help="name of the benchmark, where the dump names none")
    parser.add_argument(
        "--regrade", action="store_true", help="grade the texts again instead of taking the scores"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="folder or hub name: counts tokens where the dump does not",
    )
    parser.add_argument(
        "--limit",
        type=int,
        help="tokens a response could have; with --tokenizer tells the cut ones",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="seed of the bootstrap (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of the table"
    )


def run(args: argparse.Namespace) -> int:
    """See ``recipe.prune_opd.__main__``.

    Raises:
        ValueError: an argument or a file is not as it should be; names which and where.
    """
    if min(args.k, default=1) < 1:
        raise ValueError(f"--k: got {min(args.k)}, allowed: whole numbers >= 1")
    if args.limit is not None and not args.tokenizer:
        raise ValueError("--limit: needs --tokenizer, which counts the tokens")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit: got {args.limit}, allowed: a whole number >= 1")
    if args.seed < 0:
        raise ValueError(f"--seed: got {args.seed}, allowed: a whole number >= 0")
    results, notes = [], []
    for file in args.files:
        rows = read_dump(file)
        notes += repeats(rows, file)
        if args.regrade:
            rows = regrade(rows, args.benchmark or "")
        if args.tokenizer:
            rows = count_tokens(rows, args.tokenizer, args.limit)
        results += [
            Result(file, step, summary)
            for step, responses in by_step(rows, file, args.benchmark or UNKNOWN).items()
            for summary in summarise(responses, args.k, args.seed)
        ]
    if args.json:
        print(
            json.dumps(
                {"seed": args.seed, "results": [result.as_dict() for result in results]}, indent=2
            )
        )
    else:
        _print_table(results)
        print("".join(f"note: {note}\n" for note in notes), end="")
    return 0


@dataclass(frozen=True)
class Result:
    """One benchmark at one step of one file."""

    file: Path
    step: int | None
    summary: Summary

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: null."""
        found = {"file": str(self.file), "step": self.step, **asdict(self.summary)}
        text = json.dumps(found, default=str)
        return json.loads(text, parse_constant=lambda constant: None)


def read_dump(file: Path) -> list[dict[str, Any]]:
    """Rows of a dump, the last output of each session, each with its ``problem``, see
    ``_problems``.

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
    """The rows with ``problem``: what samples of one problem have in common.

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
    """A note where the validation file holds problems several times.

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
    """By session: an agent loop may have several outputs, of which verl scores the last."""
    last: dict[Any, dict[str, Any]] = {}
    highest: dict[Any, int] = {}
    for number, row in enumerate(rows):
        uid, session, output = _key(row)
        key = (uid, session) if session is not None else number
        if output >= highest.get(key, 0):
            last[key], highest[key] = row, output
    return last


def _key(row: dict[str, Any]) -> tuple[str, str | None, int]:
    """uid, session and output of verl's key ``{uid}_{session}_{output}``; the prompt where there is
    none."""
    parts = str(row.get("uid", "")).rsplit("_", 2)
    if len(parts) == 3 and parts[2].isdecimal():
        return parts[0], parts[1], int(parts[2])
    return row["input"], None, 0


def by_step(
    rows: list[dict[str, Any]], file: Path, benchmark: str
) -> dict[int | None, list[Response]]:
    """Graded responses by step.

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


def regrade(rows: list[dict[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    """The rows with our own grades.

    Raises:
        ValueError: a row has no ground truth.
    """
    from tqdm import tqdm

    from recipe.prune_opd import grading

    for row in rows:
        if row.get("gts") is None:
            raise ValueError("--regrade: the dump has a response without ground truth (gts)")

    def grade(row: dict[str, Any]) -> dict[str, Any]:
        found = grading.compute_score(
            row.get("data_source") or benchmark, row["output"], row["gts"]
        )
        return {**row, **{name: found[name] for name in ("score", "acc", "pred", "unread")}}

    with ThreadPoolExecutor(grading.PROCESSES) as pool:
        return list(
            tqdm(
                pool.map(grade, rows),
                total=len(rows),
                desc="grading",
                unit="response",
                disable=None,
            )
        )


def count_tokens(
    rows: list[dict[str, Any]], tokenizer: str, limit: int | None
) -> list[dict[str, Any]]:
    """The rows with ``tokens`` and, under a limit, ``truncated`` where they lack them.

    Dumps hold decoded text: encoded again it may have a few tokens more or fewer than were sampled.

    Raises:
        ValueError: there is no such tokenizer.
    """
    from tqdm import tqdm
    from transformers import AutoTokenizer

    check_model("--tokenizer", tokenizer, TEXT_FILES)
    try:
        encode = AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the tokenizers library raises plain exceptions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"--tokenizer: {tokenizer} cannot be loaded ({reason})") from error

    def counted() -> Iterator[dict[str, Any]]:
        for row in tqdm(rows, desc="counting tokens", unit="response", disable=None):
            tokens = row.get("tokens")
            if tokens is None:
                tokens = len(encode(row["output"], add_special_tokens=False)["input_ids"])
            truncated = row.get("truncated")
            if truncated is None and limit is not None:
                truncated = tokens >= limit
            yield {**row, "tokens": tokens, "truncated": truncated}

    return list(counted())


def _print_table(results: list[Result]) -> None:
    from rich.table import Table

    caption = f"brackets: {LEVEL:.0%} intervals over problems"
    table = Table(caption=caption, caption_justify="left")
    several = len({result.file for result in results}) > 1
    names = ["step", "benchmark", "problems", "n", "avg@n", "pass@k", "tokens", "cut", "unread"]
    for name in ["file", *names] if several else names:
        table.add_column(name, justify="left" if name in ("file", "benchmark") else "right")
    for result in results:
        cells = _cells(result)
        table.add_row(*([str(result.file)] if several else []), *cells)
    show(table, width=130)
    for result in results:
        if result.summary.reasons:
            reasons = ", ".join(f"{name} {count}" for name, count in result.summary.reasons.items())
            print(f"unread in {result.summary.benchmark}, step {result.step}: {reasons}")
    if any(result.summary.average.method == NONE for result in results):
        print("no interval: one problem says nothing about others")


def _cells(result: Result) -> list[str]:
    found = result.summary
    fewest, most = found.responses
    passed = "\n".join(f"{k}: {_percent(estimate)}" for k, estimate in found.passed.items())
    return [
        "-" if result.step is None else str(result.step),
        found.benchmark,
        str(found.problems),
        str(most) if fewest == most else f"{fewest} to {most}",
        _percent(found.average),
        passed,
        _range(found.tokens, lambda value: f"{value:,.0f}") if found.tokens else "-",
        f"{found.truncated.mean:.1%}" if found.truncated else "-",
        f"{found.unread.mean:.1%}",
    ]


def _percent(estimate: Estimate) -> str:
    return _range(estimate, lambda value: f"{100 * value:.1f}")


def _range(estimate: Estimate, shown: Any) -> str:
    if estimate.method == NONE:
        return shown(estimate.mean)
    return f"{shown(estimate.mean)} [{shown(estimate.low)}, {shown(estimate.high)}]"
