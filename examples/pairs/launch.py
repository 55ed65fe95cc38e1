"""Train one of the pairs with the real trainer: verl's own command, its progress and what it
logged."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
STARTUP_HINT = "starting Ray, the rollout engine and the workers, some minutes"
GATE_OVERSHOOT = "prune_opd/gate/overshoot_tokens"
SEMI_GENERATED = "prune_opd/semi/generated_tokens"


@dataclass(frozen=True)
class Setup:
    """What the training command of a task has beside the recipe."""

    task: str
    """Module of this folder with the task's ``compute_score``."""
    max_prompt_tokens: int
    max_response_tokens: int
    prompts: int
    """Prompts of a batch."""
    responses_each: int
    mini_batch: int
    """Prompts of an update."""
    lr: float
    validation: int
    """Problems of a validation."""
    settings: Mapping[str, Any]
    """verl's and the method's keys that differ from the recipe."""
    rounds: int | None = None
    """How often a route is gone; None: a task without."""

    @property
    def data(self) -> dict[str, int]:
        """Arguments of the task's ``write_parquet``."""
        rounds = {} if self.rounds is None else {"rounds": self.rounds}
        return {"validation": self.validation, **rounds}


WALK = Setup(
    task="walk",
    max_prompt_tokens=32,
    max_response_tokens=227,
    prompts=16,
    responses_each=4,
    mini_batch=16,
    lr=5e-4,
    validation=256,
    settings=MappingProxyType(
        {
            "actor_rollout_ref.actor.optim.lr_warmup_steps": 5,
            "prune_opd.drift.w_drop": 0.03,
            "prune_opd.budget.init": 96,
            "prune_opd.budget.min": 64,
            "prune_opd.budget.step": 16,
            "prune_opd.budget.margin": 16,
        }
    ),
)
SIGNPOSTS = Setup(
    task="signposts",
    max_prompt_tokens=48,
    max_response_tokens=64,
    prompts=64,
    responses_each=1,
    mini_batch=16,
    lr=2e-3,
    validation=256,
    settings=MappingProxyType(
        {
            "actor_rollout_ref.actor.optim.lr_warmup_steps": 8,
            "prune_opd.topk": 8,
            "prune_opd.drift.metric": "teacher_top_p_accept",
            "prune_opd.drift.w_drop": 0.25,
            "prune_opd.gate.chunk": 8,
            "prune_opd.budget.init": 16,
            "prune_opd.budget.min": 16,
            "prune_opd.budget.step": 8,
            "prune_opd.budget.margin": 8,
        }
    ),
)
JOURNEYS = replace(
    SIGNPOSTS,
    max_response_tokens=320,
    lr=1e-3,
    validation=128,
    rounds=5,
    settings=MappingProxyType(
        {
            **SIGNPOSTS.settings,
            "prune_opd.reward_clip": 3,
            "prune_opd.gate.chunk": 32,
            "prune_opd.budget.init": 32,
            "prune_opd.budget.step": 16,
            "prune_opd.budget.margin": 16,
        }
    ),
)


def training_command(
    shared: Path, out: Path, recipe: str, steps: int, overrides: list[str], setup: Setup
) -> list[str]:
    """The training command: verl's own entry point with the recipe and what this task needs.

    Args:
        shared: folder with ``models/student``, ``models/teacher`` and ``data``.
        out: folder of this run.
        recipe: name of it.
        steps: batches.
        overrides: more settings, which win.
        setup: of the task.
    """
    settings: dict[str, Any] = {
        "actor_rollout_ref.model.path": shared / "models" / "student",
        "prune_opd.teacher.path": shared / "models" / "teacher",
        "data.train_files": shared / "data" / "train.parquet",
        "data.val_files": shared / "data" / "validation.parquet",
        "data.max_prompt_length": setup.max_prompt_tokens,
        "data.max_response_length": setup.max_response_tokens,
        "data.train_batch_size": setup.prompts,
        "data.seed": 1,
        "actor_rollout_ref.rollout.n": setup.responses_each,
        "actor_rollout_ref.actor.ppo_mini_batch_size": setup.mini_batch,
        # Attention over a packed micro-batch is quadratic.
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 2048,
        "actor_rollout_ref.actor.optim.lr": setup.lr,
        **setup.settings,
        "reward.custom_reward_function.path": HERE / f"{setup.task}.py",
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 100,
        "trainer.test_freq": steps,
        "trainer.save_freq": steps,
        "trainer.resume_mode": "disable",  # verl would take up a finished run in the same folder
        "trainer.default_local_dir": out / "checkpoints",
        "trainer.validation_data_dir": out / "validation",
        "trainer.logger": "[console,file]",
        "trainer.project_name": setup.task,
        "trainer.experiment_name": recipe,
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    return ["-m", "verl.trainer.main_ppo", f"+recipe={recipe}", "+platform=cpu", *given, *overrides]


def printable(command: list[str], metrics: Path) -> str:
    """The command as one can paste it into a shell."""
    python, file = shlex.quote(sys.executable), shlex.quote(str(metrics))
    head = f"VERL_FILE_LOGGER_PATH={file} {python} {' '.join(command[:2])}"
    return " \\\n    ".join([head, *(shlex.quote(word) for word in command[2:])])


def run(command: list[str], out: Path, steps: int, timeout: int) -> list[dict[str, float]]:
    """Print a training's command, and run it in its folder, which is made; see ``train``.

    Returns:
        What verl's file logger wrote, see ``read``.
    """
    out.mkdir(parents=True, exist_ok=True)
    print(f"\n{printable(command, out / 'metrics.jsonl')}\n", flush=True)
    train(command, out, steps, timeout)
    return read(out / "metrics.jsonl")


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


def validated(record: dict[str, float], what: str) -> float | None:
    """Mean of a value that the task's score function returns over the validation problems; None
    where the record holds no validation.

    Args:
        record: of verl's file logger.
        what: ``acc`` or ``reward`` for the score, or another value's name.
    """
    found = (
        value
        for key, value in record.items()
        if key.startswith("val-") and f"/{what}/" in key and "mean@" in key
    )
    return next(found, None)


def spent(record: dict[str, float]) -> float:
    """Tokens that a step generated, those after a stop included."""
    kept = record.get("prune_opd/generated_tokens", 0)
    # Semi-OPD's frozen steps train on responses that were generated before.
    return record.get(SEMI_GENERATED, kept + record.get(GATE_OVERSHOOT, 0))
