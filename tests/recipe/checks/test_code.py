"""Code of the user's own that cannot be loaded is refused by name before Ray starts."""

import pytest
from made import check_inputs, refusal
from omegaconf import OmegaConf

from recipe.prune_opd.checks.attention import check_attention
from recipe.prune_opd.training.preflight import check_values

OWN = """
from torch.utils.data import Dataset
def score(data_source, solution_str, ground_truth, extra_info=None): return 0.0
class Rows(Dataset): pass
"""
KEYS = {
    "reward.custom_reward_function.path": "score",
    "custom_reward_function.path": "score",
    "data.custom_cls.path": "Rows",
    "reward.reward_manager.module.path": "Rows",
}


def name_own(config, key, path, name):
    named = f"{key.removesuffix('.path')}.name"
    if key.startswith("reward.reward_manager"):
        config.reward.reward_manager.source, named = "importlib", "reward.reward_manager.name"
    OmegaConf.update(config, key, str(path), force_add=True)
    OmegaConf.update(config, named, name, force_add=True)


@pytest.mark.parametrize(("key", "name"), KEYS.items(), ids=KEYS)
def test_code_of_the_users_own(inputs, tmp_path, key, name):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    name_own(inputs, key, own, name)
    check_inputs(inputs)
    name_own(inputs, key, own, "gone")
    assert refusal(inputs).startswith(f"{key}: 'gone' cannot be loaded from {own} (")
    name_own(inputs, key, tmp_path / "none.py", name)
    assert refusal(inputs).startswith(
        f"{key}: {name!r} cannot be loaded from {tmp_path / 'none.py'} ("
    )
    own.write_text("import nowhere_to_be_found")
    name_own(inputs, key, own, name)
    assert "No module named 'nowhere_to_be_found'" in refusal(inputs)


def test_a_module_by_name(inputs):
    name_own(
        inputs,
        "reward.custom_reward_function.path",
        "pkg://recipe.prune_opd.grading",
        "compute_score",
    )
    check_inputs(inputs)
    name_own(
        inputs, "reward.custom_reward_function.path", "pkg://nowhere_to_be_found", "compute_score"
    )
    assert refusal(inputs).startswith(
        "reward.custom_reward_function.path: 'compute_score' cannot be loaded from pkg://"
    )


def test_a_library_that_cannot_be_imported_is_named(inputs):
    inputs.actor_rollout_ref.model.external_lib = "nowhere_to_be_found"
    said = (
        "actor_rollout_ref.model.external_lib: nowhere_to_be_found cannot be imported"
        " (ModuleNotFoundError: "
    )
    assert refusal(inputs).startswith(said)
    with pytest.raises(ValueError, match="external_lib"):
        check_attention(inputs, check_values(inputs)[1].held)
