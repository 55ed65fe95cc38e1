"""Recommended settings are the paper's at the paper's scale, and the trainer takes them."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from recipe.prune_opd.commands.diagnose.plan import Planned
from recipe.prune_opd.commands.diagnose.recommend import (
    CLOSE,
    CLOSE_RATE,
    DRIFTING,
    UNRELATED,
    basis,
    budget_for,
    gate_for,
    judge,
    recommend,
    w_drop_for,
)
from recipe.prune_opd.method.drift import reliability, spent_at
from recipe.prune_opd.method.gates import GATES

LIMITS = (1, 2, 8, 64, 192, 227, 1023, 1024, 1025, 2048, 12288, 40000)


@pytest.mark.parametrize(
    ("overlap", "rate", "name"),
    [
        # Known pairs: overlap by quarter, and events per token.
        ((0.91, 0.91, 0.92, 0.91), (0.004,) * 4, CLOSE),
        ((0.81, 0.79, 0.79, 0.80), (0.20,) * 4, DRIFTING),
        ((0.71, 0.74, 0.75, 0.75), (0.39,) * 4, DRIFTING),
        ((0.64, 0.61, 0.58, 0.55), (0.70, 0.78, 0.85, 0.91), DRIFTING),
        ((0.725,) * 4, (0.45,) * 4, DRIFTING),
        # Bounds.
        ((0.9,) * 4, (CLOSE_RATE,) * 4, CLOSE),
        ((0.9,) * 4, (0.0, 0.0, 0.0, CLOSE_RATE + 1e-6), DRIFTING),
        ((0.3, 0.1, 0.1, 0.1), (1.0,) * 4, DRIFTING),
        ((0.299, 0.9, 0.9, 0.9), (1.0,) * 4, UNRELATED),
        ((1.0,) * 4, (0.0,) * 4, CLOSE),
        ((math.nan, 0.2, math.nan, 0.9), (math.nan, 1.0, math.nan, 0.0), UNRELATED),
    ],
)
def test_verdicts(overlap, rate, name):
    assert judge(list(overlap), list(rate)).name == name


def test_the_reason_tells_a_mismatch_from_drift():
    assert "part along the response" in judge([0.8] * 4, [0.2, 0.3, 0.4, 0.5]).reason
    assert "initial mismatch" in judge([0.7] * 4, [0.4, 0.4, 0.4, 0.42]).reason


def test_a_verdict_says_where_it_was_judged_if_that_is_not_what_is_planned():
    assert basis(16, 16, 0.7) == ""
    assert "at k = 16 and γ = 0.7" in basis(16, 16, 0.9)
    assert "at k = 16 and γ = 0.7" in basis(16, 8, 0.7)
    assert "k = 8, for which the bounds are not calibrated" in basis(8, 4, 0.7)


@pytest.mark.parametrize(
    ("limit", "events"),
    [(12288, 100), (1024, 100), (1023, 100), (512, 50), (227, 23), (192, 19), (1, 1)],
)
def test_the_reliability_lasts_as_many_events_as_the_paper_s_or_its_share(limit, events):
    assert spent_at(w_drop_for(limit)) == events


def test_the_papers_scale_gives_the_papers_values():
    assert w_drop_for(12288) == 0.01
    budget = budget_for(torch.full((10,), 222), 0.01, 12288, 203)
    assert (budget.init, budget.min, budget.max, budget.step, budget.margin) == (
        1024,
        1024,
        12288,
        100,
        100,
    )


@pytest.mark.parametrize(("hitting", "init"), [(1, 500 + 10), (2, 500 + 10), (0, 300 + 10)])
def test_the_first_limit_is_where_a_tenth_of_the_responses_still_keep_it(hitting, init):
    effective = torch.tensor([500] * hitting + [300] * (10 - hitting))
    assert budget_for(effective, 0.01, 1228, 203).init == init


def test_the_limit_settles_at_the_first_limit():
    """For responses like these, it grows from there once, and no further."""
    effective = torch.arange(1500, 2500, 10)
    budget = budget_for(effective, 0.01, 12288, 203).resolved(12288).build()
    first = budget.limit
    assert 1500 < first < 2500 + budget.margin
    for _ in range(3):
        budget.update(effective.tolist())
        assert budget.limit == first + budget.step


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("steps", [1, 40, 203, 5000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_trainer_takes_what_is_recommended(limit, steps, share):
    tokens = min(limit, 64)
    mask = torch.ones(6, tokens).bool()
    events = torch.rand(6, tokens, generator=torch.Generator().manual_seed(0)) < share
    effective = reliability(events, mask, w_drop_for(limit), 0.5).effective_length
    found = recommend(effective, Planned(limit, steps))
    config = found.build("TEACHER")
    budget = config.budget.resolved(limit).build()
    assert budget.max == limit
    assert config.drift.threshold == 0.7
    assert config.teacher.path == "TEACHER"
    # Else every response would count as reliable.
    assert spent_at(config.drift.w_drop) <= budget.min
    assert len(found.reasons) == 6


def test_the_overrides_and_the_yaml_say_the_same(compose):
    found = recommend(torch.full((4,), 90), Planned(227, 40))
    settings = compose(
        "+recipe=prune_opd",
        "prune_opd.teacher.path=T",
        "data.max_response_length=227",
        *found.overrides,
    ).prune_opd
    given = OmegaConf.create(found.yaml).prune_opd
    assert settings.topk == given.topk == 16
    for group in ("drift", "budget", "gate"):
        for key, value in given[group].items():
            assert settings[group][key] == value, (group, key)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("limit", LIMITS)
def test_compared_gates_can_be_built(kind, limit):
    gate = gate_for(kind, limit)
    assert gate.window * 2 <= max(limit, 2)
    gate.build(0.01)
