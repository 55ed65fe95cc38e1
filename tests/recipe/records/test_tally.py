"""The tally: sums by response and by position against sums by hand, and reports of agent loops."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.pruning import Pruned
from recipe.prune_opd.method.reward import Scores, TopK, TopKReward
from recipe.prune_opd.records.tally import (
    BUCKETS,
    COLUMNS,
    LOGGED,
    RECORDED,
    Facts,
    GateReport,
    Reports,
    Tally,
    logged_edges,
    recorded_edges,
)
from verl_ext.rollout.scoring import ScoreReport

LONGEST = (1, 2, 3, 8, 96, 157, 227, 512, 513, 1000, 1024, 12288, 31744, 131072)
LOG2 = math.log(2)

# ------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("edges_of", [logged_edges, recorded_edges])
@pytest.mark.parametrize("longest", LONGEST)
def test_buckets_cover_every_position_once(longest, edges_of):
    edges = edges_of(longest)
    assert (edges[0], edges[-1]) == (0, longest)
    assert edges == sorted(set(edges))
    assert len(edges) - 1 <= {logged_edges: 8, recorded_edges: 32}[edges_of]


def test_buckets_of_the_records_double_with_the_position():
    edges = recorded_edges(12288)
    assert len(edges) - 1 == 32
    assert edges[:10] == [0, 24, 48, 72, 96, 120, 144, 168, 192, 240]
    assert edges[-5:] == [6144, 7680, 9216, 10752, 12288]
    assert all(end - start <= start / 4 for start, end in pairwise(edges[4:]))


def test_buckets_of_the_logs_are_equal_parts():
    assert BUCKETS == 8
    assert logged_edges(12288) == list(range(0, 12289, 1536))
    assert logged_edges(17) == [0, 3, 6, 9, 12, 15, 17]


# ---------------------------------------------------------------------------------------- by hand


def count(mask, overlap, events, longest, base=0.25, reports=None, reward=-1.0) -> Tally:
    """With a reward of two candidates a token, a student sure of one token and a teacher torn
    between two."""
    weights = reliability(events, mask, w_drop=0.5, w_base=base)
    rewards = torch.full((*mask.shape, 2), reward)
    sure = torch.tensor([0.0, -torch.inf]).expand(*mask.shape, 2)
    torn = torch.full((*mask.shape, 2), -LOG2)
    ids = torch.zeros(*mask.shape, 2, dtype=torch.long)
    given = TopKReward(rewards, ids, ids == 0, sure)
    pruned = Pruned(
        mask.bool(), overlap, events, weights, given, rewards * weights.loss_weight.unsqueeze(-1)
    )
    rows = len(mask)
    counted, limits = torch.arange(rows), 10 * torch.arange(rows)
    facts = Facts(mask.bool(), counted % 2 == 1, counted, limits, reports or [Reports()] * rows)
    return Tally.of(pruned, Scores(ids[..., 0], TopK(ids, sure), TopK(ids, torn)), facts, longest)


NAN = math.nan
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
OVERLAP = torch.tensor([[1.0, 0.5, 0.0, 0.25], [0.5, 0.5, NAN, NAN]])
EVENTS = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]).bool()
"""R: 1, .5, .5, 0 and 1, 1; what is masked is garbage."""


def test_sums_of_a_response_by_hand():
    tally = count(MASK, OVERLAP, EVENTS, 4)
    assert (tally.rows.shape, tally.rows.dtype) == ((2, len(COLUMNS)), torch.float64)
    expected = {
        "tokens": [4, 2],
        "overlap": [1.75, 1],
        "events": [2, 0],
        "weight": [2, 2],
        "loss_weight": [3, 2.5],
        "zero_weight": [1, 0],
        "reward": [-8, -4],
        "pruned_reward": [-6, -5],
        "distillation": [6, 5],
        "student_mass": [4, 2],
        "teacher_mass": [4, 2],
        "effective_length": [3, 2],
        "reliable_to": [3, 2],
        "ended": [0, 1],
        "missing": [0, 1],
        "limit": [0, 10],
    }
    for name, values in expected.items():
        assert tally.column(name).tolist() == pytest.approx(values), name
        assert tally.total[name] == pytest.approx(sum(values)), name
    for name in set(COLUMNS) - set(expected):  # nobody reported anything
        assert tally.column(name).tolist() == [0, 0], name


def test_tallies_of_the_updates_of_a_step_are_one():
    one, other = (count(MASK[rows], OVERLAP[rows], EVENTS[rows], 4) for rows in ([0], [1, 0]))
    whole = Tally.join(one, other)
    assert whole.column("tokens").tolist() == [4, 2, 4]
    assert whole.longest == 4
    for name in RECORDED:
        parts = (tally.by_position(name, recorded_edges(4)) for tally in (one, other))
        expected = [sum(pair) for pair in zip(*parts, strict=True)]
        assert whole.by_position(name, recorded_edges(4)) == pytest.approx(expected)


def test_sums_by_position_by_hand():
    tally = count(MASK, OVERLAP, EVENTS, 4, base=0.0)
    assert tally.positions.dtype == torch.float32
    assert {name: tally.by_position(name, recorded_edges(4)) for name in RECORDED} == {
        "tokens": [2, 2, 1, 1],
        "overlap": [1.5, 1, 0, 0.25],
        "events": [0, 1, 0, 1],
        "weight": [2, 1.5, 0.5, 0],
        "trained": [2, 2, 1, 0],
        "reward": [-4, -4, -2, -2],
        "student_entropy": [0] * 4,
        "teacher_entropy": pytest.approx([2 * LOG2, 2 * LOG2, LOG2, LOG2]),
    }
    assert tally.by_position("loss_weight", logged_edges(4)) == [2, 1.5, 0.5, 0]


# --------------------------------------------------------------------------------------- at random


def random_batch(rows=6, length=50):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, length, generator=generator) < 0.8
    overlap = torch.rand(rows, length, generator=generator)
    return mask, overlap, overlap < 0.3


KINDS = [(name, recorded_edges) for name in RECORDED] + [(name, logged_edges) for name in LOGGED]


@pytest.mark.parametrize("longest", [1, 7, 20, 50, 96, 157, 512, 4000])
@pytest.mark.parametrize(("name", "edges_of"), KINDS)
def test_buckets_are_sums_over_their_tokens(name, edges_of, longest):
    """Also where responses are longer than the largest limit, or far shorter."""
    mask, overlap, events = random_batch()
    weights = reliability(events, mask, 0.5, 0.25)
    values = {
        "tokens": torch.ones_like(overlap),
        "overlap": overlap,
        "events": events,
        "weight": weights.weight,
        "loss_weight": weights.loss_weight,
        "trained": torch.ones_like(overlap),
        "reward": -2 * torch.ones_like(overlap),
        "student_entropy": torch.zeros_like(overlap),
        "teacher_entropy": LOG2 * torch.ones_like(overlap),
    }
    columns = torch.where(mask, values[name].double(), 0.0).sum(0).tolist()
    edges = edges_of(longest)
    ends = [*edges[1:-1], max(longest, len(columns))]  # the last also takes what lies beyond
    expected = [sum(columns[start:end]) for start, end in zip(edges, ends, strict=False)]
    found = count(mask, overlap, events, longest).by_position(name, edges)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("longest", [50, 157])
def test_sums_of_parts_are_those_of_the_whole(longest):
    mask, overlap, events = random_batch()
    whole = count(mask, overlap, events, longest)
    parts = [
        count(*part, longest)
        for part in zip(mask.split(2), overlap.split(2), events.split(2), strict=True)
    ]
    torch.testing.assert_close(torch.cat([part.positions for part in parts]), whole.positions)
    per_token = COLUMNS.index("effective_length")
    torch.testing.assert_close(
        torch.cat([part.rows for part in parts])[:, :per_token], whole.rows[:, :per_token]
    )


def test_sums_do_not_depend_on_padding():
    mask, overlap, events = random_batch()
    wider = [torch.nn.functional.pad(value.float(), (0, 7)) for value in (mask, overlap, events)]
    found = count(wider[0].bool(), wider[1], wider[2].bool(), 50)
    expected = count(mask, overlap, events, 50)
    torch.testing.assert_close(found.positions, expected.positions)
    torch.testing.assert_close(found.rows, expected.rows)


# ----------------------------------------------------------------------------------------- reports


def report_of(*events: int, **values: object) -> GateReport:
    return GateReport(events=np.array(events, dtype=bool), **values)


def with_reports(events: list[list[int]], reports: list[Reports]) -> Tally:
    flags = torch.tensor(events).bool()
    return count(torch.ones_like(flags), torch.zeros(flags.shape), flags, 8, reports=reports)


def test_the_gate_is_compared_with_the_trainer_where_it_looked():
    given = [report_of(0, 1, 0, 0, stopped=True), None, report_of(), report_of(1, 0, 1, 0, 1)]
    events = [[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]]
    tally = with_reports(events, [Reports(gate=report) for report in given])
    assert tally.column("gate_tokens").tolist() == [4, 0, 0, 5]
    assert tally.column("gate_agreed").tolist() == [3, 0, 0, 5]
    assert tally.column("gate_stopped").tolist() == [1, 0, 0, 0]


def test_a_padding_row_may_carry_the_report_of_a_longer_response():
    tally = with_reports([[0, 0]], [Reports(gate=report_of(0, 1, 0, 0, 1))])
    assert (tally.total["gate_tokens"], tally.total["gate_agreed"]) == (2, 1)


def test_every_number_of_a_report_has_a_column():
    gate = report_of(
        1,
        stopped=True,
        generated=9,
        teacher_tokens=11,
        asked=2.5,
        waited=0.5,
        late=1,
        failed=2,
        given_up=True,
        error="x",
    )
    score = ScoreReport(late=3, failed=4, computed=50, early=1.5, began=1.79e9, ended=1.79e9 + 0.25)
    tally = with_reports([[1]], [Reports(gate, score)])
    numbers = {"gate": {**vars(gate)}, "score": {**vars(score)}}
    del numbers["gate"]["events"], numbers["score"]["missing"]  # the tally has these of its own
    for of, values in numbers.items():
        for name, value in values.items():
            if name != "error":
                assert tally.total[f"{of}_{name}"] == value, name
    # To the millisecond, which float32 would round to two minutes.
    assert tally.total["score_ended"] - tally.total["score_began"] == 0.25


def test_errors_of_a_response_by_who_asked():
    assert Reports().errors == Reports(GateReport(), ScoreReport()).errors == {}
    both = Reports(GateReport(error="late"), ScoreReport(error="gone"))
    assert both.errors == {"gate": "late", "score": "gone"}
    assert Reports(score=ScoreReport(error="gone")).errors == {"score": "gone"}
