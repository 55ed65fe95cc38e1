"""Logged numbers are those worked by hand, whatever the padding and however a batch is split."""

import numpy as np
import pytest
import torch

from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.pruning import Pruned
from recipe.prune_opd.method.reward import Scores, TopK, TopKReward
from recipe.prune_opd.records.metrics import (
    summarise,
    summarise_gate,
    summarise_scores,
    summarise_task,
)
from recipe.prune_opd.records.tally import BUCKETS, Facts, GateReport, Reports, Tally
from verl_ext.rollout.scoring import ScoreReport

NAN = torch.nan


def count(mask, overlap, events, reward, ended, max_length, missing=None, reports=None) -> Tally:
    """With a student that has three quarters of its mass on the two candidates of each token, and
    a teacher that has half."""
    weights = reliability(events, mask, w_drop=0.5, w_base=0.25)
    halves = reward.unsqueeze(-1).expand(*reward.shape, 2) / 2
    given = TopKReward(
        halves, torch.zeros_like(halves).long(), torch.ones_like(halves).bool(), halves
    )
    ids = torch.zeros_like(halves).long()
    student, teacher = (TopK(ids, torch.full_like(halves, mass / 2).log()) for mass in (0.75, 0.5))
    scores = Scores(ids[..., 0], student, teacher)
    advantages = halves * weights.loss_weight.unsqueeze(-1)
    pruned = Pruned(mask.bool(), overlap, events, weights, given, advantages)
    missing = torch.zeros(len(mask), dtype=torch.long) if missing is None else missing
    limits = torch.full_like(missing, mask.shape[1])
    facts = Facts(mask.bool(), ended, missing, limits, reports or [Reports()] * len(mask))
    return Tally.of(pruned, scores, facts, max_length)


@pytest.mark.parametrize(
    ("task", "distillation", "share"), [(1.0, 3.0, 0.25), (0.0, 2.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_the_share_of_task_rewards_is_by_absolute_advantages(tally_of, task, distillation, share):
    tally = tally_of({"task": task, "distillation": distillation})
    assert summarise_task(tally) == {"prune_opd/task_reward/share": share}


def test_a_batch_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    overlap = torch.tensor([[1.0, 0.5, 0.0, NAN], [1.0, 0.75, NAN, NAN]])
    events = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]).bool()  # R: 1, .5, 0 and 1, 1
    reward = torch.tensor([[-1.0, -2.0, -3.0, NAN], [-4.0, -6.0, NAN, NAN]])
    tally = count(mask, overlap, events, reward, torch.tensor([True, True]), max_length=2 * BUCKETS)
    assert summarise(tally) == pytest.approx(
        {
            "prune_opd/overlap_ratio": 3.25 / 5,
            "prune_opd/event_rate": 2 / 5,
            "prune_opd/reliability_weight": 3.5 / 5,
            "prune_opd/loss_weight": (3.5 + 5 * 0.25) / 5,
            "prune_opd/zero_weight_ratio": 1 / 5,
            "prune_opd/generated_tokens": 5,
            "prune_opd/kept_tokens": 4,
            "prune_opd/reward_mean": -16 / 5,
            "prune_opd/pruned_reward_mean": -(1.25 * 1 + 0.75 * 2 + 0.25 * 3 + 1.25 * 4 + 1.25 * 6)
            / 5,
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
    events, ended = torch.zeros(1, length).bool(), torch.tensor([True])
    metrics = summarise(count(mask, overlap, events, overlap, ended, max_length))
    prefix = "prune_opd/overlap_ratio/from_"
    means = {
        int(name.removeprefix(prefix)): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }
    assert means == pytest.approx(dict.fromkeys(counts, 0) | {max(counts): 1 / counts[max(counts)]})


def test_a_batch_without_tokens_has_finite_metrics():
    zeros = torch.zeros(2, 3)
    tally = count(zeros, zeros, zeros.bool(), zeros, torch.tensor([True, True]), 8)
    metrics = summarise(tally)
    assert metrics["prune_opd/generated_tokens"] == 0
    assert metrics["prune_opd/overlap_ratio"] == 0
    assert not any("/from_" in name for name in metrics)


# --------------------------------------------------------------------------------------------- gate


def report_of(*events: int, **values: object) -> GateReport:
    return GateReport(events=np.array(events, dtype=bool), **values)


def tally_of(reports: list[Reports], tokens: list[int], missing: list[int] | None = None) -> Tally:
    """Responses that keep so many tokens, none of them an event to the trainer."""
    lacking = torch.tensor(missing or [0] * len(tokens))
    mask = (torch.arange(max(tokens)) < torch.tensor(tokens).unsqueeze(1)).long()
    quiet, ended = torch.zeros_like(mask).bool(), torch.zeros(len(tokens)).bool()
    return count(mask, mask.float(), quiet, mask.float(), ended, 8, lacking, reports)


def gate_of(
    reports: list[GateReport], tokens: list[int], missing: list[int] | None = None
) -> dict[str, float]:
    return summarise_gate(tally_of([Reports(gate=report) for report in reports], tokens, missing))


def test_a_stopped_response_did_not_hit_the_limit():
    mask, ended = torch.ones(4, 2), torch.tensor([True, False, False, False])
    reports = [Reports(gate=GateReport(stopped=stopped)) for stopped in (False, True) * 2]
    metrics = summarise(count(mask, mask, mask.bool(), mask, ended, 8, reports=reports))
    assert metrics["prune_opd/ended_ratio"] == 0.25
    assert metrics["prune_opd/limit_hit_ratio"] == 0.25


def test_what_the_gate_did_by_hand():
    reports = [
        report_of(
            0, 1, 1, stopped=True, generated=10, teacher_tokens=14, asked=4.0, waited=0.5, late=1
        ),
        report_of(1, stopped=True, generated=4, teacher_tokens=6, asked=2.0, waited=0.0),
        report_of(
            0,
            0,
            generated=6,
            teacher_tokens=4,
            asked=1.0,
            waited=1.0,
            late=1,
            failed=2,
            given_up=True,
        ),
        report_of(0, 0, 0, 0, generated=4, teacher_tokens=6, asked=1.0, waited=0.5),
    ]
    assert gate_of(reports, [3, 1, 6, 4]) == pytest.approx(
        {
            "prune_opd/gate/stopped_ratio": 0.5,
            "prune_opd/gate/stop_position_mean": 2,
            "prune_opd/gate/overshoot_tokens": 7 + 3,
            "prune_opd/gate/teacher_tokens_per_token": 30 / 24,
            "prune_opd/gate/hidden_ratio": 0.75,
            "prune_opd/gate/waited_mean": 0.5,
            "prune_opd/gate/waited_max": 1,
            "prune_opd/gate/late_answers": 2,
            "prune_opd/gate/failed_answers": 2,
            "prune_opd/gate/given_up": 1,
            "prune_opd/gate/event_agreement": 7 / 10,
        }
    )


def test_where_nothing_was_stopped_there_is_no_stop_position():
    metrics = gate_of([report_of(0, 0, generated=2)], [2])
    assert (
        metrics["prune_opd/gate/stopped_ratio"] == metrics["prune_opd/gate/overshoot_tokens"] == 0
    )
    assert "prune_opd/gate/stop_position_mean" not in metrics


def test_where_the_teacher_said_nothing_there_is_no_agreement():
    metrics = gate_of([report_of(generated=2, given_up=True)], [2])
    assert "prune_opd/gate/event_agreement" not in metrics


def test_tokens_without_a_score_were_kept_by_the_gate():
    """They are no overshoot, and count where the response was stopped."""
    reports = [
        report_of(0, 1, 1, stopped=True, generated=10),
        report_of(1, stopped=True, generated=4),
        report_of(0, 0, generated=6),
    ]
    metrics = gate_of(reports, [3, 1, 4], missing=[2, 0, 2])
    assert metrics["prune_opd/gate/overshoot_tokens"] == (10 - 5) + (4 - 1)
    assert metrics["prune_opd/gate/stop_position_mean"] == (5 + 1) / 2


# ---------------------------------------------------------------------------------- teacher servers


def scores_of(
    tokens: list[int], missing: list[int], scores: list[ScoreReport | None]
) -> dict[str, float]:
    """Metrics of responses with so many tokens with a score and without, without their prefix."""
    reports = [Reports(score=score) for score in scores]
    metrics = summarise_scores(tally_of(reports, tokens, missing))
    assert all(name.startswith("prune_opd/teacher/") for name in metrics)
    return {name.removeprefix("prune_opd/teacher/"): value for name, value in metrics.items()}


def test_what_the_servers_did_by_hand():
    """The last question was at 106: two seconds of the first score, six of the second and none
    after were hidden."""
    scores = [
        ScoreReport(late=1, failed=2, missing=5, computed=40, began=100, ended=102),
        ScoreReport(failed=1, computed=50, began=100, ended=107),
        ScoreReport(late=2, computed=60, began=106, ended=109),
    ]
    assert scores_of([3, 1, 6], [5, 0, 0], scores) == pytest.approx(
        {
            "missing_ratio": 5 / 15,
            "late_answers": 3,
            "failed_answers": 3,
            "computed_tokens": 150,
            "score_seconds_mean": 12 / 3,
            "hidden_ratio": 8 / 12,
            "waited": 3,
        }
    )


def test_one_score_alone_is_waited_for():
    metrics = scores_of([3], [0], [ScoreReport(computed=9, began=50, ended=52)])
    assert (metrics["hidden_ratio"], metrics["waited"], metrics["score_seconds_mean"]) == (0, 2, 2)


def test_an_early_score_that_ends_last_is_waited_for():
    scores = [ScoreReport(began=0.5, ended=20), ScoreReport(began=10, ended=11)]
    metrics = scores_of([1, 1], [0, 0], scores)
    assert metrics["waited"] == 10
    assert metrics["hidden_ratio"] == pytest.approx(9.5 / 20.5)


def test_what_was_asked_while_a_response_grew_is_hidden():
    """Six seconds of questions before the ends; after them one of the first is hidden, and none of
    the second."""
    scores = [
        ScoreReport(early=4, began=100, ended=103),
        ScoreReport(early=2, began=101, ended=102),
    ]
    metrics = scores_of([3, 1], [0, 0], scores)
    assert metrics["hidden_ratio"] == pytest.approx(7 / 10)
    assert (metrics["score_seconds_mean"], metrics["waited"]) == (2, 2)


def test_responses_nobody_was_asked_about_do_not_count():
    """They are empty, or have no report."""
    scores = [ScoreReport(), ScoreReport(computed=9, began=50, ended=52), None]
    metrics = scores_of([3, 3, 3], [0, 0, 0], scores)
    assert (metrics["score_seconds_mean"], metrics["waited"], metrics["computed_tokens"]) == (
        2,
        2,
        9,
    )


@pytest.mark.parametrize("scores", [[None, None], [ScoreReport(), ScoreReport()]])
def test_where_nobody_was_asked_there_are_no_times(scores):
    assert scores_of([3, 1], [0, 4], scores) == {
        "missing_ratio": 0.5,
        "late_answers": 0,
        "failed_answers": 0,
    }


def test_scores_that_took_no_time_have_finite_metrics():
    metrics = scores_of([3], [0], [ScoreReport(began=50, ended=50)])
    assert metrics["hidden_ratio"] == metrics["waited"] == 0


def test_a_batch_without_tokens_lacks_none():
    zeros = torch.zeros(1, 2)
    tally = count(zeros, zeros, zeros.bool(), zeros, torch.tensor([False]), 8)
    assert summarise_scores(tally)["prune_opd/teacher/missing_ratio"] == 0
