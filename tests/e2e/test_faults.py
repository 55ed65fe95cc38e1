"""Processes of a run that are halted or killed: what is seen of it, and how the run goes on.

One folder for all runs: each goes on from the last checkpoint of the one before, as its user would
have it.
"""

from pathlib import Path

import pytest
from stories import (
    DRIVER,
    HALT,
    LOOPS,
    SAVED,
    SERVER,
    TRAINER,
    WATCH,
    Scene,
    Story,
    goes_on_from_a_checkpoint,
    is_ended_by_the_watch,
    kill,
    kill_while_halted,
    named,
    play,
)

from recipe.prune_opd.training.checkpoint import TRACKER

pytestmark = pytest.mark.e2e


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


def kill_server(scene: Scene) -> Story:
    """Kill the only rollout server in a rollout."""
    yield from scene.until(2)
    kill(SERVER)
    yield from scene.watch(WATCH, SERVER)


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
