"""Measures of where two models part, and predicted tokens, are those of training and by hand."""

import math
import random

import pytest
import torch

from recipe.prune_opd.commands.diagnose.forecast import _played
from recipe.prune_opd.commands.diagnose.intervals import of_mean, over_prompts
from recipe.prune_opd.commands.diagnose.lengths import Lengths, lengths_of
from recipe.prune_opd.commands.diagnose.plan import Planned
from recipe.prune_opd.commands.diagnose.runs import course, interval_of_generated, predict
from recipe.prune_opd.commands.diagnose.scores import (
    PairScores,
    by_kind,
    by_position,
    by_quarter,
)
from recipe.prune_opd.commands.diagnose.tokens import KINDS, kind_of
from recipe.prune_opd.commands.pair.rules import rules_of
from recipe.prune_opd.config import BudgetConfig, DriftConfig, GateConfig
from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.drift import overlap_events, overlap_ratio, reliability
from recipe.prune_opd.method.gates import GATES, Gate
from recipe.prune_opd.method.pruning import Drift, find_drift
from recipe.prune_opd.method.reward import Scores, TopK

MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
VALUES = torch.tensor([[1.0, 0, 1, 0, 9, 9], [0, 0, 1, 1, 1, 0]])


def same(found: list[float], expected: list[float]) -> bool:
    return all(a == pytest.approx(b, nan_ok=True) for a, b in zip(found, expected, strict=True))


def random_events(
    seed: int, responses: int = 12, tokens: int = 90
) -> tuple[torch.Tensor, torch.Tensor]:
    """Events that get more frequent along responses of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (responses, 1), generator=generator)
    mask = torch.arange(tokens) < lengths
    rate = torch.arange(tokens) / tokens
    return (torch.rand(responses, tokens, generator=generator) < rate) & mask, mask


def drift_of(events: torch.Tensor, mask: torch.Tensor, w_drop: float) -> Drift:
    """Drift with these events, whatever they come from."""
    return Drift(mask, torch.ones(mask.shape), events, reliability(events, mask, w_drop, 0.5))


def pair_scores(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> PairScores:
    """Scores with these candidates (B, T, K), each of log-prob -1."""
    ones = -torch.ones(student.shape)
    scores = Scores(student[..., 0], TopK(student, ones), TopK(teacher, ones), 2 * ones)
    return PairScores(scores, mask, torch.arange(len(mask)), (student.shape[-1],))


# ----------------------------------------------------------------------------------- where and what


def test_means_by_position_leave_padding_out():
    assert same(by_position(VALUES, MASK, 2), [1 / 4, 3 / 4, 1 / 2])
    assert same(by_position(VALUES, MASK, 4), [4 / 8, 1 / 2])
    assert same(by_position(VALUES, MASK, 100), [5 / 10])


def test_a_position_that_nothing_reaches_has_no_mean():
    none = MASK & (torch.arange(6) < 2)
    assert same(by_position(VALUES, none, 2), [1 / 4, math.nan, math.nan])


def test_quarters_are_of_each_response_by_itself():
    # 4 tokens: a quarter each. 6 tokens: floor(4 t / 6) is 0 0 1 2 2 3.
    assert same(by_quarter(VALUES, MASK), [1 / 3, 1 / 2, 3 / 3, 0 / 2])
    assert same(by_quarter(torch.ones(1, 2), torch.ones(1, 2).bool()), [1, math.nan, 1, math.nan])


def test_means_by_kind():
    kinds = torch.tensor([[0, 1, 0, 1, 0, 0], [1, 1, 2, 2, 2, 0]])
    assert same(by_kind(VALUES, MASK, kinds), [2 / 3, 0, 1, math.nan, math.nan])


@pytest.mark.parametrize(
    ("text", "special", "kind"),
    [
        (" the", False, "words"),
        ("x1", False, "words"),
        ("汉", False, "words"),
        (" 42", False, "digits"),
        ("#4", False, "digits"),
        ("\n\n", False, "whitespace"),
        ("", False, "whitespace"),
        (" +", False, "symbols"),
        ("\N{REPLACEMENT CHARACTER}", False, "symbols"),
        ("<|im_end|>", True, "special"),
    ],
)
def test_kinds_of_tokens(text, special, kind):
    assert kind_of(text, special) == kind
    assert kind in KINDS


def test_overlap_of_several_k_is_that_of_the_first_candidates():
    student, teacher = torch.tensor([[[5, 3, 1, 0]]]), torch.tensor([[[3, 5, 9, 1]]])
    found = pair_scores(student, teacher, torch.ones(1, 1).bool())
    assert [found.at(k).overlap.item() for k in (1, 2, 4)] == [0, 1, 0.75]
    torch.testing.assert_close(found.at(4).overlap, overlap_ratio(student, teacher))
    assert found.at(2) is found.at(2)  # its overlap is computed once


def test_mass_is_of_the_first_candidates():
    ids = torch.arange(4).expand(1, 1, 4)
    found = pair_scores(ids, ids, torch.ones(1, 1).bool()).mass(3)
    expected = {
        "student_mass": 3 * math.exp(-1),
        "teacher_mass": 3 * math.exp(-1),
        "teacher_on_student": 3 * math.exp(-2),
    }
    assert {name: values.item() for name, values in found.items()} == pytest.approx(expected)


# ------------------------------------------------------------------------------------------ lengths


def test_lengths_without_a_gate():
    events = torch.tensor([[0, 1, 1, 0, 1, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]]).bool()
    lengths = lengths_of(drift_of(events, mask, 0.5))
    assert lengths.whole.tolist() == lengths.generated.tolist() == lengths.kept.tolist() == [4]
    assert lengths.effective.tolist() == [2]  # R is 0 from the second event on, at token 2


@pytest.mark.parametrize(("chunk", "generated"), [(1, 3), (2, 4), (4, 4), (5, 5), (64, 6)])
def test_a_stop_is_known_when_its_chunk_is_complete(chunk, generated):
    events, mask = torch.tensor([[0, 1, 1, 0, 1, 0]]).bool(), torch.ones(1, 6).bool()
    gate = GateConfig(enable=True)
    lengths = lengths_of(drift_of(events, mask, 0.5), gate.build(0.5), chunk)
    assert lengths.kept.tolist() == lengths.effective.tolist() == [2]
    assert lengths.generated.tolist() == [generated]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("seed", range(5))
def test_lengths_are_those_of_the_gate_and_the_reliability_of_training(kind, seed):
    events, mask = random_events(seed)
    gate = GateConfig(enable=True, kind=kind, window=8, rate=0.4, run_length=4)
    lengths = lengths_of(drift_of(events, mask, 0.1), gate.build(0.1), 16)
    for row, length in enumerate(mask.sum(-1).tolist()):
        stop = Gate(gate.build(0.1)).feed(events[row, :length].tolist())
        kept = length if stop is None else stop
        cut = (torch.arange(mask.shape[1]) < kept).unsqueeze(0)
        assert lengths.kept[row] == kept
        assert (
            lengths.effective[row]
            == reliability(events[row : row + 1] & cut, cut, 0.1, 0.5).effective_length
        )
        assert kept <= lengths.generated[row] <= min(length, kept + 16)


@pytest.mark.parametrize("limit", [1, 7, 40, 90])
@pytest.mark.parametrize("kind", ["off", *GATES])
def test_a_limit_leaves_what_it_would_have_left_in_training(limit, kind):
    """Cutting the lengths is the same as cutting the responses and looking again."""
    events, mask = random_events(3)
    gate = (
        None
        if kind == "off"
        else GateConfig(enable=True, kind=kind, window=8, rate=0.4, run_length=4)
    )
    new = None if gate is None else gate.build(0.1)
    short = mask & (torch.arange(mask.shape[1]) < limit)
    expected = lengths_of(drift_of(events & short, short, 0.1), new, 16)
    found = lengths_of(drift_of(events, mask, 0.1), new, 16)
    for name in ("generated", "kept", "effective"):
        assert getattr(found.under(limit), name).tolist() == getattr(expected, name).tolist()


# --------------------------------------------------------------------------------------------- runs


def alike(length: int, effective: int, number: int = 3) -> Lengths:
    whole = torch.full((number,), length)
    return Lengths(whole, whole, whole, torch.full((number,), effective))


def test_a_course_worked_by_hand():
    # All responses have 100 tokens, 40 of them reliable. Boundaries are M - 10: 40 hits until M is
    # 60.
    budget = ResponseBudget(init=30, min=20, max=100, step=10, margin=10, patience=2)
    found = course(
        alike(100, 40), budget, batch=4, steps=6, generator=torch.Generator().manual_seed(0)
    )
    assert found.limit.tolist() == [30, 40, 50, 60, 60, 50]
    assert found.generated.tolist() == found.kept.tolist() == [30, 40, 50, 60, 60, 50]
    assert found.effective.tolist() == [30, 40, 40, 40, 40, 40]
    assert found.whole.tolist() == [100] * 6


def test_a_course_moves_as_the_budget_does():
    events, mask = random_events(1, responses=40)
    lengths = lengths_of(drift_of(events, mask, 0.1))
    settings = {"init": 30, "min": 10, "max": 90, "step": 5, "margin": 5}
    found = course(lengths, ResponseBudget(**settings), 16, 30, torch.Generator().manual_seed(7))
    budget, generator = ResponseBudget(**settings), torch.Generator().manual_seed(7)
    for step in range(30):
        rows = torch.randint(40, (16,), generator=generator)
        assert found.limit[step] == budget.limit
        kept = lengths.whole[rows].clamp(max=budget.limit)
        assert found.generated[step].item() == pytest.approx(kept.double().mean().item())
        budget.update(torch.minimum(lengths.effective[rows], kept).tolist())


def test_the_prediction_is_the_mean_of_the_courses():
    new = lambda: ResponseBudget(init=30, min=20, max=100, step=10, margin=10, patience=2)  # noqa: E731
    run, lengths = Planned(100, batch=4, steps=6), alike(100, 40)
    found = predict(lengths, new, run, runs=2)
    assert found.generated == found.limit == pytest.approx(290 / 6)
    assert found.without_pruning == 100
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    # All prompts are alike.
    low, high = interval_of_generated(lengths, torch.arange(3), new, run, 5)
    assert low == high == pytest.approx(290 / 6)


def test_a_long_run_is_played_in_larger_steps(monkeypatch):
    """The limit goes the same way, in a bounded number of steps."""
    for steps, pace, played in ((1, 1, 1), (203, 1, 203), (1000, 1, 1000), (1001, 2, 501)):
        run = Planned(100, steps=steps)
        assert (run.pace, run.played) == (pace, played)
    assert Planned(100, steps=10**9).played == 1000
    events, mask = random_events(1, responses=40)
    lengths = lengths_of(drift_of(events, mask, 0.1))
    found = {}
    for steps in (1000, 3000):
        budget = BudgetConfig(init=10, min=10, max=90, step=3, margin=3)
        run = Planned(90, steps=steps, batch=8)
        moved = [_played(budget, run)().step, predict(lengths, _played(budget, run), run)]
        found[steps] = moved
    assert [moved[0] for moved in found.values()] == [3, 9]
    short, long = (moved[1].generated for moved in found.values())
    assert short == pytest.approx(long, rel=0.1)


def test_a_course_of_several_pieces_is_one_course():
    events, mask = random_events(1, responses=40)
    lengths = lengths_of(drift_of(events, mask, 0.1))
    settings = {"init": 30, "min": 10, "max": 90, "step": 5, "margin": 5}
    long = course(lengths, ResponseBudget(**settings), 4, 600, torch.Generator().manual_seed(7))
    short = course(lengths, ResponseBudget(**settings), 4, 300, torch.Generator().manual_seed(7))
    assert len(long.limit) == 600
    assert torch.equal(long.limit[:300], short.limit)
    assert torch.equal(long.kept[:300], short.kept)


def test_the_interval_of_a_prediction_is_as_wide_as_the_prompts_differ():
    """Of two prompts both are drawn, or one of them twice."""
    lengths = torch.tensor([10, 30])
    known = Lengths(lengths, lengths, lengths, lengths)
    new = lambda: ResponseBudget(init=90, min=90, max=90)  # noqa: E731
    run = Planned(90, batch=64, steps=4)
    assert interval_of_generated(known, torch.arange(2), new, run, 100) == (10, 30)


def test_the_same_seed_draws_the_same_responses():
    events, mask = random_events(2)
    lengths = lengths_of(drift_of(events, mask, 0.1))
    new = lambda: ResponseBudget(init=30, min=10, max=90, step=5, margin=5)  # noqa: E731
    one, other, third = (
        predict(lengths, new, Planned(90, batch=8, steps=9, seed=seed)) for seed in (1, 1, 2)
    )
    assert repr(one) == repr(other) != repr(third)


def test_resampling_draws_whole_prompts():
    groups, seen = torch.tensor([0, 0, 5, 5, 5]), []

    def statistic(rows: torch.Tensor) -> float:
        seen.append(groups[rows].tolist())
        return float(len(rows))

    assert over_prompts(statistic, groups, 100, seed=0) == (4, 6)  # 2 + 2, 3 + 3
    assert {len(drawn) for drawn in seen} == {4, 5, 6}
    for drawn in seen:
        assert drawn.count(0) % 2 == 0
        assert drawn.count(5) % 3 == 0
        assert drawn.count(0) // 2 + drawn.count(5) // 3 == 2


@pytest.mark.parametrize("seed", [0, 7, -1])
def test_the_same_seed_gives_the_same_interval(seed):
    events, mask = random_events(4, responses=8)
    groups = torch.arange(8)
    first = of_mean(events, mask, groups, 50, seed)
    assert first == of_mean(events, mask, groups, 50, seed)
    assert first != of_mean(events, mask, groups, 50, seed + 1)
    assert first[0] < events[mask].double().mean().item() < first[1]


def test_interval_of_a_mean_over_tokens():
    low, high = of_mean(VALUES, MASK, torch.tensor([0, 1]), 400, seed=0)
    assert low == high == pytest.approx(0.5)  # both responses have it
    assert all(map(math.isnan, of_mean(VALUES, MASK, torch.tensor([4, 4]), 10, seed=0)))
    ones, both = torch.tensor([[1.0], [0.0]]), torch.ones(2, 1).bool()
    assert of_mean(ones, both, torch.tensor([0, 1]), 400, seed=0) == (0, 1)


def test_events_are_those_of_the_drift_module():
    """The whole way on random candidates: overlap, events, lengths, against the functions of
    training."""
    rng = random.Random(0)
    ids = torch.tensor(
        [[[rng.sample(range(12), 8) for _ in range(30)] for _ in range(4)] for _ in range(2)]
    )
    mask, settings = torch.ones(4, 30).bool(), DriftConfig(threshold=0.7, w_drop=0.2)
    drift = find_drift(pair_scores(ids[0], ids[1], mask).at(8), mask, rules_of(0.7, 0.2))
    events = overlap_events(overlap_ratio(ids[0], ids[1]), mask, settings.threshold)
    assert torch.equal(drift.events, events)
    expected = reliability(events, mask, settings.w_drop, settings.w_base)
    assert torch.equal(drift.reliability.loss_weight, expected.loss_weight)
    assert torch.equal(lengths_of(drift).effective, expected.effective_length)
