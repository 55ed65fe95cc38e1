"""State in a checkpoint beside verl's own: that of the budget, and the phase of Semi-OPD, in a file
of the same folder."""

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recipe.prune_opd.checks.files import check_place, reason_of
from recipe.prune_opd.checks.rollouts import read_rollouts_id
from recipe.prune_opd.config import PruneOPDConfig, shown
from recipe.prune_opd.method.budget import Budget
from recipe.prune_opd.method.phase import RolloutPhase
from verl_ext.files import parse_json, write_whole

STATE_FILE = "prune_opd.json"
TRACKER = "latest_checkpointed_iteration.txt"
"""File by which verl knows its newest whole checkpoint."""
RESUME = (
    "resume from an earlier checkpoint (trainer.resume_from_path), or start from the weights of"
    " this one (actor_rollout_ref.model.path) with trainer.resume_mode=disable"
)
"""Advice about a state that cannot be read."""


def save_state(folder: Path, budget: Budget, phase: RolloutPhase | None = None) -> None:
    """Write the state file into a checkpoint's folder, whole or not at all.

    Raises:
        RuntimeError: it cannot be written; says that earlier checkpoints are as they were.
    """
    state = {"budget": budget.state_dict()} | ({"semi": phase.state_dict()} if phase else {})
    file = folder / STATE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(state))
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RuntimeError(
            f"{file} cannot be written ({why}): this checkpoint is not saved, earlier ones are as"
            " they were; the run goes on from the last of them when it is started again"
        ) from error


def load_state(folder: Path, budget: Budget, phase: RolloutPhase | None = None) -> None:
    """Go on from the state file in a checkpoint's folder: ``{"budget": state_dict()}``, and
    ``"semi"`` of a run with Semi-OPD.

    Args:
        folder: of the checkpoint.
        budget: gets the state.
        phase: gets the state; None without Semi-OPD, where a phase in the file does not matter.

    Raises:
        ValueError: there is none, it cannot be read, is not such a file, or does not fit this
            budget or phase; names the file.
    """
    file = folder / STATE_FILE
    state = _read(file)
    if phase is not None and "semi" not in state:
        raise ValueError(
            f"{file} has no phase of Semi-OPD: its run had prune_opd.semi.enable=false, so no"
            " rollouts of its starting student; start from its weights"
            " (actor_rollout_ref.model.path), trainer.resume_mode=disable"
        )
    try:
        budget.load_state_dict(state["budget"])
        if phase is not None:
            phase.load_state_dict(state["semi"])
    except Exception as error:  # of a budget of the user's own
        raise ValueError(f"{file}: {reason_of(error)}") from error


def check_checkpoint(config: DictConfig, prune_opd: PruneOPDConfig) -> None:
    """Check the state that the run will go on from, and the place of the checkpoints: verl looks at
    both once the models are loaded, at the second after the first steps.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it, lengths resolved.

    Raises:
        ValueError: names the file or the key, what was found and what is needed.
    """
    trainer = config.trainer
    if trainer.save_freq > 0:
        check_place("trainer.default_local_dir", Path(trainer.default_local_dir))
    folder = _resumed(trainer)
    if folder is None:
        return
    phase = None
    if prune_opd.semi.enable:
        rollouts = read_rollouts_id(Path(str(prune_opd.semi.dir)))
        phase = prune_opd.semi.new_phase(rollouts or "no rollouts")
    load_state(folder, prune_opd.budget.build(), phase)


def _resumed(trainer: DictConfig) -> Path | None:
    """Folder of the checkpoint that verl will load; None for a run from its start.

    Raises:
        ValueError: there is none where one is named; names the file.
    """
    if trainer.resume_mode == "resume_path":
        named = Path(trainer.resume_from_path)
        if not os.path.isdir(named):
            raise ValueError(
                f"trainer.resume_from_path: {shown(str(named), 200)} does not exist, allowed: a"
                " folder global_step_N"
            )
        return named
    tracker = Path(trainer.default_local_dir) / TRACKER
    if trainer.resume_mode != "auto" or not os.path.exists(tracker):
        return None
    try:
        step = int(tracker.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{tracker} cannot be read ({reason_of(error)}), needed: the number of the newest"
            " checkpoint that is whole; write it there, or name the checkpoint with"
            " trainer.resume_mode=resume_path and trainer.resume_from_path"
        ) from error
    folder = tracker.parent / f"global_step_{step}"
    return folder if os.path.isdir(folder) else None  # verl starts anew then


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist: the checkpoint was not written by the prune_opd trainer, so it"
            " cannot be resumed exactly; start from its weights (actor_rollout_ref.model.path),"
            " trainer.resume_mode=disable"
        )
    try:
        state = parse_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): {RESUME}") from error
    except ValueError as error:
        raise ValueError(f"{file} is {error}, it was cut off or changed: {RESUME}") from error
    if not isinstance(state, dict) or "budget" not in state:
        raise ValueError(f"{file} has no budget, it was changed or is of another version: {RESUME}")
    return state


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
