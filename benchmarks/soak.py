"""Does anything grow? Hundreds of steps of the quickstart's pair in flight, with one batch of 8 a
step, while all processes of the run are looked at.

    python benchmarks/soak.py --out runs/soak                            # an hour on 2 cores
    python benchmarks/soak.py --out runs/soak_killed --kill-every 50     # teachers are killed, too

With ``--kill-every`` a teacher has two replicas; one is killed every so many steps. A run that has
lost both stops with a checkpoint and is started again. What is printed compares two stretches of
one start: the steps behind the warm-up, and its last steps.

    memory     resident and private to the process (RSS less shared pages), MB
    files      open file descriptors
    objects    in Ray's object store, of all kinds of references
    entries    samples that TransferQueue holds
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "pairs"))
import launch
import train
from growth import Look, plot, save, table

from recipe.prune_opd.records.files import read_steps

PAIR, PROMPTS = "drifting", 8
LOOK, ASK = 5.0, 30.0
"""Seconds between two looks at the processes, and between two questions to Ray."""
QUEUE = ("TransferQueueController", "transfer_queue")
"""Name and namespace of TransferQueue's controller actor."""
ADDRESS = "--gcs-address="
"""How Ray's daemons are told where its head is."""


def processes(root: psutil.Process) -> Iterator[tuple[str, psutil.Process]]:
    """All processes of a run with their names, as Ray and the engines title them."""
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):
            words = process.cmdline()
            title = words[0] if words else process.name()
            module = words[words.index("-m") + 1] if "-m" in words else Path(title).name
            yield f"{title if '::' in title else module}:{process.pid}", process


def look_at(root: psutil.Process) -> Iterator[tuple[str, str, float]]:
    """Memory and open files of every process of a run."""
    for name, process in processes(root):
        with suppress(psutil.Error):
            memory = process.memory_info()
            yield name, "memory", (memory.rss - memory.shared) / 1e6
            yield name, "files", process.num_fds()


class Cluster:
    """Ray and TransferQueue of the run, asked from a driver of our own."""

    def __init__(self, root: psutil.Process):
        words = [(one, word) for _, one in processes(root) for word in one.cmdline()]
        daemon, address = next(found for found in words if found[1].startswith(ADDRESS))
        # Ray's daemons ask for the token of the user, where they were told to.
        given = daemon.environ().items()
        os.environ.update({name: value for name, value in given if name.startswith("RAY_AUTH")})
        import ray

        self.ray = ray
        ray.init(
            address.removeprefix(ADDRESS),
            namespace=QUEUE[1],
            log_to_driver=False,
            logging_level="ERROR",
        )

    def ask(self) -> Iterator[tuple[str, str, float]]:
        """Objects of Ray and entries of TransferQueue."""
        from ray.util.state import summarize_objects

        found: dict[str, Any] = summarize_objects(raise_on_missing_output=False)["cluster"]
        yield "Ray", "objects", found["total_objects"]
        controller = self.ray.get_actor(*QUEUE)
        names = self.ray.get(controller.list_partitions.remote())
        ids = self.ray.get(
            [controller.get_partition_index_range.remote(name) for name in names], timeout=60
        )
        yield "TransferQueue", "entries", sum(map(len, ids))

    def teachers(self) -> list[psutil.Process]:
        """Teacher servers that are running."""
        from ray.util.state import list_actors

        alive = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
        return [psutil.Process(actor.pid) for actor in alive if "server_teacher_" in actor.name]

    def close(self) -> None:
        """Leave the run alone."""
        self.ray.shutdown()


class Soak:
    """A training that is watched, and started again where it stopped for want of a teacher."""

    def __init__(self, out: Path, steps: int, kill_every: int | None):
        self.out, self.steps, self.kill_every = out, steps, kill_every
        self.looks: list[Look] = []
        self.starts, self.killed, self.began = 0, 0, time.monotonic()

    def command(self) -> list[str]:
        """The training command."""
        overrides = [
            f"data.train_batch_size={PROMPTS}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
            "prune_opd.budget.enable=false",
            "trainer.resume_mode=auto",
            "trainer.save_freq=50",
            "trainer.max_actor_ckpt_to_keep=2",
            "trainer.test_freq=-1",
            "trainer.val_before_train=false",
            f"prune_opd.teacher.server.replicas={2 if self.kill_every else 1}",
        ]
        setup = train.PAIRS[PAIR][0]
        return launch.training_command(
            self.out, self.out, "prune_opd_gate", self.steps, overrides, setup
        )

    @property
    def metrics(self) -> Path:
        """What verl's file logger writes in this start: it does not go on with a file."""
        return self.out / f"metrics_{self.starts}.jsonl"

    def logged(self) -> list[dict[str, float]]:
        """Training steps of this start."""
        return launch.training_steps(launch.read(self.metrics))

    def run(self) -> None:
        """Train to the end.

        Raises:
            SystemExit: a start came to no new step.
        """
        while True:
            self._start()
            done = self.logged()
            if not done:
                sys.exit(f"the training failed; all of its output: {self.log}")
            if done[-1]["step"] >= self.steps:
                return
            self.starts += 1

    @property
    def log(self) -> Path:
        """Output of this start."""
        return self.out / f"train_{self.starts}.log"

    def _start(self) -> None:
        environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(self.metrics)}
        with self.log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *self.command()],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.out,
            )
            try:
                self._watch(process)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait(60)

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        cluster, asked, root = None, 0.0, psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(LOOK)
            steps = self.logged()
            if not steps:  # still starting
                continue
            step = int(steps[-1]["step"])
            self._note(step, look_at(root))
            if time.monotonic() - asked > ASK:
                cluster, asked = cluster or Cluster(root), time.monotonic()
                # The run may end while it is asked.
                with suppress(Exception):
                    self._note(step, cluster.ask())
                    self._kill(step, cluster)
            print(f"\rstep {step} of {self.steps}, start {self.starts + 1}", end="", flush=True)
        if cluster:
            cluster.close()

    def _note(self, step: int, found: Iterator[tuple[str, str, float]]) -> None:
        seconds = time.monotonic() - self.began
        self.looks += [Look(self.starts, step, seconds, *one) for one in found]

    def _kill(self, step: int, cluster: Cluster) -> None:
        if not self.kill_every or step // self.kill_every <= self.killed:
            return
        victim = cluster.teachers()[0]
        for one in [*victim.children(recursive=True), victim]:
            one.kill()
        self.killed += 1
        print(f"\nkilled a teacher behind step {step}", flush=True)


def faults_of(soak: Soak) -> list[str]:
    """What is wrong with what the run left: records, report, limits and metrics."""
    found = []
    steps, damaged = read_steps(soak.out / "checkpoints" / "records")
    numbers = [step["step"] for step in steps]
    if numbers != list(range(1, soak.steps + 1)) or damaged:
        found.append(f"records: steps {numbers[:1]} to {numbers[-1:]}, damaged: {damaged}")
    for start in range(soak.starts + 1):
        for record in launch.read(soak.out / f"metrics_{start}.jsonl"):
            found += [
                f"step {record['step']}: {name} is {value}"
                for name, value in record.items()
                if name.startswith("prune_opd/") and not math.isfinite(value)
            ]
    page = soak.out / "report.html"
    words = ["-m", "recipe.prune_opd", "report", str(soak.out / "checkpoints"), "--out", str(page)]
    made = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if made.returncode:
        found.append(f"report: {made.stderr.strip()}")
    return found


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--kill-every", type=int, metavar="STEPS")
    args = parser.parse_args()
    out = args.out.resolve()
    if (out / "checkpoints").exists():
        sys.exit(f"--out: {out} holds a soak; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    _, task, pair, settings = train.PAIRS[PAIR]
    pair.build_pair(out / "models", settings)
    task.write_parquet(out / "data", **train.PAIRS[PAIR][0].data)
    soak = Soak(out, args.steps, args.kill_every)
    try:
        soak.run()
    finally:
        save(soak.looks, out / "looks.csv")
    Console(width=120).print(table(soak.looks))
    plot(soak.looks, out / "soak.png")
    said = f"{args.steps} steps, {soak.starts + 1} starts, {soak.killed} teachers killed"
    print(f"{said}, {(time.monotonic() - soak.began) / 60:.0f} minutes; {out / 'soak.png'}")
    faults = faults_of(soak)
    print("\n".join(faults) or "records whole, report made, metrics finite")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
