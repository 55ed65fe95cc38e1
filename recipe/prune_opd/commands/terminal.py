"""Output of commands on a terminal: tables and progress."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")


def console(**settings: Any) -> "Console":
    """Open the terminal to print on.

    Names, paths and tokens may come from anywhere: what they hold is text, never rich's markup nor
    the name of an emoji.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, **settings)


def show(table: "Table", width: int) -> None:
    """Print a table in the width of the terminal, but at least in this one."""
    console(width=max(console().width, width)).print(table)


def progress(items: Iterable[T], what: str, unit: str, total: int | None = None) -> "Iterable[T]":
    """Pass items on under a bar on a terminal, and without one elsewhere.

    Args:
        items: what takes long to go through.
        what: is done with them.
        unit: name of an item.
        total: number of items, where they do not tell it.
    """
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, total=total, disable=None)
