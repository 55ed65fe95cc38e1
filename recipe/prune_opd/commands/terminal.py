"""What commands print."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console(**settings: Any) -> "Console":
    """The terminal. Names, paths and tokens may come from anywhere: what they hold is text, never
    rich's markup nor the name of an emoji.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, **settings)


def show(table: "Table", width: int) -> None:
    """Print a table in the width of the terminal, but at least in this one."""
    console(width=max(console().width, width)).print(table)
