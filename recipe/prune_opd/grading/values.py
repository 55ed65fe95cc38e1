"""Values that an answer can be."""

from dataclasses import dataclass
from typing import Any


class UnreadableError(ValueError):
    """Text that is no answer."""


@dataclass(frozen=True)
class Value:
    """An answer, with its text in the notation of ``canonical``."""

    text: str


@dataclass(frozen=True)
class Word(Value):
    r"""Text that is compared as text: ``\text{even}``, ``3:00``."""


@dataclass(frozen=True)
class Quantity(Value):
    """Expression of sympy, or a matrix.

    Attributes:
        expression: without decimals, which are exact fractions.
        unit: what ends it, "" for none.
        base: of its digits, "" for none.
        percent: whether a percent sign follows; not part of ``expression``.
        decimals: digits behind the point of a number that is written with one, else None.
    """

    expression: Any
    unit: str = ""
    base: str = ""
    percent: bool = False
    decimals: int | None = None


@dataclass(frozen=True)
class Listing(Value):
    """Answers in any order; ``kind``: ``{}`` for a set, else ``or``, ``and``, or a comma."""

    items: tuple[Value, ...]
    kind: str


@dataclass(frozen=True)
class Group(Value):
    """A tuple or interval: values in order, between brackets ``(``, ``[``, ``)``, ``]``."""

    opening: str
    items: tuple[Value, ...]
    closing: str


@dataclass(frozen=True)
class Region(Value):
    """Sets joined by union, intersection or difference, or a named one, which has no operators."""

    parts: tuple[Value, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Relation(Value):
    """A chain ``a < x <= b`` or equation: terms and the signs between them."""

    terms: tuple[Value, ...]
    signs: tuple[str, ...]
