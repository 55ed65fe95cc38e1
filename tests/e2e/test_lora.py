"""A student with a LoRA adapter, whose teacher is the same model without it: no second copy."""

import harness
import pytest
import torch
from harness import finished
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import log_probs
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.e2e

STEPS = 3


@pytest.fixture(scope="session")
def adapter(inputs, tmp_path_factory):
    """Folder of an adapter that changes what the student says."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(inputs / "student"), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora(inputs, adapter, tmp_path_factory) -> harness.Run:
    """It goes back towards its base."""
    settings = {
        "actor_rollout_ref.model.lora_adapter_path": adapter,
        "actor_rollout_ref.model.lora_rank": 4,
        "actor_rollout_ref.model.lora_alpha": 8,
        "actor_rollout_ref.rollout.load_format": "safetensors",
        "actor_rollout_ref.actor.optim.lr": 1e-2,
        "prune_opd.teacher.home": "lora_base",
        "trainer.n_gpus_per_node": 2,
        "trainer.total_training_steps": STEPS,
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("lora"), settings))


def assert_scores(dumps: list[dict[str, torch.Tensor]], name: str, model) -> torch.Tensor:
    """The log-probs of a field, at the student's candidates, are a model's."""
    found = []
    for dump in dumps:
        for i, length in enumerate(dump["lengths"].tolist()):
            ids = dump["student_topk_ids"][i, :length].long()
            found.append(log_probs(model, dump, i).gather(1, ids))
            torch.testing.assert_close(dump[name][i, :length], found[-1], atol=1e-4, rtol=0)
    return torch.cat(found)


def test_both_are_scored_as_transformers_does(lora, inputs, adapter):
    """With the adapter and without."""
    base, other = (AutoModelForCausalLM.from_pretrained(inputs / "student") for _ in range(2))
    student = PeftModel.from_pretrained(other, adapter)
    theirs = assert_scores(lora.dump(1), "teacher_on_student_ids", base)
    own = assert_scores(lora.dump(1), "student_topk_log_probs", student)
    assert (theirs - own).abs().max() > 0.1


def test_the_student_goes_back_towards_its_base_which_stays_as_it_is(lora, inputs):
    """And the rollout servers get the adapter: they sample from what the trainer holds."""
    base = AutoModelForCausalLM.from_pretrained(inputs / "student")
    assert_scores(lora.dump(STEPS), "teacher_on_student_ids", base)
    assert max(logged["training/rollout_probs_diff_max"] for logged in lora.steps) < 1e-3
    rewards = lora.metric("reward_mean")
    assert rewards[0] < rewards[-1] < 0
