"""The quickstart: make the task and its two models, train with Prune-OPD on this machine, say what
came of it.

    python examples/quickstart/run.py --out runs/quickstart               # what `make quickstart`
    runs
    python examples/quickstart/run.py --out runs/opd --recipe opd         # plain OPD, for
    comparison
    python examples/quickstart/run.py --out runs/x prune_opd.drift.threshold=0.8     # more
    overrides for verl

The training itself is the command that is printed; it can be pasted and changed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pair
import task
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from tqdm import tqdm

VALIDATION_PROBLEMS, PAIR_PROBLEMS = 256, 128
PROMPTS, RESPONSES_EACH = 16, 4
RECIPES = (
    *("prune_opd", "prune_opd_gate", "opd", "opd_fixed_length", "opd_first", "iw_opd"),
    "semi_opd",
)
COMPARE = (
    "\nPlain OPD on the same pair, to compare with:\n  {python} examples/quickstart/run.py --recipe"
    " opd --out {out}"
)
STARTUP_HINT = "starting Ray, the rollout engine and the workers, about a minute and a half"


def training_command(out: Path, recipe: str, steps: int, overrides: list[str]) -> list[str]:
    """The training command: verl's own entry point with the recipe and what this task needs."""
    settings: dict[str, Any] = {
        "actor_rollout_ref.model.path": out / "models" / "student",
        "prune_opd.teacher.path": out / "models" / "teacher",
        "data.train_files": out / "data" / "train.parquet",
        "data.val_files": out / "data" / "validation.parquet",
        "data.max_prompt_length": 32,
        "data.max_response_length": task.MAX_RESPONSE_TOKENS,
        "data.train_batch_size": PROMPTS,
        "data.seed": 1,
        "actor_rollout_ref.rollout.n": RESPONSES_EACH,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROMPTS,
        # Attention over a packed micro-batch is quadratic.
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 2048,
        "actor_rollout_ref.actor.optim.lr": 5e-4,
        "actor_rollout_ref.actor.optim.lr_warmup_steps": 5,
        "prune_opd.drift.w_drop": 0.03,
        "prune_opd.budget.init": 96,
        "prune_opd.budget.min": 64,
        "prune_opd.budget.step": 16,
        "prune_opd.budget.margin": 16,
        "reward.custom_reward_function.path": Path(task.__file__).resolve(),
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 100,
        "trainer.test_freq": steps,
        "trainer.save_freq": steps,
        "trainer.resume_mode": "disable",  # verl would take up a finished run in the same folder
        "trainer.default_local_dir": out / "checkpoints",
        "trainer.validation_data_dir": out / "validation",
        "trainer.logger": "[console,file]",
        "trainer.project_name": "quickstart",
        "trainer.experiment_name": recipe,
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    return ["-m", "verl.trainer.main_ppo", f"+recipe={recipe}", "+platform=cpu", *given, *overrides]


def printable(command: list[str], metrics: Path) -> str:
    """The command as one can paste it into a shell."""
    python, file = shlex.quote(sys.executable), shlex.quote(str(metrics))
    head = f"VERL_FILE_LOGGER_PATH={file} {python} {' '.join(command[:2])}"
    return " \\\n    ".join([head, *(shlex.quote(word) for word in command[2:])])


def train(command: list[str], out: Path, steps: int, timeout: int) -> None:
    """Run the training with its output in ``train.log``; show one bar of steps.

    Raises:
        SystemExit: the training failed or took longer than ``timeout`` seconds; says where its
            output lies.
    """
    metrics, log = out / "metrics.jsonl", out / "train.log"
    metrics.unlink(missing_ok=True)
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics)}
    deadline = time.monotonic() + timeout
    with log.open("w") as output, tqdm(total=steps, desc=STARTUP_HINT, unit="step") as bar:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=out,
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(1)
                follow(metrics, bar)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
        follow(metrics, bar)
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"{tail}\n\nthe training failed or ran out of time; all of its output: {log}")


def read(metrics: Path) -> list[dict[str, float]]:
    """Records of verl's file logger, ``step`` among them; a line still being written is left for
    later."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{"step": record["step"], **record["data"]} for record in records]


def training_steps(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Records of training steps; others hold a validation alone."""
    return [record for record in records if "prune_opd/generated_tokens" in record]


def follow(metrics: Path, bar: tqdm) -> None:
    """Bring the bar up to the last finished step."""
    done = training_steps(read(metrics))
    if len(done) > bar.n:
        last = done[-1]
        bar.set_description("training")
        bar.set_postfix_str(
            f"limit {last['prune_opd/next_max_response_length']:.0f}, overlap"
            f" {last['prune_opd/overlap_ratio']:.2f}, events {last['prune_opd/event_rate']:.2f}"
        )
        bar.update(len(done) - bar.n)


def accuracy(record: dict[str, float]) -> str:
    """Validation accuracy of one record with its 95 % Wilson interval."""
    share = next(
        value for key, value in record.items() if key.startswith("val-core/") and "mean@" in key
    )
    interval = binomtest(round(share * VALIDATION_PROBLEMS), VALIDATION_PROBLEMS).proportion_ci(
        method="wilson"
    )
    return f"{share:.1%}  ({interval.low:.1%} to {interval.high:.1%})"


def summary(out: Path, seconds: float) -> Table:
    """What the run came to."""
    records = read(out / "metrics.jsonl")
    steps = training_steps(records)
    limits = [int(record["prune_opd/current_max_response_length"]) for record in steps]
    # With semi_opd the responses of a step were not generated in it.
    names = ("prune_opd/semi/generated_tokens", "prune_opd/generated_tokens")
    generated = sum(next(step[name] for name in names if name in step) for step in steps)
    course = [
        *limits[:: max(1, len(limits) // 10)],
        int(steps[-1]["prune_opd/next_max_response_length"]),
    ]
    table = Table("what", "came to", title="Quickstart", show_header=False, title_justify="left")
    table.columns[1].overflow = "fold"  # a path cut short could not be pasted
    rows = {
        f"validation accuracy before ({VALIDATION_PROBLEMS} problems, greedy; 95 % interval)": (
            accuracy(records[0])
        ),
        f"validation accuracy after {len(steps)} steps": accuracy(records[-1]),
        "overlap of the top 16, first and last step": " -> ".join(
            f"{record['prune_opd/overlap_ratio']:.2f}" for record in (steps[0], steps[-1])
        ),
        "drift events per token, first and last step": " -> ".join(
            f"{record['prune_opd/event_rate']:.2f}" for record in (steps[0], steps[-1])
        ),
        "response limit over the run": " ".join(map(str, course)),
        "tokens generated in training": f"{generated:,.0f}",
        "seconds, start-up and validation included": f"{seconds:.0f}",
        "metrics of every step": os.path.relpath(out / "metrics.jsonl"),
        "output of the run": os.path.relpath(out / "train.log"),
        "checkpoint": os.path.relpath(out / "checkpoints"),
        "what it answered in validation": os.path.relpath(out / "validation"),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        help="folder for everything the run makes",
    )
    parser.add_argument("--recipe", choices=RECIPES, default=RECIPES[0])
    parser.add_argument(
        "--engine", choices=("vllm", "sglang"), default="vllm", help="engine of the rollouts"
    )
    parser.add_argument("--steps", type=int, default=30, help="updates, each on 64 responses")
    parser.add_argument(
        "--timeout", type=int, default=1800, help="seconds until the training is given up"
    )
    parser.add_argument("overrides", nargs="*", help="more settings for verl, key=value")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    pair.build_pair(out / "models", pair.Settings())
    pair.report(out / "models", PAIR_PROBLEMS, seed=1)
    task.write_parquet(out / "data", validation=VALIDATION_PROBLEMS)
    overrides = [f"actor_rollout_ref.rollout.name={args.engine}", *args.overrides]
    command = training_command(out, args.recipe, args.steps, overrides)
    print(f"\n{printable(command, out / 'metrics.jsonl')}\n", flush=True)
    started = time.monotonic()
    train(command, out, args.steps, args.timeout)
    Console().print(summary(out, time.monotonic() - started))
    if args.recipe == "prune_opd":
        print(
            COMPARE.format(
                python=os.path.relpath(sys.executable), out=os.path.relpath(out.with_name("opd"))
            )
        )


if __name__ == "__main__":
    main()
