"""The response limit moves as the paper says, stays in its bounds, and survives a restart."""

import csv
import json
import random
from pathlib import Path

import pytest

from recipe.prune_opd.method.budget import BUDGETS, QuantileBudget, ResponseBudget

ASSETS = Path(__file__).parents[2] / "assets"
PAPER = {
    "init": 2048,
    "min": 1024,
    "max": 12288,
    "step": 100,
    "hit_ratio": 0.1,
    "margin": 100,
    "patience": 3,
}


def feed(budget: ResponseBudget, hits: int, sequences: int) -> dict[str, float]:
    """Update with ``hits`` responses that just reach the boundary and others that just miss it."""
    boundary = max(budget.min, budget.limit - budget.margin)
    return budget.update([boundary] * hits + [boundary - 1] * (sequences - hits))


def test_replays_the_public_reference_run():
    """203 steps of the released code: its hit ratios (multiples of 1/256) give its limits and
    counters."""
    with (ASSETS / "reference_run.csv").open() as file:
        steps = [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
        ]
    budget = ResponseBudget(**PAPER)
    assert len(steps) == 203
    for step in steps:
        assert budget.limit == step["max_response_length"]
        metrics = feed(budget, round(256 * step["hit_ratio"]), 256)
        assert metrics["prune_opd/effective_response_length_hit_ratio"] == pytest.approx(
            step["hit_ratio"], abs=1e-6
        )
        assert (
            metrics["prune_opd/next_max_response_length"]
            == budget.limit
            == step["next_max_response_length"]
        )
        assert metrics["prune_opd/no_hit_steps"] == step["no_hit_steps"]


def test_defaults_are_the_papers():
    budget = ResponseBudget(init=2048, min=1024, max=12288)
    assert vars(budget) == vars(ResponseBudget(**PAPER))


@pytest.mark.parametrize(("init", "limit"), [(1, 10), (10, 10), (15, 15), (20, 20), (99, 20)])
def test_init_is_clipped(init, limit):
    assert ResponseBudget(init=init, min=10, max=20).limit == limit


def test_grows_by_steps_up_to_max():
    budget = ResponseBudget(init=10, min=1, max=25, step=10, margin=0)
    limits = []
    for _ in range(4):
        feed(budget, 1, 1)
        limits.append(budget.limit)
    assert limits == [20, 25, 25, 25]


def test_shrinks_by_steps_down_to_min_after_each_patience():
    budget = ResponseBudget(init=30, min=5, max=40, step=20, margin=0, patience=2)
    limits, counters = [], []
    for _ in range(6):
        counters.append(feed(budget, 0, 10)["prune_opd/no_hit_steps"])
        limits.append(budget.limit)
    assert limits == [30, 10, 10, 5, 5, 5]
    assert counters == [1, 0, 1, 0, 1, 0]


def test_a_hit_starts_the_patience_anew():
    budget = ResponseBudget(init=50, min=1, max=100, step=10, patience=2)
    feed(budget, 0, 4)
    feed(budget, 4, 4)
    feed(budget, 0, 4)
    assert budget.limit == 60
    feed(budget, 0, 4)
    assert budget.limit == 50


@pytest.mark.parametrize(
    ("hits", "of", "grows"),
    [(1, 10, True), (3, 30, True), (25, 256, False), (26, 256, True), (0, 1, False)],
)
def test_the_ratio_itself_is_enough(hits, of, grows):
    budget = ResponseBudget(init=50, min=1, max=100, step=10, hit_ratio=0.1)
    feed(budget, hits, of)
    assert budget.limit == (60 if grows else 50)


def test_hit_ratio_zero_always_grows():
    budget = ResponseBudget(init=50, min=1, max=100, step=10, hit_ratio=0)
    feed(budget, 0, 5)
    assert budget.limit == 60


@pytest.mark.parametrize(("margin", "boundary"), [(0, 50), (10, 40), (30, 20), (100, 20)])
def test_boundary_is_margin_before_the_limit_but_not_below_min(margin, boundary):
    for length, hit in ((boundary - 1, 0), (boundary, 1), (boundary + 1, 1)):
        budget = ResponseBudget(init=50, min=20, max=100, margin=margin)
        assert budget.update([length])["prune_opd/effective_response_length_hit_ratio"] == hit


def test_metrics():
    budget = ResponseBudget(init=50, min=20, max=100, step=7, margin=10, hit_ratio=0.5)
    assert budget.update(iter([40, 39, 3, 50.0])) == {
        "prune_opd/current_max_response_length": 50,
        "prune_opd/next_max_response_length": 57,
        "prune_opd/response_limit_min": 50,
        "prune_opd/response_limit_max": 50,
        "prune_opd/no_hit_steps": 0,
        "prune_opd/effective_response_length_mean": 33,
        "prune_opd/effective_response_length_max": 50,
        "prune_opd/effective_response_length_min": 3,
        "prune_opd/effective_response_length_hit_ratio": 0.5,
    }
    assert budget.update([0])["prune_opd/no_hit_steps"] == 1


def test_each_response_is_judged_by_its_own_limit():
    """Under limits of 40, 50 and 20 a hit begins at 30, 40 and 20, which is the minimum."""
    budget = ResponseBudget(init=50, min=20, max=100, step=7, margin=10, hit_ratio=0.5)
    metrics = budget.update([30, 40, 20, 19], [40, 50, 20, 20])
    assert metrics["prune_opd/effective_response_length_hit_ratio"] == 0.75
    assert (metrics["prune_opd/response_limit_min"], metrics["prune_opd/response_limit_max"]) == (
        20,
        50,
    )
    assert budget.limit == 57  # it moves from where it is
    metrics = budget.update([29, 39, 19, 50], [40, 50, 20, 60])
    assert metrics["prune_opd/effective_response_length_hit_ratio"] == 0.25
    with pytest.raises(ValueError, match="got 1 limits of 2 sequences"):
        budget.update([1, 2], [3])


@pytest.mark.parametrize("rule", [ResponseBudget, QuantileBudget])
@pytest.mark.parametrize("seed", range(5))
def test_under_one_limit_it_makes_no_difference_to_give_it(rule, seed):
    """Responses of the step itself: the paper's rule."""
    draw = random.Random(seed)
    one, other = (rule(init=50, min=20, max=100, hit_ratio=0.5) for _ in range(2))
    for _ in range(20):
        lengths = [draw.randint(0, 120) for _ in range(draw.randint(1, 8))]
        assert one.update(lengths) == other.update(lengths, [other.limit] * len(lengths))
        assert one.state_dict() == other.state_dict()


def test_responses_that_were_sent_out_before_the_limit_grew_do_not_make_it_grow_again():
    """A factor would, once for each batch that is under way; the paper's rule grows by a step."""
    budget = quantiles(max=1000)
    budget.update([100] * 4, [100] * 4)
    assert budget.limit == 150
    budget.update([100] * 4, [100] * 4)
    assert budget.limit == 150
    budget.update([150, 100, 100, 100], [150, 100, 100, 100])
    assert budget.limit == 225


def test_an_empty_batch_is_refused_and_changes_nothing():
    budget = ResponseBudget(**PAPER)
    before = budget.state_dict()
    with pytest.raises(ValueError, match="at least one sequence"):
        budget.update([])
    assert budget.state_dict() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min": 0}, r"0 < min <= max .* min = 0, max = 12288"),
        ({"min": -5}, r"min = -5"),
        ({"min": 5000, "max": 4000}, r"0 < min <= max .* min = 5000, max = 4000"),
        ({"step": 0}, r"step >= 1 .* step = 0"),
        ({"step": -100}, r"step = -100"),
        ({"hit_ratio": -0.1}, r"0 <= hit_ratio <= 1 .* hit_ratio = -0\.1"),
        ({"hit_ratio": 1.5}, r"hit_ratio = 1\.5"),
        ({"hit_ratio": float("nan")}, r"hit_ratio = nan"),
        ({"margin": -1}, r"margin >= 0 .* margin = -1"),
        ({"patience": 0}, r"patience >= 1 .* patience = 0"),
        ({"init": float("nan")}, r"init must be a whole number, got nan"),
        ({"init": 2048.5}, r"init must be a whole number, got 2048\.5"),
        ({"min": True}, r"min must be a whole number, got True"),
        ({"max": float("inf")}, r"max must be a whole number, got inf"),
        ({"step": 0.5}, r"step must be a whole number"),
        ({"margin": 1.5}, r"margin must be a whole number"),
        ({"patience": 2.5}, r"patience must be a whole number"),
    ],
)
def test_impossible_budgets_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ResponseBudget(**PAPER | wrong)


@pytest.mark.parametrize("steps", range(8))
def test_a_resumed_budget_has_the_same_future(steps):
    hits = [0, 0, 5, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    budget = ResponseBudget(**PAPER)
    for h in hits[:steps]:
        feed(budget, h, 10)
    resumed = ResponseBudget(**PAPER)
    resumed.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    assert resumed.limit == budget.limit
    assert [feed(resumed, h, 10) for h in hits[steps:]] == [
        feed(budget, h, 10) for h in hits[steps:]
    ]


@pytest.mark.parametrize("limit", [1023, 12289])
def test_a_checkpoint_from_other_bounds_is_refused(limit):
    budget = ResponseBudget(**PAPER)
    with pytest.raises(ValueError, match=f"limit is {limit}, outside min = 1024 and max = 12288"):
        budget.load_state_dict({"limit": limit, "no_hit_steps": 1})
    assert budget.state_dict() == {"limit": 2048, "no_hit_steps": 0}


@pytest.mark.parametrize("rule", ["hits", "quantile"])
def test_a_batch_has_one_limit_where_the_rule_gives_one(rule):
    budget = BUDGETS.find(rule)(init=50, min=20, max=100)
    assert budget.limits(3) == [50, 50, 50]
    assert budget.limits(0) == []


# ----------------------------------------------------------------------------------- rule quantile

BOUNDS = {"init": 100, "min": 20, "max": 1000, "hit_ratio": 0.2, "margin": 5}


def quantiles(**changes: float) -> QuantileBudget:
    """A budget of small numbers; it holds 90 % of the responses."""
    return QuantileBudget(**BOUNDS | {"patience": 1} | changes)


def test_the_limit_jumps_to_a_quantile_and_a_margin():
    """Of 1, ..., 10 nine are at most 9, and eight at most 8."""
    for lengths, limit in ((range(31, 41), 39 + 5), (range(40, 30, -1), 39 + 5), ([50], 55)):
        budget = quantiles()
        budget.update(lengths)
        assert budget.limit == limit
    budget = quantiles(quantile=0.8)
    budget.update(range(31, 41))
    assert budget.limit == 38 + 5


def test_a_limit_that_cuts_responses_alive_grows_by_the_factor():
    """Two of ten are reliable at the limit itself, as is asked for; one token less is none."""
    for alive, limit in ((2, 150), (1, 30 + 5), (10, 150)):
        budget = quantiles()
        metrics = budget.update([100] * alive + [30] * (10 - alive))
        assert budget.limit == limit
        assert metrics["prune_opd/effective_response_length_hit_ratio"] == alive / 10
    budget = quantiles(growth=1.011)
    budget.update([100])
    assert budget.limit == 102
    budget = quantiles()
    budget.update([99] * 10)
    assert budget.limit == 104


def test_the_limit_is_kept_within_its_bounds():
    budget = quantiles()
    for lengths, limit in (([1] * 9, 20), ([20], 30), ([0], 20)):
        budget.update(lengths)
        assert budget.limit == limit
    budget = quantiles(init=900)
    for _ in range(3):
        budget.update([budget.limit])
        assert budget.limit == 1000
    assert quantiles(init=1).limit == 20


def test_the_limit_falls_once_all_of_the_last_batches_are_lower():
    budget = quantiles(patience=3)
    limits = []
    for length in (80, 30, 30, 30, 60, 30):
        budget.update([length] * 4)
        limits.append(budget.limit)
    assert limits == [85, 85, 85, 35, 53, 65]


def test_the_metrics_of_the_quantile():
    assert quantiles().update(iter([40, 39, 3, 50.0])) == {
        "prune_opd/current_max_response_length": 100,
        "prune_opd/next_max_response_length": 55,
        "prune_opd/response_limit_min": 100,
        "prune_opd/response_limit_max": 100,
        "prune_opd/effective_response_length_mean": 33,
        "prune_opd/effective_response_length_max": 50,
        "prune_opd/effective_response_length_min": 3,
        "prune_opd/effective_response_length_hit_ratio": 0,
    }
    with pytest.raises(ValueError, match="at least one sequence"):
        quantiles().update([])


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_is_cut_alive_the_limit_holds_the_quantile(seed):
    """And where nothing changes it stays."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, 90) for _ in range(37)]
    budget = quantiles()
    budget.update(lengths)
    held = budget.limit - 5
    assert sum(length <= held for length in lengths) / 37 >= 0.9
    assert sum(length < held for length in lengths) / 37 < 0.9
    for _ in range(3):
        budget.update([min(length, budget.limit) for length in lengths])
        assert budget.limit == held + 5


@pytest.mark.parametrize("seed", range(5))
def test_a_growing_length_is_reached_in_a_few_batches_and_left_at_once(seed):
    """From 60 to 600 tokens in six batches of growth by half, where steps of 10 would take 54."""
    draw = random.Random(seed)
    budget, batches = quantiles(patience=1), 0
    while budget.limit < 600:
        useful = [draw.randint(550, 650) for _ in range(64)]
        budget.update([min(length, budget.limit) for length in useful])
        batches += 1
    assert batches <= 6
    budget.update([60] * 64)
    assert budget.limit == 65


@pytest.mark.parametrize("steps", range(5))
def test_a_resumed_quantile_has_the_same_future(steps):
    batches = [[90, 30], [100, 100], [20, 40], [80, 10], [30, 30], [30, 30], [30, 30]]
    budget, resumed = quantiles(patience=3), quantiles(patience=3)
    for lengths in batches[:steps]:
        budget.update(lengths)
    resumed.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    assert resumed.limit == budget.limit
    assert [resumed.update(lengths) for lengths in batches[steps:]] == [
        budget.update(lengths) for lengths in batches[steps:]
    ]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"limit": 50, "no_hit_steps": 1}, r"budget\.recent: got None, allowed: a list"),
        ({"limit": 50, "recent": [1, -1]}, r"budget\.recent: got -1, allowed: a whole number"),
        ({"recent": []}, r"budget\.limit is missing, found: recent"),
        ({"limit": 19, "recent": []}, r"limit is 19, outside min = 20 and max = 1000"),
        (5, r"budget: got 5, allowed: an object with limit"),
    ],
)
def test_a_state_that_is_not_the_quantiles_is_refused(state, message):
    budget = quantiles()
    before = budget.state_dict()
    with pytest.raises(ValueError, match=message):
        budget.load_state_dict(state)
    assert budget.state_dict() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min": 0}, r"0 < min <= max .* min = 0"),
        ({"hit_ratio": 1.5}, r"hit_ratio = 1\.5"),
        ({"margin": -1}, r"margin = -1"),
        ({"patience": 0}, r"patience = 0"),
        ({"init": float("nan")}, r"init must be a whole number, got nan"),
        ({"margin": 0.5}, r"margin must be a whole number, got 0\.5"),
        ({"growth": 1}, r"1 < growth < inf is required, got growth = 1"),
        ({"growth": float("inf")}, r"got growth = inf"),
        (
            {"quantile": 0.75},
            r"1 - hit_ratio = 0\.8 <= quantile <= 1 is required, got quantile = 0",
        ),
        ({"quantile": 1.1}, r"quantile = 1\.1"),
    ],
)
def test_impossible_quantiles_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        quantiles(**wrong)
