"""Rollouts that another student, teacher or setting made are refused before a run, with what
differs."""

import json
import shutil

import pytest
from made import check_inputs, save_model
from omegaconf import OmegaConf

from recipe.prune_opd.checks.rollouts import BLOCK, check_rollouts, made_by, model_digest
from recipe.prune_opd.training.preflight import check_files, check_values
from verl_ext.rollout.cache import MANIFEST, RolloutCache


@pytest.fixture
def making(inputs):
    """All that the rollouts of a configuration depend on, with or without the teacher."""

    def made(scores: bool = False) -> dict[str, str]:
        prompt, _ = check_values(inputs)
        found = check_inputs(inputs)
        teacher = found.teachers[0] if scores else None
        return made_by(inputs, prompt, found.student, teacher)[0]

    return made


CHANGES = {
    "actor_rollout_ref.rollout.temperature": 0.7,
    "actor_rollout_ref.rollout.top_p": 0.9,
    "actor_rollout_ref.rollout.top_k": 20,
    "actor_rollout_ref.rollout.calculate_log_probs": False,
    "actor_rollout_ref.model.lora_adapter_path": "/adapter",
    "data.max_prompt_length": 100,
    "prune_opd.budget.max": 40,
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_of_the_rollout_is_part_of_it(inputs, making, key):
    before = making()
    assert making() == before
    OmegaConf.update(inputs, key, CHANGES[key])
    after = making()
    assert [name for name in after if after[name] != before[name]] == [key]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.rollout.n", 4),
        ("data.train_batch_size", 1),
        ("prune_opd.drift.threshold", 0.5),
        ("prune_opd.topk", 4),
        ("actor_rollout_ref.rollout.gpu_memory_utilization", 0.3),
    ],
)
def test_others_are_not(inputs, making, key, value):
    before = making()
    OmegaConf.update(inputs, key, value)
    assert making() == before


def test_with_scores_the_teacher_is_part_of_it(inputs, making):
    assert making(scores=False)["prune_opd.teacher.path"] == "none"
    inputs.prune_opd.strategy = "sampled"
    before = making(scores=True)
    assert before["scores of the teacher"] == "top 16, sampled tokens, temperature 1"
    inputs.prune_opd.topk = 8
    assert making(scores=True)["scores of the teacher"].startswith("top 8,")


def test_a_chat_template_is_part_of_it(inputs, making):
    before = making()
    inputs.data.apply_chat_template_kwargs = {"enable_thinking": False}
    changed = making()
    differing = [name for name in changed if changed[name] != before[name]]
    assert differing == ["tokenizer and chat template"]


def test_a_model_is_known_by_its_content(tmp_path, inputs):
    student = check_inputs(inputs).student
    first = model_digest(student)
    copy = tmp_path / "copy"
    shutil.copytree(student.path, copy)
    student.path = str(copy)
    assert model_digest(student) == first
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes() if weights.exists() else bytes(BLOCK))
    content[-1 if len(content) < BLOCK else 9] ^= 1
    weights.write_bytes(content)
    assert model_digest(student) != first


def test_a_folder_of_another_making_is_refused_with_the_difference(tmp_path):
    folder = tmp_path / "rollouts"
    check_rollouts(folder, {"temperature": "1"}, {})
    RolloutCache(folder, {"temperature": "1"}, {})
    check_rollouts(folder, {"temperature": "1"}, {})
    with pytest.raises(ValueError, match=r"^prune_opd\.semi\.dir: .*temperature: 1, here 0\.7;"):
        check_rollouts(folder, {"temperature": "0.7"}, {})
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"^prune_opd\.semi\.dir: .*cannot be read"):
        check_rollouts(folder, {"temperature": "1"}, {})


def test_the_start_looks_into_the_folder(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.prune_opd.training.preflight.check_attention", lambda *given: None)
    inputs.prune_opd.semi.enable, inputs.prune_opd.semi.dir = True, str(tmp_path / "rollouts")
    given = check_values(inputs)
    check_files(inputs, *given)
    assert not (tmp_path / "rollouts").exists()  # looked, and made nothing
    making = made_by(inputs, given[0], check_inputs(inputs).student, None)
    RolloutCache(tmp_path / "rollouts", *making)
    check_files(inputs, *given)
    other = save_model(tmp_path / "other", hidden_size=16)
    inputs.actor_rollout_ref.model.path = other
    with pytest.raises(ValueError, match=r"another actor_rollout_ref\.model\.path: sha256:\w+ \("):
        check_files(inputs, *check_values(inputs))
    manifest = json.loads((tmp_path / "rollouts" / MANIFEST).read_text())
    assert manifest["notes"]["actor_rollout_ref.model.path"] != other
