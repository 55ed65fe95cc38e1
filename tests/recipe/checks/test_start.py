"""A run that cannot work ends in one sentence before Ray starts."""

import os
import subprocess
import sys

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.inputs import Inputs
from recipe.prune_opd.teacher.worker_group import WorkerGroup
from recipe.prune_opd.training import preflight
from recipe.prune_opd.training.start import StartCheck


@pytest.fixture
def here(monkeypatch) -> list[str]:
    """No cluster, and stand-ins for what depends on the machine: their names are noted."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    called: list[str] = []

    def noted(name: str) -> Inputs:
        called.append(name)
        return Inputs(None, (None,), None)

    monkeypatch.setattr(preflight, "check_attention", lambda *given: called.append("attention"))
    monkeypatch.setattr(preflight, "check_inputs", lambda *given, **named: noted("inputs"))
    monkeypatch.setattr(WorkerGroup, "check_models", lambda *given: called.append("models"))
    return called


def ending(config: DictConfig) -> str:
    with pytest.raises(SystemExit) as end:
        StartCheck().on_job_start(config)
    assert isinstance(end.value.code, str)  # Python prints it and exits with 1
    assert end.value.code.startswith("prune_opd cannot start: ")
    assert "\n" not in end.value.code
    return end.value.code


def test_start_goes_on_with_good_input(config, here):
    StartCheck().on_job_start(config, config_name="ppo_trainer")
    assert here == ["attention", "inputs", "models"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("prune_opd.topk", 0), ("critic.enable", True), ("data.max_response_length", 0)],
)
def test_start_ends_with_one_sentence(config, here, key, value):
    OmegaConf.update(config, key, value)
    assert key in ending(config)


def test_a_state_to_resume_from_is_looked_at_before_anything_else(config, here, tmp_path):
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    (tmp_path / "global_step_3/prune_opd.json").write_text('{"budget": {"limit": 50.7')
    config.trainer.default_local_dir = str(tmp_path)
    assert f"{tmp_path}/global_step_3/prune_opd.json is no JSON" in ending(config)
    assert here == []


@pytest.mark.parametrize("name", ["file/dump", "n" * 300, "a\0b", "\ud800"])
def test_a_folder_that_cannot_be_made_is_known_before_the_first_step(config, here, tmp_path, name):
    (tmp_path / "file").write_text("")
    config.prune_opd.dump_dir = str(tmp_path / name)
    assert "prune_opd.dump_dir: " in ending(config)
    assert here == []


@pytest.mark.parametrize("check", ["check_attention", "check_inputs"])
def test_what_depends_on_the_machine_ends_it_too(config, here, monkeypatch, check):
    def refuse(*arguments, **named):
        raise ValueError(f"some.key: {check}")

    monkeypatch.setattr(preflight, check, refuse)
    assert ending(config) == f"prune_opd cannot start: some.key: {check}"


def test_errors_nobody_foresaw_stop_the_start_too(config, monkeypatch):
    monkeypatch.setattr(preflight, "check_settings", lambda config: 1 / 0)
    assert ending(config) == "prune_opd cannot start: ZeroDivisionError: division by zero"


def test_an_interpolation_that_leads_nowhere_is_one_line(config, here):
    OmegaConf.update(config, "actor_rollout_ref.actor.use_dynamic_bsz", "${foo}")
    assert "Interpolation key 'foo' not found" in ending(config)


def test_the_machine_is_left_to_a_remote_cluster_but_settings_are_not(config, here, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    StartCheck().on_job_start(config)
    monkeypatch.delenv("RAY_ADDRESS")
    OmegaConf.update(config, "ray_kwargs.ray_init.address", "ray://head:10001", force_add=True)
    StartCheck().on_job_start(config)
    assert here == []
    config.prune_opd.topk = 0
    ending(config)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["+platform=cpu", "prune_opd.drift.threshold=1.5"],
            "prune_opd.drift.threshold: got 1.5, allowed: a number in (0, 1]",
        ),
        (
            ["trainer.device=cpu"],
            (
                "actor_rollout_ref.model.override_config.attn_implementation: got"
                " 'flash_attention_2', verl's default, which needs a GPU, allowed with"
                " trainer.device=cpu: sdpa or eager; +platform=cpu sets sdpa"
            ),
        ),
    ],
    ids=["setting", "attention"],
)
def test_verl_ends_before_ray_starts(tmp_path, overrides, sentence):
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path / "ray"), "HYDRA_FULL_ERROR": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = ["verl.trainer.main_ppo", "+recipe=prune_opd", "prune_opd.teacher.path=T", *overrides]
    run = subprocess.run(
        [sys.executable, "-m", *command, f"hydra.run.dir={tmp_path}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"prune_opd cannot start: {sentence}"
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "ray").exists()
    assert "Ray instance" not in run.stdout + run.stderr


@pytest.mark.parametrize("mode", ["sync", "separate_async", "no_such"])
def test_a_trainer_without_pruning_is_refused(config, mode):
    config.trainer.v1.trainer_mode = mode
    assert f"trainer.v1.trainer_mode: got '{mode}', allowed" in ending(config)


@pytest.mark.parametrize("name", ["single_turn_agent", "tool_agent"])
def test_the_method_is_put_around_any_agent_loop(config, name):
    config.actor_rollout_ref.rollout.agent.default_agent_loop = name
    preflight.check_values(config)


@pytest.mark.parametrize("name", ["no_such", "prune_opd"])
def test_an_agent_loop_that_nobody_knows_is_refused(config, name):
    """Ours is no loop to be put inside of ours."""
    config.actor_rollout_ref.rollout.agent.default_agent_loop = name
    found = rf"default_agent_loop: got '{name}', allowed: .*single_turn_agent.*, tool_agent"
    with pytest.raises(ValueError, match=found):
        preflight.check_values(config)


def test_a_cached_response_is_one_turn(config):
    config.prune_opd.semi.enable = True
    preflight.check_values(config)
    config.actor_rollout_ref.rollout.agent.default_agent_loop = "tool_agent"
    with pytest.raises(ValueError, match=r"got 'tool_agent', allowed with prune_opd\.semi\.enable"):
        preflight.check_values(config)


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async", "no_such"])
def test_a_trainer_that_a_command_names_is_the_one_below(config, mode):
    """A command of verl's with the recipe added."""
    config.trainer.v1.trainer_mode = mode
    StartCheck().on_run_start(config)
    assert config.trainer.v1.trainer_mode == "prune_opd"
    assert config.prune_opd.trainer_mode == mode


def test_two_trainer_modes_are_one_too_many(config):
    config.trainer.v1.trainer_mode = "colocate_async"
    config.prune_opd.trainer_mode = "separate_async"
    with pytest.raises(SystemExit, match=r"got 'colocate_async' beside prune_opd"):
        StartCheck().on_run_start(config)


def test_a_command_that_names_no_trainer_stays_as_it_is(config):
    before = config.copy()
    config.prune_opd.trainer_mode = before.prune_opd.trainer_mode = "separate_async"
    StartCheck().on_run_start(config)
    assert config == before
    config.prune_opd = before.prune_opd = None  # refused later, in words
    StartCheck().on_run_start(config)
    assert config == before


def test_hydra_takes_a_trainer_mode_of_verls_and_refuses_it_in_a_sweep(tmp_path):
    """The real command, as far as Hydra goes: what it would start, in its own words."""
    loop = "actor_rollout_ref.rollout.agent.default_agent_loop"
    settings = ["prune_opd.teacher.path=T", "trainer.v1.trainer_mode=colocate_async"]
    overrides = ["+recipe=prune_opd", *settings, f"{loop}=no_such"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo"]
    environment = os.environ | {"HYDRA_FULL_ERROR": "0"}
    environment.pop("RAY_ADDRESS", None)
    said = {}
    for name, more in {"run": [], "sweep": ["-m", "prune_opd.topk=8,16"]}.items():
        run = subprocess.run(
            [*command, *more, *overrides, f"hydra.{name}.dir={tmp_path}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert run.returncode == 1
        said[name] = run.stderr.splitlines()[-1].removeprefix("prune_opd cannot start: ")
    # Where the mode went through, the next thing is refused.
    assert said["run"].startswith(f"{loop}: got 'no_such'")
    assert said["sweep"].startswith("trainer.v1.trainer_mode: got 'colocate_async', allowed")
    assert said["sweep"].endswith("in a sweep, give verl's mode as prune_opd.trainer_mode")


def test_trainers_and_agent_loops_of_ones_own_are_known(config, here, tmp_path):
    """A trainer not by name: a subclass that is registered with verl is welcome."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer

    from recipe.prune_opd.training.trainer import PruneOPDTrainer

    file = tmp_path / "loops.yaml"
    file.write_text("- name: mine\n  _target_: my.Loop\n")
    config.actor_rollout_ref.rollout.agent.agent_loop_config_path = str(file)
    config.actor_rollout_ref.rollout.agent.default_agent_loop = "mine"
    config.trainer.v1.trainer_mode = "mine"
    register_trainer("mine")(type("Mine", (PruneOPDTrainer,), {}))
    try:
        StartCheck().on_job_start(config)
    finally:
        del TRAINER_REGISTRY["mine"]
    assert here == ["attention", "inputs", "models"]
