"""What commands print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def show(table: "Table", width: int) -> None:
    """Print a table in the width of the terminal, but at least in this one.

    Names and paths may come from anywhere: what they hold is text, never rich's markup nor the name of an emoji.
    """
    from rich.console import Console

    Console(width=max(Console().width, width), markup=False, emoji=False).print(table)
