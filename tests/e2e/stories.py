"""Runs with a story: what is done to their processes while they go on, and what was seen of it.

A process is halted by a signal, so that the moment of the next fault is known.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import harness
import psutil
import torch

SERVER = {"vllm": "ray::vLLMHttpServer", "sglang": "ray::SGLangHttpServer"}[harness.ENGINE]
TRAINER, LOOPS, DRIVER = (
    f"ray::{name}" for name in ("WorkerDict", "AgentLoopWorker", "TaskRunner")
)
HALT, WATCH, DEADLINE = 10.0, 240.0, 30.0
"""Seconds that a process is halted for, that a run without one may take to end, and that it may
stand still."""
SAVED = 4
"""Steps between two checkpoints."""
Story = Iterator[None]


@dataclass
class Scene:
    """A run while it goes on."""

    folder: Path

    def __post_init__(self):
        self.seen: dict[str, int] = {}
        """Steps that ended after a fault, by its name, before it was over."""
        self.steps: list[dict[str, float]] = []
        """What was logged of each: the next run writes its own in that place."""

    @property
    def done(self) -> int:
        """Steps that have ended."""
        file = self.folder / "metrics.jsonl"
        return len(file.read_text().splitlines()) if file.is_file() else 0

    def until(self, steps: int) -> Story:
        """Wait until so many more have ended."""
        wanted = self.done + steps
        while self.done < wanted:
            yield

    def reach(self, phase: str) -> Story:
        """Wait until the next begins: ``update``, when the tensors behind one were written, or
        ``save``, when a checkpoint's folder is there."""
        begun = {"update": "dump/step_*", "save": "checkpoints/global_step_*"}[phase]
        before = set(self.folder.glob(begun))
        while not set(self.folder.glob(begun)) - before:
            yield

    def watch(self, seconds: float, fault: str) -> Story:
        """Count the steps that end in a time."""
        before, end = self.done, time.monotonic() + seconds
        while time.monotonic() < end:
            self.seen[fault] = self.done - before
            yield


def named(name: str) -> list[psutil.Process]:
    """The run's processes of a name."""
    found = harness.started(name)
    assert found, f"no process {name}"
    return found


def kill(name: str) -> None:
    for process in named(name):
        harness.kill_with_children(process)


def kill_while_halted(scene: Scene, halted: str, killed: str) -> Story:
    """Kill one process while the run waits for another, which then goes on."""
    yield from scene.until(2)
    waiting = named(halted)
    for process in waiting:
        process.suspend()
    yield from scene.watch(HALT, f"{halted} halted")
    kill(killed)
    if halted != killed:
        for process in waiting:
            process.resume()
    yield from scene.watch(WATCH, killed)


def play(
    inputs: Path,
    folder: Path,
    story: Callable[[Scene], Story],
    given: Mapping[str, Any] = MappingProxyType({}),
    more: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Scene, harness.Run]:
    """Run until the story's end, or its own, with settings ``given`` and ``more`` in the
    environment."""
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    scene = Scene(folder)
    told, end = story(scene), object()
    settings = {
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.deadline": DEADLINE,
        "trainer.total_training_steps": 100,
        "trainer.total_epochs": 100,
        "trainer.save_freq": SAVED,
        "trainer.max_actor_ckpt_to_keep": 2,
    }
    run = harness.run(
        inputs, folder, settings | given, kill_when=lambda: next(told, end) is end, more=more
    )
    scene.steps = run.steps
    return scene, run


def goes_on_from_a_checkpoint(scene: Scene) -> None:
    """Its first step is the one after a checkpoint, and everything in it is a number."""
    first = scene.steps[0]
    assert first["training/global_step"] % SAVED == 1
    assert first["training/global_step"] > 1
    numbers = [value for name, value in first.items() if name.startswith("prune_opd/")]
    assert torch.tensor(numbers).isfinite().all()


def is_ended_by_the_watch(run: harness.Run, process: str) -> None:
    assert run.returncode == 1, run.output[-3000:]
    said = run.output.partition("the run is ended: no step has ended for ")[2].partition("\n")[0]
    assert f" s (prune_opd.deadline) since {process}" in said
    assert "died; start it again, it goes on from the last checkpoint" in said
