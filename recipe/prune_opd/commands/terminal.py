"""Output of commands on a terminal: sentences, tables, JSON and progress.

Names, paths and texts may come from anywhere: nothing in them moves a terminal's cursor.
"""

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from verl_ext.texts import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")


def console(**settings: Any) -> "Console":
    """Open the terminal to print on.

    What is printed is text: never rich's markup nor the name of an emoji, and no control sequence.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Terminal(Console):
        def render_str(self, text: str, **given: Any) -> Any:
            return super().render_str(visible(text), **given)

        def render(self, *given: Any, **settings: Any) -> Iterable[Segment]:
            for text, style, control in super().render(*given, **settings):
                yield Segment(text if control else visible(text), style, control)

    return Terminal(markup=False, emoji=False, **settings)


def say(text: str) -> None:
    """Print text as it is, but for control characters."""
    print(visible(text))


def as_json(value: Any, ascii_only: bool = True) -> str:
    """Write a value as JSON, which has no number for NaN and infinity: null.

    Args:
        value: of dicts, lists, texts and numbers; anything else is written as its text.
        ascii_only: escape all that is not ASCII, not only what a terminal would obey.
    """
    text = json.dumps(
        finite(value), indent=2, allow_nan=False, ensure_ascii=ascii_only, default=str
    )
    return visible(text)


def finite(value: Any) -> Any:
    """The same value with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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

    return tqdm(items, desc=visible(what), unit=unit, total=total, disable=None)
