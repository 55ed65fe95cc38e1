"""verl's own distillation trains on L times its forward KL: ``+recipe=drift_weights``."""

import copy
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from recipe.prune_opd.checks.drift_weights import DRIFT_WEIGHTS_SETTINGS, check_drift_weights
from recipe.prune_opd.training.start import DriftWeightsCheck

PROMPTS, RESPONSES = (2, 1, 3), (4, 1, 3)
K, V = 4, 9
LOSS = "distillation.distillation_loss"
TEACHER = "distillation.teacher_models.teacher_model"
GIVEN = ("+recipe=drift_weights", f"{TEACHER}.model_path=T")


@pytest.fixture(scope="session")
def recipe(compose):
    return compose(*GIVEN)


@pytest.fixture
def config(recipe):
    """The recipe's configuration, free to change."""
    return copy.deepcopy(recipe)


# --------------------------------------------------------------------------------------------- loss


def jagged(rows):
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


@pytest.fixture
def batch():
    """Three responses with the teacher's top k on every row; the first has a tool's token."""
    generator = torch.Generator().manual_seed(0)
    lengths = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    sequences = [torch.randint(0, V, (n,), generator=generator) for n in lengths]
    top = [torch.randn(n, V, generator=generator).log_softmax(-1).topk(K) for n in lengths]
    mask = [torch.ones(r) for r in RESPONSES]
    mask[0][1] = 0
    fields = {
        "input_ids": jagged(sequences),
        "prompts": jagged([s[:p] for s, p in zip(sequences, PROMPTS, strict=True)]),
        "responses": jagged([s[p:] for s, p in zip(sequences, PROMPTS, strict=True)]),
        "response_mask": jagged(mask),
        "teacher_ids": jagged([t.indices for t in top]),
        "teacher_logprobs": jagged([t.values for t in top]),
    }
    numbers = {"dp_size": 1, "batch_num_tokens": 7, "global_batch_size": len(PROMPTS)}
    data = TensorDict(fields, batch_size=len(PROMPTS))
    from verl.utils import tensordict_utils as tu

    for key, value in numbers.items():
        tu.assign_non_tensor_data(data, key, value)
    return data


@pytest.fixture
def logits():
    rows = sum(PROMPTS) + sum(RESPONSES)
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(1)).requires_grad_()


def settings(config, **drift):
    """verl's typed nodes of the actor and of the distillation."""
    from verl.utils.config import omega_conf_to_dataclass

    for key, value in ({"topk": K} | drift).items():
        OmegaConf.update(config, f"{LOSS}.{key}", value)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor), omega_conf_to_dataclass(
        config.distillation
    )


def verls_loss(actor, distillation, logits, batch):
    """What verl's engine does: the top-k pass over the logits, made jagged, then the loss."""
    from verl.trainer.distillation import distillation_ppo_loss

    columns = distillation_ppo_loss(
        actor, distillation, data=batch, student_logits=logits.unsqueeze(0)
    )
    offsets = batch["input_ids"].offsets()
    output = {
        name: torch.nested.nested_tensor_from_jagged(column.squeeze(0), offsets)
        for name, column in columns.items()
    }
    return distillation_ppo_loss(actor, distillation, model_output=output, data=batch)


def by_hand(logits, batch, threshold, w_drop, w_base):
    """Σ_t L_t Σ_v q (log q - log p) over the 7 tokens of the mask, and each token's event, L and
    R."""
    total, tokens, start = 0.0, [], 0
    for one, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        count = 0
        for t in range(r):
            if not batch["response_mask"][one][t]:
                continue
            ids = batch["teacher_ids"][one][p + t - 1]
            theirs = batch["teacher_logprobs"][one][p + t - 1]
            row = logits[start + p + t - 1].log_softmax(-1)
            shared = set(ids.tolist()) & set(row.topk(K).indices.tolist())
            event = len(shared) / K < threshold
            count += event
            weight = min(1.0, max(0.0, 1 - w_drop * count))
            kl = (theirs.exp() * (theirs - row[ids])).sum().clamp_min(0)
            total = total + (weight + w_base) * kl
            tokens.append((event, weight + w_base, weight == 0))
        start += p + r
    return total / 7, torch.tensor(tokens, dtype=torch.float32).mean(0)


RULES = {"threshold": 0.6, "w_drop": 0.5, "w_base": 0.25}


def test_verl_trains_on_the_weighted_losses(config, batch, logits):
    loss, metrics = verls_loss(*settings(config, **RULES), logits, batch)
    expected, means = by_hand(logits, batch, **RULES)
    torch.testing.assert_close(loss, expected)
    gradients = [
        torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (loss, expected)
    ]
    torch.testing.assert_close(*gradients)
    names = ("event_rate", "loss_weight", "zero_weight_ratio")
    found = torch.tensor([metrics[f"distillation/{name}"] for name in names])
    torch.testing.assert_close(found, means)
    assert 0 < means[2] < means[0] < 1  # so that all three say something here


def test_without_weight_lost_it_is_verls_own_loss(config, batch, logits):
    weighted, metrics = verls_loss(*settings(config, w_drop=0, w_base=0), logits, batch)
    OmegaConf.update(config, f"{LOSS}.loss_mode", "forward_kl_topk")
    plain, theirs = verls_loss(*settings(config), logits, batch)
    assert torch.equal(weighted, plain)
    assert set(metrics) - set(theirs) == {
        "distillation/event_rate",
        "distillation/loss_weight",
        "distillation/zero_weight_ratio",
    }


def test_a_policy_gradient_is_weighted_too(config, batch, logits):
    """verl's other use of the losses, as rewards of the sampled tokens."""
    actor, distillation = settings(config, use_policy_gradient=True, **RULES)
    log_probs = torch.zeros(batch["input_ids"].values().shape[0]).requires_grad_()
    from verl.trainer.distillation import losses

    columns = losses.distillation_ppo_loss(
        actor, distillation, data=batch, student_logits=logits.unsqueeze(0)
    )
    columns["log_probs"] = log_probs.unsqueeze(0)
    offsets = batch["input_ids"].offsets()
    output = {
        name: torch.nested.nested_tensor_from_jagged(column.squeeze(0), offsets)
        for name, column in columns.items()
    }
    batch["old_log_probs"] = torch.zeros(len(PROMPTS), max(RESPONSES))
    loss, _ = losses.distillation_loss(actor, distillation, output, batch)
    expected, _ = by_hand(logits, batch, **RULES)
    # At ratio 1 the loss is minus the mean advantage, and the advantage minus the weighted loss.
    torch.testing.assert_close(loss, expected.detach())
    loss.backward()
    assert log_probs.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------- checks

WRONG = {
    "distillation.enabled": False,
    f"{LOSS}._target_": "verl.workers.config.DistillationLossConfig",
    f"{LOSS}.loss_mode": "k1",
    "actor_rollout_ref.actor.strategy": "torchtitan",
    "actor_rollout_ref.model.use_fused_kernels": True,
    "actor_rollout_ref.actor.pad_to_length": True,
}
NUMBERS = {
    f"{LOSS}.topk": 0,
    f"{LOSS}.threshold": 1.5,
    f"{LOSS}.w_drop": -0.1,
    f"{LOSS}.w_base": "much",
    "distillation.nnodes": 0,
    "distillation.n_gpus_per_node": 0,
    f"{TEACHER}.model_path": None,
}


def refusal(config):
    with pytest.raises(ValueError, match=": got ") as refused:
        check_drift_weights(config)
    return str(refused.value)


def test_the_recipe_itself_is_allowed(config):
    before = copy.deepcopy(config)
    check_drift_weights(config)
    assert config == before  # verl builds its own later


@pytest.mark.parametrize("setting", DRIFT_WEIGHTS_SETTINGS, ids=lambda setting: setting.key)
def test_wrong_settings_are_refused(config, setting):
    OmegaConf.update(config, setting.key, WRONG[setting.key])
    said = refusal(config)
    assert said.startswith(f"{setting.key}: got {WRONG[setting.key]!r}, allowed with drift_weights")
    assert said.endswith(setting.why)


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_out_of_range_are_refused(config, key):
    OmegaConf.update(config, key, NUMBERS[key])
    assert refusal(config).startswith(f"{key}: got ")


def test_of_several_teachers_each_needs_a_key(config):
    models = config.distillation.teacher_models
    for name, key in {"one": "a", "two": None}.items():
        given = {**models.teacher_model, "key": key, "num_replicas": 4}
        OmegaConf.update(models, name, given, force_add=True)
    assert refusal(config) == ("distillation.teacher_models.two.key: got no value, allowed: a text")
    models.two.key = "b"
    check_drift_weights(config)


def test_what_verl_itself_refuses_is_said_before_the_start_too(config):
    OmegaConf.update(config, f"{TEACHER}.inference.max_model_len", 10)
    with pytest.raises(SystemExit) as end:
        DriftWeightsCheck().on_job_start(config)
    assert str(end.value.code).startswith("drift_weights cannot start: Distillation teacher")


def test_with_prune_opd_it_is_refused(compose):
    from recipe.prune_opd.training.preflight import check_values

    config = compose("+recipe=[prune_opd,drift_weights]", "prune_opd.teacher.path=T", *GIVEN[1:])
    with pytest.raises(
        ValueError, match=r"^distillation\.enabled: got True, allowed with prune_opd"
    ):
        check_values(config)


def test_a_worker_that_builds_the_node_has_the_loss(tmp_path):
    """In a fresh process, as Ray's are, where nothing but verl was imported before."""
    code = (
        "from verl.utils.config import omega_conf_to_dataclass as build\n"
        "from verl.trainer.distillation.losses import DISTILLATION_LOSS_REGISTRY as losses\n"
        "assert 'drift_weights' not in losses\n"
        "build({'_target_': 'recipe.prune_opd.training.drift_weights.DriftWeightsLossConfig'})\n"
        "assert 'drift_weights' in losses\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=300)
