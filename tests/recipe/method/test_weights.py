"""A token weighs what the chosen rule says, by hand; what is drift does not depend on it."""

import dataclasses
import math

import pytest
import torch

from recipe.prune_opd.config import DriftConfig, PruneOPDConfig
from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.pruning import find_drift, prune
from recipe.prune_opd.method.reward import Sampled, Scores, TopK
from recipe.prune_opd.method.weights import WEIGHTS, FirstTokens, ImportanceWeight

RULES = {"reliability": {}, "importance": {}, "first": {"tokens": 2}}


def scores_of(student: torch.Tensor, teacher: torch.Tensor) -> Scores:
    """Scores with these log-probs of the sampled tokens; every token is a drift event."""
    ids = torch.arange(2).expand(*student.shape, 2)
    log_probs = torch.full((*student.shape, 2), math.log(0.5))
    return Scores(
        torch.zeros(student.shape, dtype=torch.long),
        TopK(ids, log_probs),
        TopK(ids + 2, log_probs),
        teacher_on_student=log_probs - 1,
        sampled=Sampled(student, teacher),
    )


def config_of(weights: str, enable: bool = True, **args: object) -> PruneOPDConfig:
    drift = DriftConfig(enable=enable, w_drop=0.5, weights=weights, weights_args=args)
    return PruneOPDConfig(teacher={"path": "T"}, drift=drift)


def weigh(weights: str, gaps: list[float], mask: list[int], **args: object) -> list[float]:
    """L of one response whose log-probs differ by ``gaps``, student's over teacher's."""
    teacher = torch.tensor([gaps]) - 3
    scores, on = scores_of(torch.full_like(teacher, -3), teacher), torch.tensor([mask]).bool()
    (found,) = find_drift(scores, on, config_of(weights, **args).rules).reliability.loss_weight
    assert found.dtype == torch.float32
    return found.tolist()


def test_importance_by_hand():
    """|A| = 1, 2, 0, 1 of 4 in all: before the tokens lie 0, 1/4, 3/4, 3/4 of it."""
    assert weigh("importance", [-1, 2, 0, -1], [1] * 4) == [1.5, 1.375, 1.125, 1.125]
    assert weigh("importance", [-1, 2, 0, -1], [1] * 4, gamma=2) == [3, 2.5, 1.5, 1.5]
    assert weigh("importance", [-1, 2, 0, -1], [1] * 4, gamma=0) == [1] * 4


def test_importance_leaves_out_what_does_not_count():
    assert weigh("importance", [-1, 9, 2, 0, -1, 9], [1, 0, 1, 1, 1, 0]) == [
        1.5,
        0,
        1.375,
        1.125,
        1.125,
        0,
    ]


def test_importance_where_the_models_agree_or_the_teacher_excludes_a_token():
    assert weigh("importance", [0, 0, 0], [1] * 3) == [1.5] * 3
    assert weigh("importance", [1, -math.inf, 1], [1] * 3) == [1.5, 1.5, 1]
    assert weigh("importance", [1, 1], [0, 0]) == [0, 0]


def test_first_by_hand():
    assert weigh("first", [1] * 5, [1, 0, 1, 1, 0], tokens=3) == [1, 0, 1, 0, 0]
    assert weigh("first", [1] * 2, [1, 1], tokens=3) == [1, 1]


def random_batch(seed: int) -> tuple[Scores, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (-3 * torch.rand(3, 20, generator=generator) for _ in range(2))
    return scores_of(student, teacher), torch.rand(3, 20, generator=generator) < 0.8


@pytest.mark.parametrize("seed", range(5))
def test_importance_is_the_papers_formula_token_by_token(seed):
    scores, mask = random_batch(seed)
    found = find_drift(scores, mask, config_of("importance").rules).reliability.loss_weight
    for b in range(3):
        counted = mask[b].nonzero().flatten().tolist()
        gaps = (scores.sampled.teacher - scores.sampled.student)[b].abs().tolist()
        for t in counted:
            before = math.fsum(gaps[i] for i in counted if i < t)
            share = before / math.fsum(gaps[i] for i in counted)
            assert found[b, t].item() == pytest.approx(1 + 0.5 * (1 - share), abs=1e-6)
        weights = found[b, counted]
        assert weights[0] == 1.5
        assert (weights.diff() <= 0).all()
        assert weights[-1] >= 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RULES)
def test_the_rule_decides_the_weights_and_nothing_else(name, seed):
    """Events, R and E are those of the paper; no token outside of the mask weighs anything; the
    advantage is L times the reward."""
    scores, mask = random_batch(seed)
    pruned = prune(scores, mask, config_of(name, **RULES[name]).rules)
    expected = reliability(pruned.events, mask, 0.5, 0.5)
    assert torch.equal(pruned.events, mask)
    assert torch.equal(pruned.reliability.weight, expected.weight)
    assert torch.equal(pruned.reliability.effective_length, expected.effective_length)
    weight = pruned.reliability.loss_weight
    assert (weight[~mask] == 0).all()
    assert torch.equal(pruned.advantages, pruned.reward.reward * weight.unsqueeze(-1))
    if name == "reliability":
        assert torch.equal(weight, expected.loss_weight)


@pytest.mark.parametrize("name", RULES)
def test_switched_off_every_token_weighs_one_and_nothing_more_is_needed(name):
    scores, mask = random_batch(0)
    rules = config_of(name, enable=False, **RULES[name]).rules
    assert rules.needs == ("teacher_on_student",)
    found = find_drift(dataclasses.replace(scores, sampled=None), mask, rules)
    assert torch.equal(found.reliability.loss_weight, mask.float())


def test_what_a_rule_needs_is_scored():
    assert config_of("importance").rules.needs == ("teacher_on_student", "sampled")
    assert config_of("importance").rules.drift_needs == ("sampled",)
    assert config_of("reliability").rules.needs == ("teacher_on_student",)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "late",
            {},
            r"^prune_opd\.drift\.weights: got 'late', allowed: reliability, importance, f",
        ),
        ("first", {}, r"^prune_opd\.drift\.weights_args\.tokens: no value was given"),
        ("first", {"tokens": 0}, r"^prune_opd\.drift\.weights_args: first refuses .*tokens must"),
        ("first", {"tokens": 1.5}, r"refuses {'tokens': 1\.5} \(tokens must be a whole number"),
        ("importance", {"gamma": -1}, r"refuses {'gamma': -1} \(gamma must be a number from"),
        ("importance", {"gamma": 1e39}, r"\(gamma must be a number from 0 to 1000\)"),
        ("importance", {"gamma": float("inf")}, r"\(gamma must be a number from 0 to 1000\)"),
        ("importance", {"tokens": 3}, r"importance has no such parameter, it has: gamma"),
    ],
)
def test_what_is_no_rule_or_lacks_a_parameter_is_refused(name, args, message):
    with pytest.raises(ValueError, match=message):
        DriftConfig(weights=name, weights_args=args).build_weights()


def test_names():
    assert list(WEIGHTS) == list(RULES)
    assert (str(ImportanceWeight()), str(FirstTokens(7))) == (
        "importance, γ = 0.5",
        "first 7 tokens alone",
    )
