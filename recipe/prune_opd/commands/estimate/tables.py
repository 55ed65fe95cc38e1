"""Answer of an estimate as tables for people."""

from typing import TYPE_CHECKING, Any

from recipe.prune_opd.commands.terminal import console

if TYPE_CHECKING:
    from rich.table import Table


def show(answer: dict[str, Any]) -> None:
    """Print the tables of an answer.

    Args:
        answer: of ``estimate``.
    """
    terminal = console()
    for name, shape in answer["models"].items():
        terminal.print(
            f"{name}: {shape['parameters']:,} parameters, {shape['layers']} layers, vocabulary"
            f" {shape['vocabulary']:,}"
        )
    terminal.print(_scenarios(answer["scenarios"]))
    terminal.print(_parts(answer["scenarios"]))
    terminal.print(_memory(answer["memory"]))
    terminal.print(_values(answer["values"]))
    for note in answer["notes"]:
        terminal.print(f"Note: {note}.")


def _table(title: str, *columns: str, left: int = 1) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=i == 0)
    return table


def _scenarios(scenarios: list[dict[str, Any]]) -> "Table":
    table = _table(
        "Whole run", "", "limit", "length", "M tokens", "EFLOP", "hours", "GPUs", "GPU h", "saved"
    )
    first = scenarios[0]
    for row in scenarios:
        table.add_row(
            row["name"],
            f"{row['limit']:,.0f}",
            f"{row['response_length']:,.0f}",
            f"{row['tokens'] / 1e6:,.1f}",
            f"{row['exaflops']:,.3g}",
            f"{row['hours']:,.1f}",
            f"{row['gpus']}",
            f"{row['gpu_hours']:,.0f}",
            "" if row is first else f"{1 - row['hours'] / first['hours']:.0%}",
        )
    return table


def _parts(scenarios: list[dict[str, Any]]) -> "Table":
    names = list(scenarios[0]["seconds_per_step"])
    table = _table("Seconds of a step", "", *(name.replace("_", " ") for name in names), "all")
    for row in scenarios:
        parts = row["seconds_per_step"]
        table.add_row(
            row["name"], *(f"{parts[name]:,.1f}" for name in names), f"{sum(parts.values()):,.1f}"
        )
    return table


def _memory(rows: list[dict[str, Any]]) -> "Table":
    from recipe.prune_opd.commands.estimate.costs import readable

    table = _table("Memory of a GPU", "", "when", "size", "how", left=2)
    table.columns[3].justify = "left"
    for row in rows:
        table.add_row(row["what"], row["when"], readable(row["bytes"]), row["how"])
    return table


def _values(rows: list[dict[str, Any]]) -> "Table":
    table = _table("What went in", "", "value", "from", "meaning")
    table.columns[2].justify = table.columns[3].justify = "left"
    for row in rows:
        style = "bold" if row["source"] == "assumed" else None
        table.add_row(row["name"], f"{row['value']:g}", row["source"], row["meaning"], style=style)
    return table
