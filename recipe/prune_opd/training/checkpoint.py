"""State in a checkpoint beside verl's own, in a file of the same folder: of the budget, the keys
that it was reached with, and the phase of Semi-OPD."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recipe.prune_opd.checks.files import check_place, reason_of
from recipe.prune_opd.checks.rollouts import read_rollouts_id
from recipe.prune_opd.config import PruneOPDConfig, shown
from recipe.prune_opd.method.budget import Budget
from recipe.prune_opd.method.phase import RolloutPhase
from verl_ext.files import parse_json, write_whole

logger = logging.getLogger(__name__)

STATE_FILE = "prune_opd.json"
TRACKER = "latest_checkpointed_iteration.txt"
"""File by which verl knows its newest whole checkpoint."""
RESUME = (
    "resume from an earlier checkpoint (trainer.resume_from_path), or start from the weights of"
    " this one (actor_rollout_ref.model.path) with trainer.resume_mode=disable"
)
"""Advice about a state that cannot be read."""


@dataclass
class State:
    """State of a run that a checkpoint holds, beside what it must have in common with a run that
    goes on from it."""

    prune_opd: PruneOPDConfig
    budget: Budget
    phase: RolloutPhase | None = None
    """None without Semi-OPD."""

    @property
    def method(self) -> dict[str, Any]:
        """Keys of ``prune_opd`` without which the limit that was reached means something else."""
        given = self.prune_opd
        return {
            "teacher.models": given.teacher.models,
            "teacher.path": given.teacher.path or None,
            "topk": given.topk,
            "drift.metric": given.drift.metric,
            "drift.threshold": given.drift.threshold,
            "drift.scope": given.drift.scope,
            "strategy": given.strategy,
        }


def save_state(folder: Path, state: State) -> None:
    """Write the state file into a checkpoint's folder, whole or not at all.

    Raises:
        RuntimeError: it cannot be written; says that earlier checkpoints are as they were.
    """
    saved = {"budget": state.budget.state_dict(), "method": state.method}
    phase = {"semi": state.phase.state_dict()} if state.phase else {}
    file = folder / STATE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(saved | phase))
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RuntimeError(
            f"{file} cannot be written ({why}): this checkpoint is not saved, earlier ones are as"
            " they were; the run goes on from the last of them when it is started again"
        ) from error


def load_state(folder: Path, state: State) -> None:
    """Go on from the state file in a checkpoint's folder.

    It holds ``{"budget": state_dict()}``, ``"method"`` (not in checkpoints of earlier releases) and
    ``"semi"`` of a run with Semi-OPD, which does not matter to one without.

    A checkpoint without the file is one of a trainer without the method: a warning, and the limit
    is the first.

    Args:
        folder: of the checkpoint.
        state: gets what was saved.

    Raises:
        ValueError: the file cannot be read or does not fit this run; names the file.
    """
    file = folder / STATE_FILE
    semi = state.phase is not None
    if not file.exists() and not semi:
        logger.warning(
            f"{file} does not exist: the checkpoint was written by a trainer without Prune-OPD. Its"
            f" weights and data are gone on with, under the first limit, {state.budget.limit}"
        )
        return
    saved = _read(file) if file.exists() else {}
    if semi and "semi" not in saved:
        raise ValueError(
            f"{file} has no phase of Semi-OPD: its run had prune_opd.semi.enable=false, so no"
            " rollouts of its starting student; start from its weights"
            " (actor_rollout_ref.model.path), trainer.resume_mode=disable"
        )
    if state.prune_opd.resume == "strict":
        _refuse_other_method(file, saved.get("method", {}), state.method)
    try:
        state.budget.load_state_dict(saved["budget"])
        if state.phase is not None:
            state.phase.load_state_dict(saved["semi"])
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
    load_state(folder, State(prune_opd, prune_opd.budget.build(), phase))


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


def _refuse_other_method(file: Path, saved: Any, given: Mapping[str, Any]) -> None:
    if not isinstance(saved, dict):
        raise ValueError(f"{file}: method: got {saved!r:.60}, allowed: an object; {RESUME}")
    for key, value in given.items():
        if key in saved and saved[key] != value:
            raise ValueError(
                f"{file}: its run had prune_opd.{key}={saved[key]}, this one has {value}, under"
                " which its limit means something else; allowed: the same, or prune_opd.resume=any"
            )


def _read(file: Path) -> dict[str, Any]:
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
