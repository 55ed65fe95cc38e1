"""State in a checkpoint beside verl's own: the budget's state, in a file of the same folder."""

import json
from pathlib import Path
from typing import Any

from recipe.prune_opd.method.budget import Budget

STATE_FILE = "prune_opd.json"
RESUME = (
    "resume from an earlier checkpoint (trainer.resume_from_path), or start from the weights of"
    " this one (actor_rollout_ref.model.path) with trainer.resume_mode=disable"
)
"""Advice about a state that cannot be read."""


def save_state(folder: Path, budget: Budget) -> None:
    """Write the state file into a checkpoint's folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{STATE_FILE}.partial"
    partial.write_text(json.dumps({"budget": budget.state_dict()}))
    partial.replace(folder / STATE_FILE)


def load_state(folder: Path, budget: Budget) -> None:
    """Go on from the state file in a checkpoint's folder: ``{"budget": state_dict()}``.

    Raises:
        ValueError: there is none, it cannot be read, is not such a file, or does not fit this
            budget; names the file.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist: the checkpoint was not written by the prune_opd trainer, so it"
            " cannot be resumed exactly; start from its weights (actor_rollout_ref.model.path),"
            " trainer.resume_mode=disable"
        )
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): {RESUME}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file} is no JSON ({reason}), it was cut off or changed: {RESUME}"
        ) from error
    if not isinstance(state, dict) or "budget" not in state:
        raise ValueError(f"{file} has no budget, it was changed or is of another version: {RESUME}")
    try:
        budget.load_state_dict(state["budget"])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


class Frozen:
    """A dataloader's state of some moment, for verl to save in the dataloader's place.

    Args:
        state: of ``state_dict``.
    """

    def __init__(self, state: Any):
        self._state = state

    def state_dict(self) -> Any:
        """The state of that moment."""
        return self._state
