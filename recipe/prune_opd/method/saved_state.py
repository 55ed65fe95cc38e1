"""State of a budget, read out of a checkpoint."""

from typing import Any


def saved(state: Any, *names: str) -> list[int]:
    """Whole numbers of a budget's saved state.

    Raises:
        ValueError: a value is missing or of another kind.
    """
    if not isinstance(state, dict):
        raise ValueError(
            f"budget: got {state!r:.60}, allowed: an object with {' and '.join(names)}"
        )
    for name in names:
        if name not in state:
            raise ValueError(f"budget.{name} is missing, found: {', '.join(state) or 'nothing'}")
        whole(name, state[name])
    return [state[name] for name in names]


def whole(name: str, value: Any) -> int:
    """A number of a budget's saved state.

    Raises:
        ValueError: it is no whole number from 0 on.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"budget.{name}: got {value!r:.60}, allowed: a whole number >= 0")
    return value


def require_inside(limit: int, least: int, most: int) -> None:
    """Check that a saved limit is one that this run may have.

    Raises:
        ValueError: it is not.
    """
    if not least <= limit <= most:
        raise ValueError(
            f"prune_opd.budget: the checkpoint's limit is {limit}, outside min = {least} and"
            f" max = {most}; resume with bounds that contain it"
        )
