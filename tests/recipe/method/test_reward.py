"""Rewards of every strategy and weighting are those of the formulas, on valid candidates alone."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from recipe.prune_opd.method.reward import (
    STRATEGIES,
    WEIGHTINGS,
    Sampled,
    Scores,
    TopK,
    log_probs_of,
    topk_reward,
)

B, T, K, V = 3, 7, 4, 9
OVER_TOPK = ("only_stu", "only_tch", "intersection", "union", "union_intersection")


def log_softmaxes(impossible: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, V) of student and teacher; close at the first positions, unrelated at the last.

    A share ``impossible`` of the tokens has probability 0 in one model or the other.
    """
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(B, T, V, generator=generator)
    noise = 2 * torch.randn(B, T, V, generator=generator)
    apart = torch.linspace(0, 1, T).view(T, 1)
    teacher = (1 - apart) * student + apart * noise
    student[0, -1, :K], teacher[0, -1, K : 2 * K] = 9.0, 9.0  # two disjoint sets
    for logits in (student, teacher):
        logits[torch.rand(B, T, V, generator=generator) < impossible] = -torch.inf
    return student.log_softmax(-1), teacher.log_softmax(-1)


def inputs(student: torch.Tensor, teacher: torch.Tensor) -> Scores:
    """All that any strategy takes, as the two passes give it."""
    student_ids, teacher_ids = student.topk(K).indices, teacher.topk(K).indices
    responses = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(3))
    sampled = responses.unsqueeze(-1)
    return Scores(
        responses,
        TopK(student_ids, student.gather(-1, student_ids)),
        TopK(teacher_ids, teacher.gather(-1, teacher_ids)),
        teacher_on_student=teacher.gather(-1, student_ids),
        student_on_teacher=student.gather(-1, teacher_ids),
        sampled=Sampled(
            student.gather(-1, sampled).squeeze(-1), teacher.gather(-1, sampled).squeeze(-1)
        ),
    )


def changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Scores with a change to every tensor of floats."""
    if isinstance(value, torch.Tensor):
        return change(value) if value.is_floating_point() else value
    return type(value)(
        **{field.name: changed(getattr(value, field.name), change) for field in fields(value)}
    )


def slow_reward(student, teacher, strategy: str, weighting: str, sampled: int) -> dict[int, float]:
    """Candidate -> reward at one position, from the two full log-softmaxes (V,)."""
    k_s, k_t = student.topk(K).indices.tolist(), teacher.topk(K).indices.tolist()
    student, teacher = student.tolist(), teacher.tolist()
    possible = {v for v in range(V) if -math.inf not in (student[v], teacher[v])}
    candidates = {
        "only_stu": k_s,
        "only_tch": k_t,
        "intersection": [v for v in k_s if v in k_t],
        "union": k_s + [v for v in k_t if v not in k_s],
        "union_intersection": [v for v in k_s if v not in k_t] + [v for v in k_t if v not in k_s],
        "sampled": [sampled],
    }[strategy]
    candidates = [v for v in candidates if v in possible]
    log_mass = {"student_p": student, "teacher_p": teacher, "none": [0] * V}[weighting]
    mass = {v: math.exp(log_mass[v]) for v in candidates}
    total = 1 if strategy == "union_intersection" else sum(mass.values())
    weight = {v: 1 if strategy == "sampled" else mass[v] / total for v in candidates}
    return {v: -weight[v] * (student[v] - teacher[v]) for v in candidates}


@pytest.mark.parametrize("impossible", [0, 0.5])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_agrees_with_a_slow_reference(strategy, weighting, impossible):
    student, teacher = log_softmaxes(impossible)
    given = inputs(student, teacher)
    result = topk_reward(given, strategy=strategy, weighting=weighting)
    columns = {"sampled": 1, "union": 2 * K, "union_intersection": 2 * K}.get(strategy, K)
    assert result.reward.shape == result.ids.shape == result.valid.shape == (B, T, columns)
    assert result.reward.dtype == result.student_log_probs.dtype == torch.float32
    for b in range(B):
        for t in range(T):
            expected = slow_reward(
                student[b, t], teacher[b, t], strategy, weighting, given.responses[b, t].item()
            )
            valid = result.valid[b, t]
            got = dict(
                zip(
                    result.ids[b, t][valid].tolist(),
                    result.reward[b, t][valid].tolist(),
                    strict=True,
                )
            )
            assert got == pytest.approx(expected, abs=1e-5)
            assert len(expected) == valid.sum()
            assert result.reward[b, t][~valid].abs().sum() == 0
            torch.testing.assert_close(
                result.student_log_probs[b, t][valid], student[b, t][result.ids[b, t][valid]]
            )


def test_the_reference_sees_every_kind_of_overlap():
    given = inputs(*log_softmaxes())
    student, teacher = (own.ids.flatten(0, 1).tolist() for own in (given.student, given.teacher))
    shared = {len(set(s) & set(t)) for s, t in zip(student, teacher, strict=True)}
    assert {0, K} < shared


def test_defaults_are_the_papers():
    given = inputs(*log_softmaxes())
    only_needed = replace(given, student_on_teacher=None, sampled=None)
    explicit = topk_reward(given, strategy="only_stu", weighting="student_p")
    assert torch.equal(topk_reward(only_needed).reward, explicit.reward)


@pytest.mark.parametrize("strategy", OVER_TOPK)
def test_one_model_twice_has_no_reward(strategy):
    student, _ = log_softmaxes()
    result = topk_reward(inputs(student, student), strategy=strategy)
    assert result.reward.abs().max() == 0
    if strategy == "union_intersection":
        assert not result.valid.any()


def test_sign_a_token_the_teacher_likes_more_is_rewarded():
    one = torch.zeros(1, 1, 1)
    own = TopK(one.long(), one - 2)
    result = topk_reward(Scores(one.long()[..., 0], own, own, teacher_on_student=one - 1))
    assert result.reward.item() == 1


def test_clip_bounds_the_difference_of_log_probs_not_the_weight():
    """Student .5, .25; teacher e^-4 and e^2 times as sure. Weights 2/3 and 1/3."""
    student = torch.tensor([[[0.5, 0.25]]]).log()
    own = TopK(torch.tensor([[[3, 5]]]), student)
    teacher = student + torch.tensor([-4.0, 2.0])
    scores = Scores(torch.zeros(1, 1), own, own, teacher_on_student=teacher)
    found = topk_reward(scores, clip=3).reward[0, 0]
    torch.testing.assert_close(found, torch.tensor([-3 * 2 / 3, 2 / 3]))
    torch.testing.assert_close(
        topk_reward(scores, clip=1).reward[0, 0], torch.tensor([-2 / 3, 1 / 3])
    )
    torch.testing.assert_close(topk_reward(scores).reward[0, 0], torch.tensor([-8 / 3, 2 / 3]))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("strategy", ["intersection", "union_intersection"])
def test_no_candidate_is_reward_zero(strategy, weighting):
    student, teacher = log_softmaxes()
    given = inputs(student, student if strategy == "union_intersection" else teacher)
    if strategy == "intersection":
        given = replace(given, teacher=TopK(given.student.ids + V, given.teacher.log_probs))
    result = topk_reward(given, strategy=strategy, weighting=weighting)
    assert result.reward.shape[:2] == (B, T)
    assert result.reward.eq(0).all()
    assert not result.valid.any()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_is_not_hidden(strategy, weighting):
    student, teacher = log_softmaxes()
    given = inputs(student, teacher)
    given = replace(given, teacher=TopK(given.teacher.ids, given.teacher.log_probs.clone()))
    for values in (given.teacher_on_student, given.teacher.log_probs, given.sampled.teacher):
        values[0, 3] = torch.nan
    result = topk_reward(given, strategy=strategy, weighting=weighting)
    affected = result.reward.isnan().any(-1)
    assert affected.nonzero().tolist() == [[0, 3]]
    assert result.reward[0, 3][result.valid[0, 3]].isnan().all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_log_probs_are_computed_in_float32(strategy):
    given = inputs(*log_softmaxes())
    rounded = changed(given, torch.Tensor.bfloat16)
    result = topk_reward(rounded, strategy=strategy)
    assert result.reward.dtype == torch.float32
    torch.testing.assert_close(
        result.reward, topk_reward(changed(rounded, torch.Tensor.float), strategy=strategy).reward
    )


NEEDED = {
    "only_stu": ("teacher_on_student",),
    "only_tch": ("student_on_teacher",),
    "intersection": (),
    "union": ("teacher_on_student", "student_on_teacher"),
    "union_intersection": ("teacher_on_student", "student_on_teacher"),
    "sampled": ("sampled",),
}


@pytest.mark.parametrize(
    ("strategy", "name"), [(s, n) for s, names in NEEDED.items() for n in names]
)
def test_missing_parts_are_named(strategy, name):
    given = replace(inputs(*log_softmaxes()), **{name: None})
    with pytest.raises(ValueError, match=f"strategy '{strategy}' needs {name}$"):
        topk_reward(given, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parts_a_strategy_does_not_need_may_be_left_out(strategy):
    given = inputs(*log_softmaxes())
    assert STRATEGIES.find(strategy).needs == NEEDED[strategy]
    few = Scores(
        given.responses,
        given.student,
        given.teacher,
        **{n: getattr(given, n) for n in NEEDED[strategy]},
    )
    assert torch.equal(
        topk_reward(few, strategy=strategy).reward, topk_reward(given, strategy=strategy).reward
    )


def test_unknown_names_are_refused_with_what_is_allowed():
    given = inputs(*log_softmaxes())
    with pytest.raises(ValueError, match=r"strategy: got 'best', allowed: only_stu, .*sampled"):
        topk_reward(given, strategy="best")
    with pytest.raises(
        ValueError, match=r"weighting: got 'p', allowed: student_p, teacher_p, none"
    ):
        topk_reward(given, weighting="p")


@pytest.mark.parametrize("seed", range(5))
def test_log_probs_of_ids_agree_with_a_search(seed):
    generator = torch.Generator().manual_seed(seed)
    ids, theirs = (torch.rand(20, 9, generator=generator).argsort(-1)[:, :4] for _ in range(2))
    log_probs = torch.randn(20, 4, generator=generator)
    log_probs[3, 1] = 0.0
    theirs[5], log_probs[5] = -1, -torch.inf
    found = log_probs_of(ids, TopK(theirs.int(), log_probs))
    for n, k in torch.ones_like(ids).nonzero().tolist():
        known = [log_probs[n, j].item() for j in range(4) if theirs[n, j] == ids[n, k]]
        assert found[n, k].item() == (known[0] if known else -torch.inf)
    assert 0 < found.isneginf().sum() < found.numel()
