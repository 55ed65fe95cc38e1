"""Types of arguments beyond tyro's own: one sentence says what is allowed in the place of a value.

They go into an annotation, ``length: Annotated[float | None, NUMBER] = None``.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

LARGEST = 2**31 - 1
"""Largest whole number: counts and seeds go through 32 bits in places."""
SHOWN = 80
"""Characters of a wrong value that a message repeats."""


def one(parse: Callable[[str], Any], allowed: str, metavar: str = "N") -> PrimitiveConstructorSpec:
    """Describe an argument of one value.

    Args:
        parse: the value out of the text; a ValueError says that it is none, an OverflowError that
            it is above ``LARGEST``.
        allowed: what is.
        metavar: stands for the value in the help.
    """

    def read(words: list[str]) -> Any:
        try:
            return parse(words[0])
        except (ValueError, OverflowError) as error:
            most = f", at most {LARGEST}" if isinstance(error, OverflowError) else ""
            raise ValueError(f"got {words[0][:SHOWN]}, allowed: {allowed}{most}") from error

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def several(
    parse: Callable[[str], Any], allowed: str, metavar: str = "N"
) -> PrimitiveConstructorSpec:
    """Describe an argument of one value or more, which come as a tuple; see ``one``."""
    single = one(parse, allowed)

    def read(words: list[str]) -> tuple[Any, ...]:
        if not words:
            raise ValueError(f"got none, allowed: {allowed}, one or more")
        return tuple(single.instance_from_str([word]) for word in words)

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{metavar} ...",
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda values: [str(value) for value in values],
    )


def whole(text: str, least: int) -> int:
    """Read a whole number of at least ``least``.

    Raises:
        ValueError: it is none.
        OverflowError: it is above ``LARGEST``.
    """
    number = int(text)
    if number < least:
        raise ValueError(text)
    if number > LARGEST:
        raise OverflowError(text)
    return number


def natural(text: str) -> int:
    """Read a whole number of at least 0, see ``whole``."""
    return whole(text, 0)


def not_negative(text: str) -> float:
    """Read a finite number of at least 0.

    Raises:
        ValueError: it is none.
    """
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number


def paths(allowed: str, metavar: str) -> PrimitiveConstructorSpec:
    """Describe an argument of one path or more; see ``one``."""
    return several(Path, allowed, metavar)


NUMBER = one(not_negative, "a number >= 0")
WHOLE = one(int, "a whole number")
NATURAL = one(natural, "a whole number >= 0")
