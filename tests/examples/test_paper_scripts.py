"""Every run script of the paper resolves to the paper's settings, wherever it is started from.

Nothing is trained.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.config import load_config
from recipe.prune_opd.training.preflight import check_values

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
FIRST_LIMIT = {
    "r1_1.5b_from_justrl": 2048,
    "r1_1.5b_from_r1_7b": 1024,
    "qwen3_4b_base_from_qwen3_4b": 1024,
    "r1_7b_from_skywork": 2048,
}
SCRIPTS = [*FIRST_LIMIT, *(f"{pair}_opd" for pair in FIRST_LIMIT)]


Compose = Callable[..., DictConfig]


def run(script: str, *arguments: str, python: Path, **environment: str) -> str:
    """What the interpreter that a script calls prints."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("STUDENT", "TEACHER", "RECIPE")
    }
    done = subprocess.run(
        ["bash", str(PAPER / f"{script}.sh"), *arguments],
        env={**inherited, "PYTHON": str(python), "DATA_DIR": "data", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands in for the interpreter: starting verl takes seconds, and the arguments are all that a
    script decides."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    path.chmod(0o755)
    return path


def resolve(
    compose: Compose, echo: Path, script: str, *arguments: str, **environment: str
) -> dict[str, Any]:
    """The configuration a script would start verl with."""
    module, name, *overrides = run(script, *arguments, python=echo, **environment).splitlines()
    assert (module, name) == ("-m", "verl.trainer.main_ppo")
    return OmegaConf.to_container(compose(*overrides))


@pytest.fixture(scope="module")
def resolved(compose: Compose, echo: Path) -> dict[str, dict[str, Any]]:
    return {script: resolve(compose, echo, script) for script in SCRIPTS}


@pytest.fixture
def config(resolved: dict[str, dict[str, Any]]) -> Callable[[str], DictConfig]:
    return lambda script: OmegaConf.create(resolved[script])


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name in node
        for key, value in flat(node[name], f"{prefix}.{name}".lstrip(".")).items()
    }


def test_every_script_is_tested() -> None:
    assert {path.stem for path in PAPER.glob("*.sh")} == {"run", *SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_settings_are_accepted(config: Callable[[str], DictConfig], script: str) -> None:
    check_values(config(script))


@pytest.mark.parametrize("script", SCRIPTS)
def test_training_is_as_in_the_paper(config: Callable[[str], DictConfig], script: str) -> None:
    found = config(script)
    actor, rollout, data = (
        found.actor_rollout_ref.actor,
        found.actor_rollout_ref.rollout,
        found.data,
    )
    assert (data.train_batch_size, rollout.n, actor.ppo_mini_batch_size, actor.ppo_epochs) == (
        64,
        4,
        64,
        1,
    )
    assert (actor.optim.lr, actor.optim.lr_scheduler_type, actor.optim.lr_warmup_steps_ratio) == (
        1e-6,
        "constant",
        0,
    )
    assert (actor.grad_clip, actor.optim.clip_grad, actor.fsdp_config.model_dtype) == (
        1.0,
        1.0,
        "fp32",
    )
    assert (rollout.temperature, rollout.top_p, rollout.tensor_model_parallel_size) == (1.0, 1, 1)
    assert (data.max_prompt_length, data.max_response_length) == (1024, 31744)
    assert (found.trainer.nnodes, found.trainer.n_gpus_per_node) == (1, 8)
    assert (
        found.trainer.total_epochs,
        found.trainer.total_training_steps,
        found.trainer.test_freq,
    ) == (1, 203, 20)
    thinking = data.apply_chat_template_kwargs.get("enable_thinking")
    assert thinking == (False if "qwen3" in script else None)


@pytest.mark.parametrize("script", SCRIPTS)
def test_memory_and_disk_are_used_sparingly(
    config: Callable[[str], DictConfig], script: str
) -> None:
    found = config(script)
    share = found.actor_rollout_ref.rollout.gpu_memory_utilization
    assert share == (0.7 if script.startswith("r1_7b_from_skywork") else 0.75)
    assert found.trainer.max_actor_ckpt_to_keep == 2
    assert "GB of CPU memory" in (PAPER / f"{script.removesuffix('_opd')}.sh").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_validation_is_as_in_the_paper(config: Callable[[str], DictConfig], script: str) -> None:
    found = config(script)
    rollout, sampling = found.actor_rollout_ref.rollout, found.actor_rollout_ref.rollout.val_kwargs
    assert (sampling.n, sampling.do_sample, sampling.temperature, sampling.top_p) == (
        16,
        True,
        1.0,
        0.95,
    )
    assert (rollout.response_length, rollout.max_model_len) == (31744, 1024 + 31744)
    assert [Path(file).stem for file in found.data.val_files] == [
        "amc23",
        "aime24",
        "aime25",
        "hmmt24",
        "hmmt25",
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_pass_holds_the_longest_sequence(
    config: Callable[[str], DictConfig], script: str
) -> None:
    node = config(script).actor_rollout_ref
    assert node.actor.use_dynamic_bsz
    assert node.rollout.log_prob_use_dynamic_bsz
    assert node.ref.log_prob_use_dynamic_bsz
    for tokens in (
        node.actor.ppo_max_token_len_per_gpu,
        node.rollout.log_prob_max_token_len_per_gpu,
        node.ref.log_prob_max_token_len_per_gpu,
    ):
        assert tokens >= 1024 + 12288


@pytest.mark.parametrize("pair", FIRST_LIMIT)
def test_method_is_as_in_the_paper(config: Callable[[str], DictConfig], pair: str) -> None:
    ours = load_config(config(pair).prune_opd)
    budget, drift = ours.budget.resolved(31744).build(), ours.drift
    assert (ours.topk, ours.strategy, ours.weighting, ours.teacher.temperature) == (
        16,
        "only_stu",
        "student_p",
        1.0,
    )
    assert (drift.enable, drift.metric, drift.threshold) == (True, "overlap_ratio", 0.7)
    assert (drift.w_drop, drift.w_base) == (0.01, 0.5)
    assert (budget.limit, budget.min, budget.max) == (FIRST_LIMIT[pair], 1024, 12288)
    assert (budget.step, budget.hit_ratio, budget.margin, budget.patience) == (100, 0.1, 100, 3)


@pytest.mark.parametrize("pair", FIRST_LIMIT)
def test_twin_does_not_prune(config: Callable[[str], DictConfig], pair: str) -> None:
    ours = load_config(config(f"{pair}_opd").prune_opd)
    budget = ours.budget.resolved(31744).build()
    assert not ours.drift.enable
    assert (budget.limit, budget.min, budget.max) == (12288, 12288, 12288)


@pytest.mark.parametrize("pair", FIRST_LIMIT)
def test_twin_differs_in_pruning_alone(resolved: dict[str, dict[str, Any]], pair: str) -> None:
    one, other = flat(resolved[pair]), flat(resolved[f"{pair}_opd"])
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} == {
        "prune_opd.drift.enable",
        "prune_opd.budget.enable",
        "prune_opd.budget.init",
        "trainer.experiment_name",
    }


def test_verl_takes_the_command(resolved: dict[str, dict[str, Any]]) -> None:
    printed = run("qwen3_4b_base_from_qwen3_4b", "--cfg", "job", python=Path(sys.executable))
    assert yaml.safe_load(printed) == resolved["qwen3_4b_base_from_qwen3_4b"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_files_are_named_by_absolute_paths(
    config: Callable[[str], DictConfig], script: str
) -> None:
    """The trainer's process has neither the shell's folder nor its variables."""
    data, folder = config(script).data, Path.cwd() / "data"
    assert data.train_files == str(folder / "dapo_math_17k.parquet")
    assert {str(Path(file).parent) for file in data.val_files} == {str(folder)}


def test_nothing_of_a_script_is_resolved_elsewhere(compose: Compose, echo: Path) -> None:
    _, _, *overrides = run(SCRIPTS[0], python=echo).splitlines()
    assert "oc.env" not in OmegaConf.to_yaml(compose(*overrides))


def test_environment_and_arguments_win(compose: Compose, echo: Path) -> None:
    lr = "actor_rollout_ref.actor.optim.lr=2e-6"
    found = resolve(
        compose, echo, "r1_1.5b_from_justrl_opd", lr, STUDENT="here", TEACHER="there", GPUS="4"
    )
    assert found["actor_rollout_ref"]["model"]["path"] == "here"
    assert found["prune_opd"]["teacher"]["path"] == "there"
    assert found["actor_rollout_ref"]["actor"]["optim"]["lr"] == 2e-6
    assert found["trainer"]["n_gpus_per_node"] == 4


def test_fixed_length_leaves_the_limit_to_the_caller(compose: Compose, echo: Path) -> None:
    limit = "prune_opd.budget.max=1800"
    found = resolve(compose, echo, "r1_1.5b_from_justrl", limit, RECIPE="opd_fixed_length")
    budget = load_config(OmegaConf.create(found).prune_opd).budget.resolved(31744).build()
    assert (budget.limit, budget.min, budget.max) == (1800, 1800, 1800)


def test_scores_are_our_grader_s(config: Callable[[str], DictConfig]) -> None:
    assert config(SCRIPTS[0]).reward.custom_reward_function == {
        "path": "pkg://recipe.prune_opd.grading",
        "name": "compute_score",
    }
