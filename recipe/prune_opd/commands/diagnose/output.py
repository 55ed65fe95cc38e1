"""Output of ``diagnose``: tables for the terminal, a page, JSON, responses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.prune_opd.commands.diagnose.tables import (
    SHARES,
    columns_of_advice,
    expectation,
    gates_of_grid,
    rows_along,
    rows_of_advice,
    rows_of_grid,
    rows_of_kinds,
    summary,
)
from recipe.prune_opd.commands.files import check_out, write_out
from recipe.prune_opd.commands.pair.rules import SYMBOLS
from recipe.prune_opd.commands.terminal import console, say


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found about a pair."""

    answer: dict[str, Any]
    """Content that ``--json`` prints."""
    examples: list[dict[str, Any]]
    """Some responses for the page, see ``tokens.examples``."""
    rollouts: list[dict[str, Any]]
    """All responses, as ``--rollouts`` reads them."""


# -------------------------------------------------------------------------------------------- files


def page_file(out: Path) -> Path:
    """File that the page goes to."""
    return out if out.suffix == ".html" else out / "diagnosis.html"


def _files(out: Path) -> tuple[Path, Path, Path]:
    """Files of page, JSON and responses."""
    file = page_file(out)
    return file, file.with_suffix(".json"), file.with_suffix(".rollouts.jsonl")


def check_place(out: Path) -> None:
    """Refuse a place for the files that cannot take them, while nothing has been computed.

    Raises:
        ValueError: names the place.
    """
    try:
        page_file(out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out: {out} cannot be written ({error}), allowed: a folder or a .html"
        ) from error
    for file in _files(out):
        check_out(file, "a folder with another name, or a file ending in .html")


def write(found: Diagnosis, out: Path) -> None:
    """Write the responses, which took longest, the JSON and the page.

    Raises:
        ValueError: a file cannot be written; names it.
    """
    page, answer, rollouts = _files(out)
    write_out(rollouts, "".join(f"{json.dumps(line)}\n" for line in found.rollouts))
    write_out(answer, json.dumps(found.answer, indent=2))
    from recipe.prune_opd.commands.diagnose.page import draw

    write_out(page, draw(found.answer, found.examples))


# ------------------------------------------------------------------------------------------ printed


def show(answer: dict[str, Any]) -> None:
    """Print the verdict, tables, and settings to paste."""
    from rich.text import Text

    terminal = console(highlight=False)
    name, reason = answer["verdict"]["name"], answer["verdict"]["reason"]
    terminal.print(Text.assemble((name, "bold"), f": {reason}"))
    signal = answer["signal"]
    terminal.print(Text.assemble((signal["name"], "bold"), f": {signal['reason']}"))
    terminal.print(f"-> {signal['advice']}")
    terminal.print(summary(answer))
    for table in (_advice(answer), _along(answer), _kinds(answer), _tokens(answer)):
        terminal.print(table)
    terminal.print("Recommended:\n")
    # As it is, to be copied.
    say("\n".join(f"    {line} \\" for line in answer["recommended"]["overrides"])[:-2])
    terminal.print("\n" + "\n".join(f"- {reason}" for reason in answer["recommended"]["reasons"]))
    terminal.print(expectation(answer))
    for note in answer["notes"]:
        terminal.print(f"Note: {note}.")


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _advice(answer: dict[str, Any]) -> Any:
    title = "The teacher's advice before and after drift"
    return _table(title, columns_of_advice(answer), rows_of_advice(answer))


def _along(answer: dict[str, Any]) -> Any:
    title = f"Along the responses (probability of the top {answer['planned']['topk']})"
    columns = ["from token", "tokens", "overlap", "events", *SHARES.values()]
    return _table(title, columns, rows_along(answer))


def _kinds(answer: dict[str, Any]) -> Any:
    columns = ["kind", "of all tokens", "overlap", "events per token", "of all events"]
    return _table("By the student's token", columns, rows_of_kinds(answer))


def _tokens(answer: dict[str, Any]) -> Any:
    planned = answer["planned"]
    title = (
        f"Tokens per response by gate: generated/trained on, share saved; k = {planned['topk']},"
        " others: --json"
    )
    columns = [SYMBOLS[planned["metric"]], "w_drop", *gates_of_grid(answer)]
    return _table(title, columns, rows_of_grid(answer, planned["topk"]))
