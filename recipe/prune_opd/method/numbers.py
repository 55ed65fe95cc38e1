"""Parameters of rules, refused where a rule could do nothing sensible with them."""

from typing import Any

MOST = 2**31
"""Bound of whole numbers: no response has so many tokens, and tensors hold it."""


def require_whole(**given: Any) -> None:
    """Refuse what is no whole number.

    Args:
        **given: parameters by name.

    Raises:
        ValueError: names the first that is none.
    """
    for name, value in given.items():
        if type(value) is not int:
            raise ValueError(f"{name} must be a whole number, got {value!r}")


def require_count(**given: Any) -> None:
    """Refuse what is no whole number from 1 to ``MOST``, see ``require_whole``."""
    require_whole(**given)
    for name, value in given.items():
        if not 1 <= value <= MOST:
            raise ValueError(f"{name} must be a whole number from 1 to {MOST}, got {value}")


def require_rate(**given: Any) -> None:
    """Refuse what is no number in [0, 1), see ``require_whole``."""
    for name, value in given.items():
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
