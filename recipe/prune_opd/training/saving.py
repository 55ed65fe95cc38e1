"""The trainer's checkpoints: verl's, with the state of the method, and what a resumed run must put
right."""

import logging
import os
from pathlib import Path
from typing import Any

import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.budget import Budget
from recipe.prune_opd.method.phase import RolloutPhase
from recipe.prune_opd.training.checkpoint import Frozen, State, load_state, save_state

logger = logging.getLogger(__name__)


class Saving(PPOTrainer):
    """Mixin below ``PruneOPD``."""

    prune_opd: PruneOPDConfig
    budget: Budget
    phase: RolloutPhase | None
    global_steps: int
    train_dataloader: Any

    _data_before: tuple[int, Any] = (0, None)
    """A step, and the dataloader's state before it."""
    _checkpoint: tuple[int, Path | None] = (0, None)
    """The newest checkpoint of this run, saved or loaded: its step and its folder."""

    @property
    def _state(self) -> State:
        return State(self.prune_opd, self.budget, self.phase)

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """Remembers where the data was before the step; before the first there is nothing to go
        back to."""
        if self.train_dataloader_it is not None and self._data_before[0] != self.global_steps:
            self._data_before = self.global_steps, self.train_dataloader.state_dict()
        return super()._next_train_batch(num_prompts)

    def _save_before_step(self) -> str:
        """Save the state before the current step, whose batch did not touch it, and say where it
        is.

        An asynchronous trainer has none: other prompts are under way, and those of this step have
        left their queue.
        """
        before = self.global_steps - 1
        if self.trainer_mode == "sync" and before and self._checkpoint[0] != before:
            self.global_steps, self.train_dataloader = before, Frozen(self._data_before[1])
            self._save_checkpoint()
        step, folder = self._checkpoint
        if folder is None:
            kept = "no checkpoint has been saved" if before else "no step has been trained"
            return f"{kept} yet, start again"
        which = "before this step" if step == before else f"after step {step}"
        return (
            f"the state {which} is in {folder}, where the run goes on when it"
            " is started again (trainer.resume_mode=auto)"
        )

    def _save_checkpoint(self) -> None:
        """The budget's state goes in first: verl's last act is the file that declares the
        checkpoint complete."""
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        save_state(folder, self._state)
        super()._save_checkpoint()
        self._checkpoint = self.global_steps, folder

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        trainer = self.config.trainer
        folder = trainer.resume_from_path
        if trainer.resume_mode == "auto":
            folder = find_latest_ckpt_path(os.path.abspath(trainer.default_local_dir))
        load_state(Path(folder), self._state)
        self._checkpoint = self.global_steps, Path(folder)
        if self.trainer_mode != "sync":
            _clear_orphans()


def _clear_orphans(partition: str = "train") -> None:
    """Drop responses whose prompt is not waiting any more: those of the step that was saved, which
    verl saves before it clears them. Nobody would ever ask for them again."""
    found: dict[str, dict[str, Any]] = (tq.kv_list(partition) or {}).get(partition, {})
    prompts = {key for key, tag in found.items() if tag.get("is_prompt", False)}
    orphans = [key for key in found if key not in prompts and key.split("_")[0] not in prompts]
    if orphans:
        tq.kv_clear(keys=orphans, partition_id=partition)
        logger.info("%d responses of the checkpoint's own step are cleared", len(orphans))
