"""Every row of the data has a reward function that knows it, or the run does not start."""

import copy

import pytest
from made import check_inputs, refusal, row, save_data
from omegaconf import OmegaConf

from recipe.prune_opd.checks.scoring import (
    GRADING,
    NAMED_SCORER,
    PREPARED,
    SCORER,
    grades_here,
    reads_rows,
    verl_scores,
)
from recipe.prune_opd.commands.prepare.command import DATASETS

KNOWN = (
    "openai/gsm8k",
    "lighteval/MATH",
    "math_dapo",
    "aime_2024",
    "numina_cn_k12",
    "apps",
    "hiyouga/geometry3k",
)


def test_the_sources_of_prepare_are_known_here():
    assert set(PREPARED) == {dataset.source for dataset in DATASETS.values()}


@pytest.mark.parametrize("source", [*KNOWN, "searchR1_nq"])
def test_verls_reward_function_knows(source, capfd):
    assert verl_scores(source)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("source", ["AIME24", "mine", "", None, 3])
def test_verls_reward_function_does_not_know(source):
    assert not verl_scores(source)


def sources(*names: str) -> dict[str, str]:
    return {name: f"data.val_files: {name}.parquet, row 0" for name in names}


@pytest.mark.parametrize(
    ("names", "here"),
    [
        (("AIME24",), True),
        (("math_dapo", "AIME24", "HMMT25"), True),
        (("math_dapo",), False),
        (("openai/gsm8k", "math_dapo"), False),
        ((), False),
    ],
)
def test_rows_that_verl_does_not_know_are_graded_here(config, names, here):
    assert grades_here(config, sources(*names)) is here


def test_rows_that_nobody_knows_are_refused(config):
    with pytest.raises(
        ValueError, match=r"^data\.val_files: mine\.parquet, row 0 has the data_source 'mine'"
    ) as refused:
        grades_here(config, sources("AIME24", "mine"))
    assert f"reward.custom_reward_function.path, {GRADING}" in str(refused.value)


def test_rows_that_no_single_function_knows_are_refused(config):
    with pytest.raises(
        ValueError, match=r"AIME24\.parquet, row 0 has the data_source 'AIME24'"
    ) as refused:
        grades_here(config, sources("openai/gsm8k", "AIME24"))
    assert "openai/gsm8k.parquet, row 0 has 'openai/gsm8k'" in str(refused.value)


@pytest.mark.parametrize(
    "key", ["reward.custom_reward_function.path", "custom_reward_function.path"]
)
@pytest.mark.parametrize(("path", "reader"), [("mine.py", NAMED_SCORER), (GRADING, SCORER)])
def test_a_function_that_is_named_is_kept(config, key, path, reader):
    OmegaConf.update(config, key, path, force_add=True)
    assert not grades_here(config, sources("AIME24", "mine", "openai/gsm8k"))
    assert reads_rows(config) == reader


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward.reward_manager.source", "importlib"),
        ("reward_model.reward_loop_source", "importlib"),
        ("reward.reward_model.enable", True),
        ("reward_model.enable", True),
    ],
)
def test_who_scores_without_reading_rows_is_left_alone(config, key, value):
    OmegaConf.update(config, key, value, force_add=True)
    assert reads_rows(config) is None
    assert not grades_here(config, sources("mine"))


def test_a_configuration_that_verl_has_brought_up_to_date_is_understood(config):
    """The trainer's process sees it so."""
    from verl.experimental.reward_loop import migrate_legacy_reward_impl

    config.custom_reward_function.path = "mine.py"
    config = migrate_legacy_reward_impl(config)
    assert "custom_reward_function" not in config
    assert reads_rows(config) == NAMED_SCORER


def test_files_of_prepare_are_graded_here_unless_another_function_is_named(inputs, tmp_path):
    assert check_inputs(inputs).reward_function == GRADING
    inputs.data.train_files = inputs.data.val_files = save_data(
        tmp_path / "d.parquet", [row(data_source="math_dapo")]
    )
    assert check_inputs(inputs).reward_function is None
    inputs.data.val_files = save_data(tmp_path / "mine.parquet", [row(), row(data_source="mine")])
    assert refusal(inputs).startswith(
        f"data.val_files: {tmp_path / 'mine.parquet'}, row 1 has the data_source 'mine'"
    )
    inputs.reward.custom_reward_function.path = "mine.py"
    assert check_inputs(inputs).reward_function is None


def test_the_trainer_grades_here_where_the_data_needs_it(inputs, tmp_path, monkeypatch, capsys):
    """verl's own trainer, which starts Ray, is not built; it would read the configuration that is
    left."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from recipe.prune_opd.training import trainer

    monkeypatch.setattr(PPOTrainerSync, "__init__", lambda self, config: None)
    inputs.prune_opd.records.dir = None
    OmegaConf.update(
        inputs,
        "actor_rollout_ref.model.override_config.attn_implementation",
        "sdpa",
        force_add=True,
    )
    mine = copy.deepcopy(inputs)
    trainer.PruneOPDTrainer(inputs)
    assert inputs.reward.custom_reward_function.path == GRADING
    assert f"  scores    {GRADING}, as verl's has no rule for this data" in capsys.readouterr().out
    mine.reward.custom_reward_function.path = "mine.py"
    trainer.PruneOPDTrainer(mine)
    assert mine.reward.custom_reward_function.path == "mine.py"
    assert "scores" not in capsys.readouterr().out
