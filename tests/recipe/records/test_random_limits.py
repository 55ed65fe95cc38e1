"""Random limits have the distribution of another run's lengths, step by step, and are resumed."""

import json
from collections import Counter

import pytest

from recipe.prune_opd.config import BudgetConfig
from recipe.prune_opd.records.files import STEPS, Records
from recipe.prune_opd.records.random_limits import RandomLimits

LENGTHS = [[10, 20, 20, 30], [5, 50], [40, 60, 70]]


@pytest.fixture
def folder(tmp_path):
    """Records of a run of three steps."""
    records = Records(tmp_path / "records")
    for number, lengths in enumerate(LENGTHS, 1):
        records.step(number, {"positions": {}, "lengths": lengths})
    return tmp_path / "records"


def test_each_step_has_the_lengths_of_its_own(folder):
    """Beyond the last one, those of the last. ``limit`` is the largest, whatever is drawn."""
    budget = RandomLimits(str(folder), max=100)
    for lengths in [*LENGTHS, LENGTHS[-1], LENGTHS[-1]]:
        drawn = budget.limits(4000)
        assert set(drawn) == set(lengths)
        for length, count in Counter(lengths).items():
            assert drawn.count(length) / 4000 == pytest.approx(count / len(lengths), abs=0.04)
        assert budget.limit == max(lengths)
        budget.update([1])


def test_the_metrics(folder):
    assert RandomLimits(str(folder), max=100).update([7, 30, 11]) == {
        "prune_opd/current_max_response_length": 30,
        "prune_opd/next_max_response_length": 50,
        "prune_opd/effective_response_length_mean": 16,
        "prune_opd/effective_response_length_max": 30,
        "prune_opd/effective_response_length_min": 7,
    }


def test_a_seed_and_a_step_are_one_draw(folder):
    """Whatever the responses were like."""
    first, again, other = (RandomLimits(str(folder), 100, seed) for seed in (1, 1, 2))
    for _ in range(5):
        drawn = first.limits(64)
        assert first.limits(64) == drawn == again.limits(64) != other.limits(64)
        first.update([1])
        again.update([30, 2])
        other.update([1])
    # Beyond the recorded steps the lengths stay, the draw does not.
    first.update([1])
    assert first.limits(64) != drawn


@pytest.mark.parametrize("steps", range(5))
def test_a_resumed_run_draws_the_same(folder, steps):
    budget, resumed = RandomLimits(str(folder), 100), RandomLimits(str(folder), 100)
    for _ in range(steps):
        budget.update([1])
    resumed.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    for _ in range(3):
        assert resumed.limits(32) == budget.limits(32)
        assert resumed.update([1]) == budget.update([1])


@pytest.mark.parametrize("state", [{"limit": 3, "no_hit_steps": 1}, {"steps": -1}, None])
def test_a_state_of_another_rule_is_refused(folder, state):
    budget = RandomLimits(str(folder), 100)
    with pytest.raises(ValueError, match=r"^budget[.:]"):
        budget.load_state_dict(state)
    assert budget.state_dict() == {"steps": 0}


def build(folder, longest: int = 100, **args: object) -> RandomLimits:
    given = {"records": str(folder)} | args
    return BudgetConfig(rule="random", args=given, max=longest).resolved(longest).build()


def test_a_configuration_names_it(folder):
    budget = build(folder, seed=3)
    assert isinstance(budget, RandomLimits)
    assert str(budget) == "random, from the lengths of 3 recorded steps, seed 3"
    with pytest.raises(ValueError, match=r"^prune_opd\.budget\.args\.records: no value was given"):
        BudgetConfig(rule="random", max=100).resolved(100).build()


@pytest.mark.parametrize("line", ['{"step": 4, "posi', "[]"])
def test_a_line_torn_by_a_kill_is_no_matter(folder, line):
    (folder / STEPS).open("a").write(line)
    assert len(build(folder)._steps) == 3


LINE = {"positions": {}, "lengths": [1]}
DAMAGED = {
    "no such folder": (None, r"steps\.jsonl cannot be read: No such file or directory; needed: t"),
    "nothing": ("", r"steps\.jsonl lacks step 1\)"),
    "no json": ("no\n", r"lacks step 1; .* line 1 is no JSON object"),
    "begins late": (json.dumps({"step": 5} | LINE), r"lacks step 1\)"),
    "a gap": ("\n".join(json.dumps({"step": n} | LINE) for n in (1, 2, 4)), r"lacks step 3\)"),
    "of an older version": (
        json.dumps({"step": 1, "positions": {}}),
        r"step 1 has lengths None, n",
    ),
    "no lengths": (json.dumps({"step": 1, "positions": {}, "lengths": []}), r"has lengths \[\], n"),
    "no tokens": (
        json.dumps({"step": 1, "positions": {}, "lengths": [0]}),
        r"has lengths \[0\], n",
    ),
    "too long": (
        json.dumps({"step": 1} | LINE | {"lengths": [3, 101]}),
        r"kept 101 tokens, more th",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_records_that_cannot_be_used_are_refused_in_a_sentence(tmp_path, case):
    content, message = DAMAGED[case]
    if content is not None:
        (tmp_path / STEPS).write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        build(tmp_path)
    assert str(refused.value).startswith("prune_opd.budget.args: random refuses {'max': 100, ")
    assert "\n" not in str(refused.value)
