"""Processes of a run that are halted or killed: what is seen of it, and how the run goes on.

One folder for all runs: each goes on from the last checkpoint of the one before, as its user would
have it. A process is halted by a signal, so that the moment of the next fault is known.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import psutil
import pytest
import torch

from recipe.prune_opd.training.checkpoint import TRACKER

pytestmark = pytest.mark.e2e

SERVER, TRAINER, LOOPS, DRIVER = (
    f"ray::{name}" for name in ("vLLMHttpServer", "WorkerDict", "AgentLoopWorker", "TaskRunner")
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


def halt_each(scene: Scene) -> Story:
    """Halt one after the other, and let it go on."""
    for name in (SERVER, TRAINER, LOOPS, DRIVER):
        yield from scene.until(1)
        halted = named(name)
        for process in halted:
            process.suspend()
        yield from scene.watch(HALT, name)
        for process in halted:
            process.resume()
    yield from scene.until(2)
    yield from kill_while_halted(scene, SERVER, LOOPS)


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


def kill_server(scene: Scene) -> Story:
    """Kill the only rollout server in a rollout."""
    yield from scene.until(2)
    kill(SERVER)
    yield from scene.watch(WATCH, SERVER)


def play(inputs: Path, folder: Path, story: Callable[[Scene], Story]) -> tuple[Scene, harness.Run]:
    """Run until the story's end, or its own."""
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
    run = harness.run(inputs, folder, settings, kill_when=lambda: next(told, end) is end)
    scene.steps = run.steps
    return scene, run


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def halted(inputs, folder):
    return play(inputs, folder, halt_each)


@pytest.fixture(scope="session", params=[SERVER, TRAINER], ids=["in the rollout", "in scoring"])
def lost_trainer(halted, inputs, folder, request):
    """The trainer's worker is killed while the server generates, or while it scores."""
    return play(inputs, folder, lambda scene: kill_while_halted(scene, request.param, TRAINER))


@pytest.fixture(scope="session")
def lost_server(halted, inputs, folder):
    return play(inputs, folder, kill_server)


@pytest.fixture(scope="session")
def untrained_server(halted, inputs, folder):
    """The server is killed between the rollout and the weights it would get."""
    return play(inputs, folder, lambda scene: kill_while_halted(scene, TRAINER, SERVER))


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


@pytest.mark.parametrize("name", [SERVER, TRAINER, LOOPS, DRIVER])
def test_a_run_stands_still_while_a_process_hangs_and_goes_on_with_it(halted, name):
    """Nothing is lost: the steps are those of a run without."""
    scene, _ = halted
    assert scene.seen[name] <= 1  # one may have been about to end
    steps = [step["training/global_step"] for step in scene.steps]
    assert steps == list(range(1, len(steps) + 1))


def test_a_run_that_waits_for_an_agent_loop_worker_that_was_killed_is_ended(halted):
    """verl would wait for ever."""
    scene, run = halted
    assert scene.seen[LOOPS] <= 1
    is_ended_by_the_watch(run, "agent-loop worker 0")


def test_a_killed_trainer_ends_the_run_when_it_is_asked_next(lost_trainer):
    scene, run = lost_trainer
    assert run.returncode == 1, run.output[-3000:]
    assert "ActorDiedError" in run.output
    assert "WorkerDict" in run.output
    goes_on_from_a_checkpoint(scene)


def test_a_run_whose_only_rollout_server_is_killed_ends(lost_server):
    scene, run = lost_server
    assert run.returncode == 1, run.output[-3000:]
    assert "terminal groups with no materializable trajectories" in run.output
    goes_on_from_a_checkpoint(scene)


def test_a_run_whose_server_cannot_be_given_its_weights_is_ended(untrained_server):
    """verl would wait for ever."""
    scene, run = untrained_server
    is_ended_by_the_watch(run, "rollout server ")
    goes_on_from_a_checkpoint(scene)


def test_the_last_checkpoint_is_whole(untrained_server, folder):
    saved = int((folder / "checkpoints" / TRACKER).read_text())
    assert saved % SAVED == 0
    assert untrained_server[1].budget(saved)["limit"] > 0
