"""Where does the time of a training step go, and what does the method add to it? verl's trainer on
the walk pair, every response of one length, one update a step.

    drifting   the pair beyond the length it knows: 800 tokens, most of them after the stop
    same       the student is its own teacher, 400 tokens: nothing to stop, all of it is cost

    verl       verl's own on-policy distillation, forward KL, its teacher on a server
    server     +recipe=opd with the teacher on a server, too (strategy intersection: both top k)
    opd        +recipe=opd, the teacher in the worker group
    prune      +recipe=prune_opd, the same place
    gate       and stopped in flight, by a server beside it
    rollout    and the student's part from the rollout (prune_opd.student)

Each row is a run of its own of ``--steps`` steps under a fixed limit. The first step warms the
engines up and is left out. On a CPU a teacher's server takes its time from the same cores as
everything else; with ``--pin`` it has the last core for itself and the run the others, with or
without a server.

    python benchmarks/step_time.py --out runs/step_time           # 12 runs of 3 to 5 minutes
    python benchmarks/step_time.py --out runs/pinned --pin --pairs same --ways prune gate
"""

import argparse
import statistics
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import product
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "pairs"))
import launch
import walk
import walk_pair
from soak import Cluster

LENGTHS = {"drifting": 800, "same": 400}
PARTS = ("gen", "old_log_prob", "ref", "adv", "update_actor", "update_weights")
TOPK = 16
WAYS = {
    "verl": (None, []),
    "server": ("opd", ["prune_opd.teacher.home=server", "prune_opd.strategy=intersection"]),
    "opd": ("opd", []),
    "prune": ("prune_opd", []),
    "gate": ("prune_opd", ["prune_opd.gate.enable=true"]),
    "rollout": ("prune_opd", ["prune_opd.gate.enable=true", "prune_opd.student=rollout"]),
}
TEACHER = "distillation.teacher_models.teacher_model"
OWN_LOSS = [
    "distillation.enabled=true",
    "distillation.nnodes=1",
    "distillation.n_gpus_per_node=1",
    "distillation.distillation_loss.loss_mode=forward_kl_topk",
    f"distillation.distillation_loss.topk={TOPK}",
    "distillation.distillation_loss.use_task_rewards=false",
    f"{TEACHER}.inference.tensor_model_parallel_size=1",
    f"{TEACHER}.inference.dtype=float32",
    f"{TEACHER}.inference.free_cache_engine=false",
    f"+{TEACHER}.inference.enable_sleep_mode=false",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
]
"""What verl needs to be told of its own, where no recipe does."""


def command(pair: str, way: str, out: Path, folder: Path, steps: int, pin: bool) -> list[str]:
    """The training command of a row."""
    recipe, own = WAYS[way]
    teacher = out / "models" / ("teacher" if pair == "drifting" else "student")
    more = [
        f"prune_opd.teacher.path={teacher}",
        f"data.max_response_length={LENGTHS[pair]}",
        "actor_rollout_ref.rollout.ignore_eos=true",
        "prune_opd.drift.w_drop=0.01",
        "prune_opd.budget.enable=false",
        "prune_opd.budget.init=null",
        "prune_opd.budget.min=null",
        "prune_opd.gate.chunk=32",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        f"ray_kwargs.ray_init.include_dashboard={pin}",  # whom ``soak.Cluster`` asks
        *own,
    ]
    found = launch.training_command(out, folder, recipe or "opd", steps, more, launch.WALK)
    if recipe:
        return found
    kept = [word for word in found if not word.startswith(("+recipe=", "prune_opd."))]
    return [*kept, *OWN_LOSS, f"{TEACHER}.model_path={teacher}"]


def pin_processes(log: Path) -> None:
    """Give the processes of this run's teacher the last core, and all others the rest."""
    *rest, last = range(psutil.cpu_count() or 1)
    root = next(
        one for one in psutil.Process().children() if "verl.trainer.main_ppo" in one.cmdline()
    )
    cluster = Cluster(root, log)
    try:
        servers = [psutil.Process(one) for one in cluster.ask()["teachers"]]
    finally:
        cluster.close()
    own = {one.pid for server in servers for one in [server, *server.children(recursive=True)]}
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            for thread in process.threads():  # each keeps its own
                psutil.Process(thread.id).cpu_affinity([last] if process.pid in own else rest)


@contextmanager
def pinned(folder: Path) -> Iterator[None]:
    """Pin a run's processes once it has logged a step.

    Raises:
        Exception: what they could not be pinned for.
    """
    ended = threading.Event()

    def wait() -> None:
        while not launch.read(folder / "metrics.jsonl"):
            if ended.wait(1):
                raise RuntimeError(f"no step was logged, so nothing was pinned: {folder}")
        pin_processes(folder / "ray_state.log")

    with ThreadPoolExecutor(1) as waiting:
        done = waiting.submit(wait)
        try:
            yield
        finally:
            ended.set()
    done.result()


def measure(args: argparse.Namespace, out: Path, pair: str, way: str) -> list[dict[str, float]]:
    """Run a row; its steps behind the warm-up."""
    folder = out / f"{pair}_{way}"
    folder.mkdir(exist_ok=True)
    words = command(pair, way, out, folder, args.steps, args.pin)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    with pinned(folder) if args.pin else nullcontext():
        launch.train(words, folder, args.steps, timeout=1800)
    steps = [one for one in launch.read(folder / "metrics.jsonl") if "timing_s/step" in one]
    return steps[3 if args.pin else 1 :]


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/step_time"))
    parser.add_argument(
        "--pairs", nargs="+", choices=list(LENGTHS), default=list(LENGTHS), help="(default: both)"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="(default: all)"
    )
    parser.add_argument("--steps", type=int, default=7, help="of each run (%(default)s)")
    parser.add_argument("--pin", action="store_true", help="the teacher's server to a core alone")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    walk_pair.build_pair(out / "models", walk_pair.Settings())
    walk.write_parquet(out / "data", validation=launch.WALK.validation)
    table = Table("pair", "way", "step", *PARTS, "rest", title="Medians, s, and the step's range")
    for pair, way in product(args.pairs, args.ways):
        steps = measure(args, out, pair, way)
        times = {name: [one.get(f"timing_s/{name}", 0.0) for one in steps] for name in PARTS}
        whole = [one["timing_s/step"] for one in steps]
        rest = [total - sum(part) for total, *part in zip(whole, *times.values(), strict=True)]
        medians = (f"{statistics.median(values):.2f}" for values in [*times.values(), rest])
        step = f"{statistics.median(whole):.2f} ({min(whole):.2f} to {max(whole):.2f})"
        table.add_row(pair, way, step, *medians)
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
