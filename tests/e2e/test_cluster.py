"""A run on two of Ray's nodes, and faults that need two ranks or two rollout servers.

The nodes are two raylets of this machine, started by somebody who is not the one that gives the
command: they have neither its environment nor its folder, as on a cluster that others run.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import harness
import psutil
import pytest
import ray
from stories import (
    DRIVER,
    HALT,
    SAVED,
    TRAINER,
    WATCH,
    Scene,
    Story,
    goes_on_from_a_checkpoint,
    named,
    play,
)

from recipe.prune_opd.records.files import read_steps

pytestmark = pytest.mark.e2e

NODE, COMMAND = "E2E_NODE", "E2E_COMMAND"
"""Variables of the environment: a node's name, and what the command alone has."""
SERVERS = "ray::TopK"
KEYLESS = {"RAY_AUTH_MODE": "disabled"}
PHASES = [(TRAINER, "update"), (TRAINER, "save"), (DRIVER, "update"), (DRIVER, "save")]
GATED = harness.GATED | {
    "trainer.nnodes": 2,
    "trainer.n_gpus_per_node": 1,
    # What a cluster has is the cluster's to say.
    "ray_kwargs.ray_init.num_cpus": "null",
    "ray_kwargs.ray_init.num_gpus": "null",
}


@contextmanager
def node(folder: Path, name: str, devices: int, words: list[str]) -> Iterator[None]:
    """A node of Ray's, as one starts it on a machine, from the moment it is there."""
    log, program = folder / f"{name}.log", Path(sys.executable).with_name("ray")
    # A short one, which sockets lie in. In Ray's own the next run would look for this cluster.
    temporary = tempfile.TemporaryDirectory(prefix="e2e_", ignore_cleanup_errors=True)
    resources = ["--num-cpus=32", f"--num-gpus={devices}", f"--temp-dir={temporary.name}"]
    with temporary, log.open("w") as output:
        process = subprocess.Popen(
            [program, "start", "--block", "--disable-usage-stats", *resources, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {NODE: name} | KEYLESS,
            cwd=folder,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield
        finally:
            harness.end_children(process)


def run_on_two_nodes(
    inputs: Path, folder: Path, nodes: Path, story: Callable[[Scene], Story]
) -> tuple[Scene, harness.Run]:
    """Give the command from outside to two nodes with three devices, for two ranks and the gate's
    teacher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    # The workers get what the command says they get.
    logger = {
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": folder / "metrics.jsonl"
    }
    more = {"RAY_ADDRESS": address, COMMAND: "1"} | KEYLESS
    head = ["--head", f"--port={port}", "--include-dashboard=false"]
    with node(nodes, "first", 2, head), node(nodes, "second", 1, [f"--address={address}"]):
        return play(inputs, folder, story, GATED | logger, more)


def look_at_the_nodes(scene: Scene) -> None:
    """Where the run's processes are, and what the nodes that started them know."""
    scene.nodes, scene.told = {}, set()
    for process in harness.started("ray::"):
        with suppress(psutil.Error):
            # A title that is set may lie over a process's own environment.
            known = process.parent().environ()
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
    # With the gate all servers are of one class; the teacher's is started first.
    servers = sorted(named(SERVERS), key=psutil.Process.create_time)
    assert len(servers) == 3
    harness.kill_with_children(servers[-1])
    yield from scene.watch(WATCH, "server")


def lose_a_rank(scene: Scene) -> Story:
    """Kill one of two ranks in an update."""
    yield from scene.until(2)
    yield from scene.reach("update")
    harness.kill_with_children(named(TRAINER)[0])
    yield from scene.watch(WATCH, TRAINER)


@pytest.fixture(scope="session")
def clustered(inputs, tmp_path_factory):
    folder, nodes = (tmp_path_factory.mktemp(name) for name in ("clustered", "nodes"))
    return run_on_two_nodes(inputs, folder, nodes, halt_and_lose_a_server)


@pytest.fixture(scope="session")
def lost_rank(clustered, inputs, tmp_path_factory):
    nodes = tmp_path_factory.mktemp("nodes")
    return run_on_two_nodes(inputs, clustered[0].folder, nodes, lose_a_rank)


def test_the_run_is_on_both_nodes_and_knows_nothing_of_the_command(clustered):
    scene, _ = clustered
    assert scene.nodes.keys() == {"first", "second"}
    assert scene.told == set()
    actors = set.union(*scene.nodes.values())
    for name in (TRAINER, SERVERS, DRIVER):
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


def test_a_run_that_has_lost_one_of_its_rollout_servers_ends(clustered):
    """verl asks all of them to sleep when the others have finished."""
    scene, run = clustered
    assert run.returncode == 1, run.output[-3000:]
    assert "sleep_replicas" in run.output
    assert "ActorDiedError" in run.output
    said = run.output.rpartition("sleep_replicas")[2]
    assert "_server_0_0" in said or "_server_1_0" in said
    assert scene.seen["server"] == 0


def test_a_run_that_has_lost_one_of_its_ranks_in_an_update_ends(lost_rank):
    scene, run = lost_rank
    assert run.returncode == 1, run.output[-3000:]
    assert "ActorDiedError" in run.output
    assert scene.seen[TRAINER] <= 1
    goes_on_from_a_checkpoint(scene)
