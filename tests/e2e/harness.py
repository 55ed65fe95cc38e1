"""Runs of the real trainer for the tests: tiny models, a command, and what it left behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAIRS = EXAMPLES / "pairs"
sys.path.insert(0, str(PAIRS))
import walk  # noqa: E402

from recipe.prune_opd.training.checkpoint import TRACKER  # noqa: E402

ENGINE = "sglang" if find_spec("sglang") else "vllm"
"""The one this environment has. All tests are the same for both."""
MAX_RESPONSE = 96
GATED = {
    "prune_opd.gate.enable": True,
    "prune_opd.gate.chunk": 16,
    "prune_opd.teacher.server.block_size": 16,
    "prune_opd.drift.w_drop": 0.2,
    "prune_opd.loss_normaliser": "reliable",
    "prune_opd.budget.init": MAX_RESPONSE,
}
"""A gate that stops what drifts within a few chunks."""
TIMEOUT = 600
WIDE = os.environ | {"COLUMNS": "200"}
"""Environment in which tables are not folded."""


def build_inputs(folder: Path) -> None:
    """A random student, itself with its vocabulary permuted, itself with noise, and some problems,
    under ``folder``."""
    tokenizer = walk.build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # a distribution with a shape, not an almost uniform one
        for name in ("student", "permuted"):
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            model.lm_head.weight.copy_(model.lm_head.weight[torch.randperm(len(tokenizer))])
        model.load_state_dict(LlamaForCausalLM.from_pretrained(folder / "student").state_dict())
        for weight in model.parameters():
            weight.add_(0.25 * weight.std() * torch.randn_like(weight))
    model.save_pretrained(folder / "noisy")
    tokenizer.save_pretrained(folder / "noisy")
    walk.write_parquet(folder / "data", train=64, validation=8)


@dataclass
class Run:
    """One run of the trainer."""

    folder: Path
    returncode: int
    output: str

    @property
    def steps(self) -> list[dict[str, float]]:
        """Logged metrics of the training steps, in order."""
        records = [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]
        return [record["data"] for record in records if "training/global_step" in record["data"]]

    def metric(self, name: str) -> list[float]:
        """One metric over the steps."""
        return [step[f"prune_opd/{name}"] for step in self.steps]

    def dump(self, step: int) -> list[dict[str, torch.Tensor]]:
        """The tensors behind a step, one dictionary per update and rank."""
        return [
            torch.load(file, weights_only=True)
            for file in sorted((self.folder / "dump").glob(f"step_{step}_*rank_*.pt"))
        ]

    def budget(self, step: int) -> dict[str, int]:
        """The budget's state in a checkpoint."""
        return json.loads(
            (self.folder / f"checkpoints/global_step_{step}/prune_opd.json").read_text()
        )["budget"]

    def prompts(self, step: int) -> list[str]:
        """The prompts a step was trained on, sorted."""
        return sorted(line["input"] for line in self.rollouts(step))

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        """The responses a step was trained on, as verl writes them down."""
        lines = (self.folder / f"rollouts/{step}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def command(inputs: Path, folder: Path, recipe: str, settings: dict[str, Any]) -> list[str]:
    """The documented command on the test's models, each setting overridable; one of None is left
    out."""
    defaults = {
        "actor_rollout_ref.model.path": inputs / "student",
        "prune_opd.teacher.path": inputs / "student",
        "prune_opd.dump_dir": folder / "dump",
        "data.train_files": inputs / "data/train.parquet",
        "data.val_files": inputs / "data/validation.parquet",
        "data.max_prompt_length": 128,
        "data.max_response_length": MAX_RESPONSE,
        "data.train_batch_size": 8,
        "data.seed": 1,
        "actor_rollout_ref.rollout.name": ENGINE,
        "actor_rollout_ref.rollout.n": 2,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 1024,
        "actor_rollout_ref.actor.optim.lr": 1e-4,
        "reward.custom_reward_function.path": PAIRS / "walk.py",
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.rollout_data_dir": folder / "rollouts",
        "trainer.validation_data_dir": folder / "validation",
        "trainer.logger": "[console,file]",
        "trainer.project_name": "e2e",
        "trainer.experiment_name": folder.name,
    }
    settings = defaults | settings
    given = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        f"+recipe={recipe}",
        "+platform=cpu",
        *given,
    ]


def run(
    inputs: Path,
    folder: Path,
    settings: dict[str, Any],
    recipe: str = "prune_opd",
    kill_when: Callable[[], bool] = lambda: False,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Start the trainer, with ``more`` in its environment, and wait for its end; ``kill_when``
    answering True kills it and all its children at once."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "TENSORBOARD_DIR": str(folder / "tensorboard"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        **more,
    }
    log = folder / "output.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command(inputs, folder, recipe, settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        deadline = time.monotonic() + TIMEOUT
        try:
            while process.poll() is None and time.monotonic() < deadline and not kill_when():
                time.sleep(0.05)
        finally:
            end_children(process)
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    return Run(folder, process.returncode, text)


def finished(run: Run) -> Run:
    """The run, if it came to its end."""
    assert run.returncode == 0, run.output[-5000:]
    return run


def run_killed_once(inputs: Path, folder: Path, settings: dict[str, Any], saved: int) -> Run:
    """Kill a run once the checkpoint of step ``saved`` is complete, and start it again."""
    tracker = folder / "checkpoints" / TRACKER
    killed = run(
        inputs,
        folder,
        settings,
        kill_when=lambda: tracker.exists() and tracker.read_text() == str(saved),
    )
    assert killed.returncode != 0
    return run(inputs, folder, settings)


def end_children(process: subprocess.Popen) -> None:
    """Kill what the run started and has not ended: its session and Ray's daemons, which leave
    it."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        if child.is_running():
            child.kill()
    process.wait(30)


def servers() -> list[psutil.Process]:
    """Our servers that are running, in the order of their start: a teacher's, then the
    rollout's."""
    name = {"vllm": "ray::TopKHttpServer", "sglang": "ray::TopKSGLangServer"}[ENGINE]
    return sorted(started(name), key=psutil.Process.create_time)


def started(name: str) -> list[psutil.Process]:
    """Processes of a name that these tests have started, no one else's on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_with_children(process: psutil.Process) -> None:
    """As a machine that goes down would."""
    for one in [*process.children(recursive=True), process]:
        one.kill()
