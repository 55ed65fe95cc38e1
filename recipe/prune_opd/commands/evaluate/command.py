"""Accuracy, lengths and failures from verl's validation dumps.

Reads the files {step}.jsonl that verl writes to trainer.validation_data_dir. Which benchmark a
response belongs to, its length in tokens and whether the limit cut it are in the dump where
recipe.prune_opd.grading graded it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from recipe.prune_opd.commands.arguments import WHOLE, paths, several
from recipe.prune_opd.commands.evaluate.dumps import DUMP, by_step, read_dump, repeats
from recipe.prune_opd.commands.evaluate.evaluation import (
    LEVEL,
    NONE,
    SEED,
    Estimate,
    Summary,
    summarise,
)
from recipe.prune_opd.commands.evaluate.texts import count_tokens, regrade
from recipe.prune_opd.commands.terminal import as_json, finite, say, show

UNKNOWN = "unknown"
"""Benchmark of responses whose dump does not name one."""
COLUMNS = (
    "file",
    "step",
    "benchmark",
    "problems",
    "n",
    "avg@n",
    "pass@k",
    "tokens",
    "cut",
    "unread",
)


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    files: Annotated[
        Positional[tuple[Path, ...]], paths(DUMP, "FILE.jsonl"), arg(help_behavior_hint="")
    ]
    """validation dumps of verl"""
    k: Annotated[
        tuple[int, ...],
        several(int, "whole numbers >= 1", "K"),
        arg(help_behavior_hint="(default: responses per problem)"),
    ] = ()
    """k of pass@k"""
    benchmark: str | None = None
    """name of the benchmark, where the dump names none"""
    regrade: bool = False
    """grade the texts again instead of taking the scores"""
    tokenizer: Annotated[str | None, arg(metavar="PATH")] = None
    """folder or hub name: counts tokens where the dump does not"""
    limit: Annotated[int | None, WHOLE] = None
    """tokens a response could have; with --tokenizer tells the cut ones"""
    seed: Annotated[int, WHOLE] = SEED
    """seed of the bootstrap"""
    json: bool = False
    """print a JSON object instead of the table"""

    def check(self) -> None:
        """Refuse values that the types allow and of which nothing can be made.

        Raises:
            ValueError: names the option.
        """
        if min(self.k, default=1) < 1:
            raise ValueError(f"--k: got {min(self.k)}, allowed: whole numbers >= 1")
        if self.limit is not None and not self.tokenizer:
            raise ValueError("--limit: needs --tokenizer, which counts the tokens")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit: got {self.limit}, allowed: a whole number >= 1")
        if self.seed < 0:
            raise ValueError(f"--seed: got {self.seed}, allowed: a whole number >= 0")


def run(args: Arguments) -> int:
    """Evaluate the dumps and print.

    Raises:
        ValueError: an argument or a file is not as it should be; names which and where.
    """
    args.check()
    results: list[Result] = []
    notes: list[str] = []
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
        found = {"seed": args.seed, "results": [result.as_dict() for result in results]}
        say(as_json(found))
    else:
        _print_table(results)
        for note in notes:
            say(f"note: {note}")
    return 0


@dataclass(frozen=True)
class Result:
    """One benchmark at one step of one file."""

    file: Path
    step: int | None
    summary: Summary

    def as_dict(self) -> dict[str, Any]:
        """Make it ready for JSON, which has no NaN: null."""
        return finite({"file": str(self.file), "step": self.step, **asdict(self.summary)})


def _print_table(results: list[Result]) -> None:
    from rich.table import Table

    caption = f"brackets: {LEVEL:.0%} intervals over problems"
    table = Table(caption=caption, caption_justify="left")
    first = 0 if len({result.file for result in results}) > 1 else 1  # one file needs no column
    for name in COLUMNS[first:]:
        table.add_column(name, justify="left" if name in ("file", "benchmark") else "right")
    for result in results:
        table.add_row(*_cells(result)[first:])
    show(table, width=130)
    for result in results:
        if result.summary.reasons:
            reasons = ", ".join(f"{name} {count}" for name, count in result.summary.reasons.items())
            say(f"unread in {result.summary.benchmark}, step {result.step}: {reasons}")
    if any(result.summary.average.method == NONE for result in results):
        say("no interval: one problem says nothing about others")


def _cells(result: Result) -> list[str]:
    found = result.summary
    fewest, most = found.responses
    passed = "\n".join(f"{k}: {_percent(estimate)}" for k, estimate in found.passed.items())
    return [
        str(result.file),
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
