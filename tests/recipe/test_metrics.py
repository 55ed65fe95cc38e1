import numpy as np
import pytest
import torch

from recipe.prune_opd.drift import reliability
from recipe.prune_opd.gate import GateReport
from recipe.prune_opd.metrics import (
    BUCKETS,
    COLUMNS,
    GATE,
    gate_columns,
    response_sums,
    summarise,
    summarise_gate,
)
from recipe.prune_opd.reward import TopKReward

NAN = torch.nan


def sums_of(mask, overlap, events, reward, ended, max_length, mass=(0.75, 0.5), gate=None) -> torch.Tensor:
    """Rows of sums, with constant student and teacher mass on the top-k and a reward of two candidates a token."""
    weights = reliability(events, mask, w_drop=0.5, w_base=0.25)
    halves = reward.unsqueeze(-1).expand(*reward.shape, 2) / 2
    given = TopKReward(halves, torch.zeros_like(halves).long(), torch.ones_like(halves).bool(), halves)
    masses = [torch.full_like(halves, m / 2).log() for m in mass]
    pruned = halves * weights.loss_weight.unsqueeze(-1)
    gate = torch.zeros(len(mask), len(GATE)) if gate is None else gate
    return response_sums(mask, overlap, events, weights, given, pruned, *masses, ended, gate, max_length)


def test_a_batch_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    overlap = torch.tensor([[1.0, 0.5, 0.0, NAN], [1.0, 0.75, NAN, NAN]])
    events = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]).bool()  # R: 1, .5, 0 and 1, 1
    reward = torch.tensor([[-1.0, -2.0, -3.0, NAN], [-4.0, -6.0, NAN, NAN]])
    sums = sums_of(mask, overlap, events, reward, torch.tensor([True, True]), max_length=2 * BUCKETS)
    assert sums.shape == (2, len(COLUMNS))
    assert sums.dtype == torch.float32
    assert summarise(sums, 2 * BUCKETS) == pytest.approx(
        {
            "prune_opd/overlap_ratio": 3.25 / 5,
            "prune_opd/event_rate": 2 / 5,
            "prune_opd/reliability_weight": 3.5 / 5,
            "prune_opd/loss_weight": (3.5 + 5 * 0.25) / 5,
            "prune_opd/zero_weight_ratio": 1 / 5,
            "prune_opd/generated_tokens": 5,
            "prune_opd/kept_tokens": 4,
            "prune_opd/reward_mean": -16 / 5,
            "prune_opd/pruned_reward_mean": -(1.25 * 1 + 0.75 * 2 + 0.25 * 3 + 1.25 * 4 + 1.25 * 6) / 5,
            "prune_opd/student_topk_mass": 0.75,
            "prune_opd/teacher_topk_mass": 0.5,
            "prune_opd/ended_ratio": 1,
            "prune_opd/limit_hit_ratio": 0,
            "prune_opd/overlap_ratio/from_0": 3.25 / 4,
            "prune_opd/event_rate/from_0": 1 / 4,
            "prune_opd/loss_weight/from_0": (1.25 + 0.75 + 1.25 + 1.25) / 4,
            "prune_opd/overlap_ratio/from_2": 0,
            "prune_opd/event_rate/from_2": 1,
            "prune_opd/loss_weight/from_2": 0.25,
        }
    )


def test_the_row_holds_the_effective_length():
    mask = torch.ones(2, 6)
    events = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    zeros = torch.zeros(2, 6)
    sums = sums_of(mask, zeros, events, zeros, torch.tensor([True, True]), max_length=6)
    assert sums[:, COLUMNS.index("effective_length")].tolist() == [4, 6]


@pytest.mark.parametrize(
    ("max_length", "length", "counts"),
    [
        (8, 8, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1}),
        (16, 5, {0: 2, 2: 2, 4: 1}),
        (17, 17, {0: 3, 3: 3, 6: 3, 9: 3, 12: 3, 15: 2}),
        (8, 11, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 4}),  # beyond the limit: in the last
    ],
)
def test_buckets_are_equal_parts_of_the_largest_limit(max_length, length, counts):
    mask = torch.ones(1, length)
    overlap = torch.zeros(1, length)
    overlap[0, -1] = 1  # only the last token overlaps: its bucket's mean tells the count
    sums = sums_of(mask, overlap, torch.zeros(1, length).bool(), overlap, torch.tensor([True]), max_length)
    tokens = {name: value for name, value in zip(COLUMNS, sums[0].tolist(), strict=True) if name.startswith("tokens/")}
    assert [count for count in tokens.values() if count] == list(counts.values())
    prefix = "prune_opd/overlap_ratio/from_"
    means = {int(n.removeprefix(prefix)): v for n, v in summarise(sums, max_length).items() if n.startswith(prefix)}
    assert means == pytest.approx(dict.fromkeys(counts, 0) | {max(counts): 1 / counts[max(counts)]})


def test_sums_of_parts_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 20, generator=generator) < 0.8
    overlap, reward = torch.rand(2, 6, 20, generator=generator)
    ended = torch.rand(6, generator=generator) < 0.5
    events = overlap < 0.3
    tensors = (mask, overlap, events, reward, ended)
    whole = sums_of(*tensors, 20)
    parts = [sums_of(*part, 20) for part in zip(*(tensor.split(2) for tensor in tensors), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_batch_without_tokens_has_finite_metrics():
    zeros = torch.zeros(2, 3)
    sums = sums_of(zeros, zeros, zeros.bool(), zeros, torch.tensor([True, True]), 8)
    metrics = summarise(sums, 8)
    assert metrics["prune_opd/generated_tokens"] == 0
    assert metrics["prune_opd/overlap_ratio"] == 0
    assert not any("/from_" in name for name in metrics)


# ------------------------------------------------------------------------------------------------ gate


def report_of(*events: int, **values: object) -> GateReport:
    return GateReport(events=np.array(events, dtype=bool), **values)


def gate_of(reports: list[GateReport | None], tokens: list[int]) -> torch.Tensor:
    """Rows of sums of responses that keep so many tokens, none of them an event to the trainer."""
    mask = (torch.arange(max(tokens)) < torch.tensor(tokens).unsqueeze(1)).long()
    quiet = torch.zeros_like(mask).bool()
    ended = torch.zeros(len(tokens)).bool()
    return sums_of(mask, mask.float(), quiet, mask.float(), ended, 8, gate=gate_columns(reports, quiet))


def test_the_gate_is_compared_with_the_trainer_where_it_looked():
    events = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    reports = [report_of(0, 1, 0, 0, stopped=True), None, report_of(), report_of(1, 0, 1, 0, 1)]
    columns = gate_columns(reports, events)
    assert columns.shape == (4, len(GATE))
    assert columns[:, -2:].tolist() == [[4, 3], [0, 0], [0, 0], [5, 5]]
    assert columns[:, 0].tolist() == [1, 0, 0, 0]


def test_a_padding_row_may_carry_the_report_of_a_longer_response():
    columns = gate_columns([report_of(0, 1, 0, 0, 1)], torch.tensor([[0, 0]]).bool())
    assert columns[0, -2:].tolist() == [2, 1]


def test_a_stopped_response_did_not_hit_the_limit():
    mask, ended = torch.ones(4, 2), torch.tensor([True, False, False, False])
    gate = torch.zeros(4, len(GATE))
    gate[:, 0] = torch.tensor([0, 1, 0, 1])
    sums = sums_of(mask, mask, mask.bool(), mask, ended, 8, gate=gate)
    assert sums[:, COLUMNS.index("stopped")].tolist() == [0, 1, 0, 1]
    metrics = summarise(sums, 8)
    assert metrics["prune_opd/ended_ratio"] == 0.25
    assert metrics["prune_opd/limit_hit_ratio"] == 0.25


def test_what_the_gate_did_by_hand():
    reports = [
        report_of(0, 1, 1, stopped=True, generated=10, teacher_tokens=14, waited=0.5, late=1),
        report_of(1, stopped=True, generated=4, teacher_tokens=6, waited=0.0),
        report_of(0, 0, generated=6, teacher_tokens=4, waited=1.0, late=1, failed=2, given_up=True),
        report_of(0, 0, 0, 0, generated=4, teacher_tokens=6, waited=0.5),
    ]
    assert summarise_gate(gate_of(reports, [3, 1, 6, 4])) == pytest.approx(
        {
            "prune_opd/gate/stopped_ratio": 0.5,
            "prune_opd/gate/stop_position_mean": 2,
            "prune_opd/gate/overshoot_tokens": 7 + 3,
            "prune_opd/gate/teacher_tokens_per_token": 30 / 24,
            "prune_opd/gate/waited_mean": 0.5,
            "prune_opd/gate/waited_max": 1,
            "prune_opd/gate/late_answers": 2,
            "prune_opd/gate/failed_answers": 2,
            "prune_opd/gate/given_up": 1,
            "prune_opd/gate/event_agreement": 7 / 10,
        }
    )


def test_where_nothing_was_stopped_there_is_no_stop_position():
    metrics = summarise_gate(gate_of([report_of(0, 0, generated=2)], [2]))
    assert metrics["prune_opd/gate/stopped_ratio"] == metrics["prune_opd/gate/overshoot_tokens"] == 0
    assert "prune_opd/gate/stop_position_mean" not in metrics


def test_where_the_teacher_said_nothing_there_is_no_agreement():
    metrics = summarise_gate(gate_of([report_of(generated=2, given_up=True)], [2]))
    assert "prune_opd/gate/event_agreement" not in metrics
