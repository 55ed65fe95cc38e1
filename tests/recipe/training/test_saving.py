"""A run with an asynchronous trainer goes on with what was under way, and with nothing else.

What is real: the trainer's hooks. TransferQueue and verl's own checkpoint are stood in for.
"""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.training import saving
from recipe.prune_opd.training.trainer import PruneOPDTrainer

PROMPT, RESPONSE = {"is_prompt": True, "status": "finished"}, {"status": "success"}


class OverColocated(PruneOPDTrainer, PPOTrainerColocateAsync):
    """The trainer over an asynchronous one."""


class Queue:
    """Stands for TransferQueue after verl has loaded it; notes what is cleared."""

    def __init__(self, **tags: dict[str, Any]):
        self.tags, self.cleared = tags, []

    def kv_list(self, partition_id: str) -> dict[str, Any]:
        return {partition_id: self.tags} if self.tags else {}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        assert partition_id == "train"
        self.cleared += keys


@pytest.fixture
def trainer(tmp_path, monkeypatch) -> Any:
    """A trainer whose checkpoints verl reads and writes with nothing in them."""
    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", lambda self: None)
    monkeypatch.setattr(
        PPOTrainer, "_load_checkpoint", lambda self: vars(self).update(global_steps=self.found)
    )
    one = object.__new__(OverColocated)
    node = {
        "default_local_dir": str(tmp_path),
        "resume_mode": "resume_path",
        "resume_from_path": str(tmp_path / "global_step_3"),
    }
    vars(one).update(
        config=OmegaConf.create({"trainer": node}),
        prune_opd=PruneOPDConfig.model_validate({"teacher": {"path": "T"}}),
        budget=ResponseBudget(init=32, min=16, max=96),
        phase=None,
        trainer_mode="colocate_async",
        global_steps=3,
        found=3,
    )
    return one


def test_what_was_trained_on_in_the_step_of_the_checkpoint_is_cleared(trainer, monkeypatch):
    """verl saves before it clears: their prompt has left the queue, and nobody would ask for them
    again. So with padding."""
    under_way = {"u1": PROMPT, "u1_0_0": RESPONSE, "u1_1_0": RESPONSE, "u2": PROMPT}
    left = {"u3_0_0": RESPONSE, "u3_1_0": RESPONSE, "padding": RESPONSE | {"is_padding": True}}
    queue = Queue(**under_way, **left)
    monkeypatch.setattr(saving, "tq", queue)
    trainer._save_checkpoint()
    trainer._load_checkpoint()
    assert queue.cleared == list(left)


@pytest.mark.parametrize("tags", [{}, {"u1": PROMPT, "u1_0_0": RESPONSE}])
def test_where_nothing_is_left_nothing_is_cleared(trainer, monkeypatch, tags):
    queue = Queue(**tags)
    monkeypatch.setattr(saving, "tq", queue)
    trainer._save_checkpoint()
    trainer._load_checkpoint()
    assert queue.cleared == []


def test_a_new_run_and_a_synchronous_one_clear_nothing(trainer, monkeypatch):
    monkeypatch.setattr(saving, "tq", None)
    trainer._save_checkpoint()
    trainer.trainer_mode = "sync"
    trainer._load_checkpoint()
    trainer.trainer_mode, trainer.found = "colocate_async", 0
    trainer._load_checkpoint()


def test_a_step_that_fails_goes_back_to_the_last_checkpoint(trainer, tmp_path, monkeypatch):
    """There is no state before the step to be saved: its prompts have left the queue."""
    trainer.global_steps = 2
    assert trainer._save_before_step() == "no checkpoint has been saved yet, start again"
    trainer._save_checkpoint()
    trainer.global_steps = 5
    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", lambda self: pytest.fail("saved"))
    folder = Path(tmp_path / "global_step_2")
    assert trainer._save_before_step().startswith(f"the state after step 2 is in {folder}, where")
