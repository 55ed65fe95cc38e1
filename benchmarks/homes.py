"""What does each home of the teacher cost, and how much of its time hides behind generation? The
walk pair.

    worker_group only_stu       the paper's: the teacher shares the trainer's devices
    worker_group intersection   the same with the strategy that servers can serve, to compare with
    server intersection         the run's own server, asked when a response is complete
    ... while it grows          the same, asked every 32 tokens (``gate.kind=never`` stops nothing)
    url intersection            a `vllm serve`, or `sglang.launch_server`, that was started before

Each row is a run of its own, the first step left out. "step pays" is what the step waits for the
teacher after its last response is complete: the worker group's pass (``timing_s/ref``), or the last
scores and the reading of them. "hidden" is the share of the time in which questions about responses
were open before the step's last response was complete (``teacher/hidden_ratio``). Memory is that of
all processes of the run, shared pages once. Accuracy: greedy, 256 held-out problems, in the end.

    python benchmarks/homes.py --out runs/homes       # 5 runs of about 5 minutes on 2 cores
    python benchmarks/homes.py --out runs/homes-sglang --engine sglang     # where that is installed
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "pairs"))
import launch
import walk
import walk_pair

GROWING = "server, while it grows"
ROWS = (
    ("worker_group", "only_stu"),
    ("worker_group", "intersection"),
    ("server", "intersection"),
    (GROWING, "intersection"),
    ("url", "intersection"),
)
PORT = 18765
URL = f"http://127.0.0.1:{PORT}"
SERVE = {
    "vllm": ["vllm.entrypoints.cli.main", "serve"],
    "sglang": ["sglang.launch_server", "--model-path"],
}
SETTINGS = {
    "vllm": [
        "--max-model-len",
        "512",
        "--max-logprobs",
        "16",
        "--block-size",
        "16",
        "--enforce-eager",
    ],
    "sglang": ["--context-length", "512"],
}
COLUMNS = (
    "home",
    "strategy",
    "step (s)",
    "step pays (s per 1,000 tokens)",
    "end to score (s)",
    "hidden",
    "peak memory (GiB)",
    "accuracy",
)


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/homes"))
    parser.add_argument(
        "--rows", type=int, nargs="+", default=list(range(len(ROWS))), help="which of them, from 0"
    )
    parser.add_argument("--steps", type=int, default=24, help="of each run (%(default)s)")
    parser.add_argument(
        "--engine",
        choices=tuple(SERVE),
        default="vllm",
        help="of rollouts and teacher (%(default)s)",
    )
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    walk_pair.build_pair(out / "models", walk_pair.Settings())
    walk.write_parquet(out / "data", validation=launch.WALK.validation)
    table = Table(
        *COLUMNS,
        title=(
            f"{args.engine}: medians over {args.steps - 1} steps; accuracy with its 95 % interval"
        ),
    )
    for home, strategy in (ROWS[i] for i in args.rows):
        folder = out / f"{home}_{strategy}".replace(", while it grows", "_growing")
        folder.mkdir(exist_ok=True)
        overrides = [
            f"prune_opd.teacher.home={home.split(',')[0]}",
            f"prune_opd.strategy={strategy}",
            f"actor_rollout_ref.rollout.name={args.engine}",
            "trainer.val_before_train=false",
            "trainer.save_freq=-1",
        ]
        if home == GROWING:
            overrides += [
                "prune_opd.gate.enable=true",
                "prune_opd.gate.kind=never",
                "prune_opd.gate.chunk=32",
            ]
        if home == "url":
            overrides += [
                f"prune_opd.teacher.url.urls=[{URL}]",
                f"prune_opd.teacher.url.api={args.engine}",
            ]
        command = launch.training_command(
            out, folder, "prune_opd", args.steps, overrides, launch.WALK
        )
        teacher = out / "models" / "teacher"
        server = (
            serving(teacher, folder, args.engine) if home == "url" else contextlib.nullcontext()
        )
        with server, peak_memory() as peak:
            launch.train(command, folder, args.steps, timeout=1800)
        table.add_row(
            home,
            strategy,
            *cells(records := launch.read(folder / "metrics.jsonl")),
            f"{max(peak):.1f}",
            accuracy(records[-1]),
        )
    Console(width=180).print(table)


def cells(records: list[dict[str, float]]) -> list[str]:
    """Times of a run."""
    steps = launch.training_steps(records)[1:]
    pays = [
        (step["timing_s/ref"] + step.get("prune_opd/teacher/waited", 0.0))
        / step["prune_opd/generated_tokens"]
        * 1000
        for step in steps
    ]
    whole = [step["timing_s/step"] for step in steps]
    cells = [
        f"{statistics.median(whole):.2f}",
        f"{statistics.median(pays):.3f} ({min(pays):.3f} to {max(pays):.3f})",
    ]
    hidden = [
        step["prune_opd/teacher/hidden_ratio"]
        for step in steps
        if "prune_opd/teacher/hidden_ratio" in step
    ]
    if not hidden:
        return [*cells, "", ""]
    seconds = statistics.median(step["prune_opd/teacher/score_seconds_mean"] for step in steps)
    return [
        *cells,
        f"{seconds:.2f}",
        f"{statistics.median(hidden):.0%} ({min(hidden):.0%} to {max(hidden):.0%})",
    ]


def accuracy(record: dict[str, float]) -> str:
    """Of a record with a validation, with its 95 % Wilson interval."""
    share, count = launch.validated(record, "reward"), launch.WALK.validation
    interval = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return f"{share:.1%} ({interval.low:.1%} to {interval.high:.1%})"


@contextlib.contextmanager
def serving(model: Path, folder: Path, engine: str) -> Iterator[None]:
    """A server with the teacher, while the block runs."""
    command = [sys.executable, "-m", *SERVE[engine], str(model), *SETTINGS[engine]]
    # vLLM listens on every interface unless told.
    command += ["--host", "127.0.0.1", "--port", str(PORT), "--dtype", "float32"]
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _wait_for(f"{URL}/health", process, folder / "server.log")
            yield
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(1)
    sys.exit(f"the server did not start; its output: {log}")


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """GiB of this process's descendants, every two seconds while the block runs."""
    samples, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(2):
            samples.append(sum(map(_size, psutil.Process().children(recursive=True))) / 2**30)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _size(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.memory_full_info().pss
    return 0


if __name__ == "__main__":
    main()
