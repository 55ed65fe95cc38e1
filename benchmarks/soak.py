"""Does anything grow? Hundreds of steps of the quickstart's pair in flight, with one batch of 8 a
step, while all processes of the run are looked at.

    python benchmarks/soak.py --out runs/soak                            # half an hour on 2 cores
    python benchmarks/soak.py --out runs/soak_killed --kill-every 50     # teachers are killed, too

With ``--kill-every`` a teacher has two replicas; one is killed every so many steps. A run that has
lost both goes on without a gate; when the next kill is due it is stopped and started again, as its
warnings tell a user to. What is printed compares two stretches of
one start: the steps behind the warm-up, and its last steps.

    memory     resident and private to the process (RSS less shared pages), MB
    files      open file descriptors
    objects    in Ray's object store, of all kinds of references
    entries    samples that TransferQueue holds
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
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

HERE = Path(__file__).resolve().parent
PAIR, PROMPTS = "drifting", 8
LOOK, ASK = 5.0, 30.0
"""Seconds between two looks at the processes, and between two questions to Ray."""
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
    """Ray and TransferQueue of a run, asked by a process of their own, see ``ray_state``.

    Args:
        root: process of the run.
        log: where that process may complain.
    """

    def __init__(self, root: psutil.Process, log: Path):
        words = [(one, word) for _, one in processes(root) for word in one.cmdline()]
        daemon, address = next(found for found in words if found[1].startswith(ADDRESS))
        # Ray's daemons ask for the token of the user, where they were told to.
        given = daemon.environ().items()
        token = {name: value for name, value in given if name.startswith("RAY_AUTH")}
        with log.open("a") as errors:
            self._asked = subprocess.Popen(
                [sys.executable, str(HERE / "ray_state.py"), address.removeprefix(ADDRESS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | token,
                text=True,
            )

    def ask(self) -> dict[str, Any]:
        """See ``ray_state.look``.

        Raises:
            OSError: the cluster has ended, or was not reached.
        """
        question, answers = self._asked.stdin, self._asked.stdout
        assert question is not None
        assert answers is not None
        print(file=question, flush=True)
        answer = answers.readline()
        if not answer:
            raise ConnectionError
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """Ask no more."""
        self._asked.kill()
        self._asked.wait()


class Soak:
    """A training that is watched, and started again where it has lost its teachers."""

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
            "ray_kwargs.ray_init.include_dashboard=true",  # which ``ray_state`` asks
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
        try:
            while process.poll() is None:
                time.sleep(LOOK)
                steps = self.logged()
                if not steps:  # still starting
                    continue
                step = int(steps[-1]["step"])
                self._note(step, look_at(root))
                if time.monotonic() - asked > ASK:
                    cluster, asked = cluster or Cluster(root, self.complaints), time.monotonic()
                    teachers = self._ask(step, cluster)
                    if teachers is not None and not self._kill(step, teachers):
                        return
                print(f"\rstep {step} of {self.steps}, start {self.starts + 1}", end="", flush=True)
        finally:
            if cluster:
                cluster.close()

    @property
    def complaints(self) -> Path:
        """Errors of who asks Ray; those of its end are none."""
        return self.out / "ray_state.log"

    def _ask(self, step: int, cluster: Cluster) -> list[int] | None:
        """Note Ray's state; processes of the teachers, None where it was not answered."""
        try:
            found = cluster.ask()
        except OSError:  # the run may end meanwhile; ``faults_of`` tells where nothing was answered
            return None
        counts = [("Ray", "objects"), ("TransferQueue", "entries")]
        self._note(step, ((who, what, found[what]) for who, what in counts))
        teachers: list[int] = found["teachers"]
        return teachers

    def _kill(self, step: int, teachers: list[int]) -> bool:
        """Kill a teacher if that is due; False: there was none to kill."""
        if not self.kill_every or step // self.kill_every <= self.killed:
            return True
        if not teachers:
            print(f"\nno teacher is left at step {step}: started again", flush=True)
            return False
        victim = psutil.Process(teachers[0])
        for one in [*victim.children(recursive=True), victim]:
            one.kill()
        self.killed += 1
        print(f"\nkilled a teacher behind step {step}", flush=True)
        return True

    def _note(self, step: int, found: Iterable[tuple[str, str, float]]) -> None:
        seconds = time.monotonic() - self.began
        new = [Look(self.starts, step, seconds, *one) for one in found]
        self.looks += new
        save(new, self.out / "looks.csv")


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
    asked = {one.start for one in soak.looks if one.what == "objects"}
    silent = sorted(set(range(soak.starts + 1)) - asked)
    if silent:
        found.append(f"Ray did not answer in starts {silent}: {soak.complaints}")
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
    soak.run()
    Console(width=120).print(table(soak.looks))
    plot(soak.looks, out / "soak.png")
    said = f"{args.steps} steps, {soak.starts + 1} starts, {soak.killed} teachers killed"
    print(f"{said}, {(time.monotonic() - soak.began) / 60:.0f} minutes; {out / 'soak.png'}")
    faults = faults_of(soak)
    print("\n".join(faults) or "records whole, report made, metrics finite")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
