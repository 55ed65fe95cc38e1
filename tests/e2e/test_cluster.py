"""A run on two of Ray's nodes, and faults that need two ranks or two rollout servers.

The nodes are two raylets of this machine, started by somebody who is not the one that gives the
command: they have neither its environment nor its folder, as on a cluster that others run.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import harness
import psutil
import pytest
from ray.cluster_utils import Cluster
from stories import (
    DRIVER,
    HALT,
    SAVED,
    SERVER,
    TRAINER,
    WATCH,
    Scene,
    Story,
    goes_on_from_a_checkpoint,
    is_ended_by_the_watch,
    named,
    play,
)

from recipe.prune_opd.records.files import read_steps

pytestmark = pytest.mark.e2e

NODE, COMMAND = "E2E_NODE", "E2E_COMMAND"
"""Variables of the environment: a node's name, and what the command alone has."""
PHASES = [(TRAINER, "update"), (TRAINER, "save"), (DRIVER, "update"), (DRIVER, "save")]
GATED = {
    "prune_opd.gate.enable": True,
    "prune_opd.gate.chunk": 16,
    "prune_opd.teacher.server.block_size": 16,
    "prune_opd.drift.w_drop": 0.2,
    "prune_opd.loss_normaliser": "reliable",
    "prune_opd.budget.init": harness.MAX_RESPONSE,
    "trainer.nnodes": 2,
    "trainer.n_gpus_per_node": 1,
    # What a cluster has is the cluster's to say.
    "ray_kwargs.ray_init.num_cpus": "null",
    "ray_kwargs.ray_init.num_gpus": "null",
}


@contextmanager
def two_nodes() -> Iterator[str]:
    """Two of Ray's nodes with three devices, for two ranks and the gate's teacher.

    Returns:
        The address of the first.
    """
    cluster = Cluster()
    try:
        for name, devices in (("first", 2), ("second", 1)):
            cluster.add_node(
                num_cpus=32, num_gpus=devices, env_vars={NODE: name}, include_dashboard=False
            )
        yield cluster.address
    finally:
        cluster.shutdown()


def run_on_two_nodes(inputs: Path, folder: Path, story) -> tuple[Scene, harness.Run]:
    """Give the command from outside."""
    # The workers get what the command says they get.
    logger = {
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": folder / "metrics.jsonl"
    }
    with two_nodes() as address:
        more = {"RAY_ADDRESS": address, COMMAND: "1"}
        return play(inputs, folder, story, GATED | logger, more)


def look_at_the_nodes(scene: Scene) -> None:
    """Where the run's processes are, and what they know."""
    scene.nodes, scene.told = {}, set()
    for process in harness.started("ray::"):
        with suppress(psutil.Error):
            known = process.environ()
            scene.nodes.setdefault(known.get(NODE), set()).add(process.cmdline()[0])
            scene.told |= {COMMAND} & known.keys()


def halt_and_lose_a_server(scene: Scene) -> Story:
    """Halt a rank, and the driver, in phases that end in a collective or in files; then kill one
    of two rollout servers while they generate."""
    yield from scene.until(1)
    look_at_the_nodes(scene)
    for name, phase in PHASES:
        yield from scene.reach(phase)
        halted = named(name)[0]
        halted.suspend()
        yield from scene.watch(HALT, f"{name} in {phase}")
        halted.resume()
    yield from scene.until(2)
    harness.kill_with_children(named(SERVER)[0])
    yield from scene.watch(WATCH, SERVER)


def lose_a_rank(scene: Scene) -> Story:
    """Kill one of two ranks in an update."""
    yield from scene.until(2)
    yield from scene.reach("update")
    harness.kill_with_children(named(TRAINER)[0])
    yield from scene.watch(WATCH, TRAINER)


@pytest.fixture(scope="session")
def clustered(inputs, tmp_path_factory):
    return run_on_two_nodes(inputs, tmp_path_factory.mktemp("clustered"), halt_and_lose_a_server)


@pytest.fixture(scope="session")
def lost_rank(clustered, inputs):
    return run_on_two_nodes(inputs, clustered[0].folder, lose_a_rank)


def test_the_run_is_on_both_nodes_and_knows_nothing_of_the_command(clustered):
    scene, _ = clustered
    assert scene.nodes.keys() == {"first", "second"}
    assert scene.told == set()
    actors = set.union(*scene.nodes.values())
    for name in (TRAINER, SERVER, DRIVER, "ray::TopK"):
        assert any(actor.startswith(name) for actor in actors), name


def test_the_gate_stops_responses_on_both_nodes(clustered):
    """Those of both rollout servers are followed."""
    scene, run = clustered
    assert all(step["prune_opd/gate/stopped_ratio"] > 0 for step in scene.steps[:2])
    ranks = [{name.partition("rank_")[2] for name in names(run, step)} for step in (1, 2)]
    assert ranks == [{"0.pt", "1.pt"}] * 2


def names(run: harness.Run, step: int) -> list[str]:
    """Names of the files behind a step."""
    return [file.name for file in (run.folder / "dump").glob(f"step_{step}_*")]


def test_records_are_those_of_one_run(clustered):
    scene, run = clustered
    records, faults = read_steps(run.folder / "checkpoints/records")
    assert faults == []
    assert [record["step"] for record in records][: len(scene.steps)] == [
        int(step["training/global_step"]) for step in scene.steps
    ]


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_a_rank_or_the_driver_that_hangs_is_waited_for(clustered, name, phase):
    scene, _ = clustered
    assert scene.seen[f"{name} in {phase}"] <= 1  # one may have been about to end
    steps = [step["training/global_step"] for step in scene.steps]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 2 * SAVED


def test_a_run_that_has_lost_one_of_its_rollout_servers_is_ended(clustered):
    """It cannot be given the new weights."""
    _, run = clustered
    is_ended_by_the_watch(run, "rollout server ")


def test_a_run_that_has_lost_one_of_its_ranks_in_an_update_ends(lost_rank):
    scene, run = lost_rank
    assert run.returncode == 1, run.output[-3000:]
    assert "ActorDiedError" in run.output
    assert scene.seen[TRAINER] <= 1
    goes_on_from_a_checkpoint(scene)
