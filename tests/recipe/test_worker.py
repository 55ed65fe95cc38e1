"""What the worker does between its passes, on a batch made up here; no model and no engine."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.config import DriftConfig, GateConfig, PruneOPDConfig, TeacherConfig
from recipe.prune_opd.gate import REPORT, Cumulative, GateReport
from recipe.prune_opd.metrics import COLUMNS
from recipe.prune_opd.worker import (
    CANDIDATES,
    EXTRA,
    RELIABLE,
    STUDENT_IDS,
    STUDENT_LOG_PROBS,
    SUMS,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    TEACHER_ON_STUDENT,
    UPDATE_FIELDS,
    PruneOPDWorker,
    advantage_fields,
    gate_reports,
)

K, W_DROP = 4, 0.25


def worker_of(**changes: object) -> PruneOPDWorker:
    worker = object.__new__(PruneOPDWorker)
    worker.prune_opd = PruneOPDConfig(
        teacher=TeacherConfig(path="T"), drift=DriftConfig(w_drop=W_DROP), topk=K, **changes
    )
    worker.ends, worker.max_length = {1}, 64
    return worker


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def batch(events: list[list[bool]], reports: list[GateReport | None] | None = None) -> TensorDict:
    """Responses whose two models' candidates are alike, or disjoint at a drift event."""
    torch.manual_seed(0)
    flags = [torch.tensor(row) for row in events]
    student = torch.arange(K)
    log_probs = [torch.log_softmax(torch.randn(len(row), K), -1) for row in events]
    fields = {
        "responses": jagged([torch.randint(2, 9, (len(row),)) for row in events]),
        "response_mask": jagged([torch.ones(len(row), dtype=torch.long) for row in events]),
        STUDENT_IDS: jagged([student.expand(len(row), K).clone() for row in events]),
        TEACHER_IDS: jagged([student + K * flag.long().unsqueeze(1) for flag in flags]),
        **{name: jagged(log_probs) for name in (STUDENT_LOG_PROBS, TEACHER_LOG_PROBS, TEACHER_ON_STUDENT)},
    }
    data = TensorDict(fields, batch_size=len(events))
    if reports is not None:
        # As an agent loop's output leaves it.
        outputs = [TokenOutput(token_ids=[], extra_fields={REPORT: r} if r is not None else {}) for r in reports]
        tu.assign_non_tensor_stack(data, EXTRA, [output.model_dump()["extra_fields"] for output in outputs])
    return data


def computed(worker: PruneOPDWorker, data: TensorDict) -> TensorDict:
    return inspect.unwrap(PruneOPDWorker.compute_pruned_advantage)(worker, data)


DRIFTING = [[False] * 3 + [True] * 6, [True, False] * 6, [False] * 5]


def test_reliable_tokens_are_those_with_weight_left():
    result = computed(worker_of(), batch(DRIFTING))
    # Reliability is 0 at the fourth event.
    assert [row.tolist() for row in result[RELIABLE].unbind()] == [[1] * 6 + [0] * 3, [1] * 6 + [0] * 6, [1] * 5]
    effective = result[SUMS][:, COLUMNS.index("effective_length")]
    assert effective.tolist() == [6, 6, 5]


def test_a_response_cut_by_the_gate_has_as_many_reliable_tokens():
    cut = [row[: Cumulative(W_DROP).feed(row)] for row in DRIFTING]
    assert [len(row) for row in cut] == [6, 6, 5]
    whole, stopped = (computed(worker_of(), batch(events))[RELIABLE] for events in (DRIFTING, cut))
    assert whole.values().sum() == stopped.values().sum() == stopped.values().numel()


def test_the_gates_report_reaches_the_sums():
    reports = [
        GateReport(stopped=True, generated=12, events=np.array(DRIFTING[0])),
        GateReport(generated=12, events=np.array([True, True])),
        None,
    ]
    worker = worker_of(gate=GateConfig(enable=True))
    data = batch(DRIFTING, reports)
    sums = computed(worker, data)[SUMS]
    columns = [COLUMNS.index(name) for name in ("stopped", "gate_tokens", "gate_agreed")]
    assert sums[:, columns].tolist() == [[1, 9, 9], [0, 2, 1], [0, 0, 0]]


def test_a_report_comes_back_as_it_was():
    report = GateReport(True, 9, np.array([True, False]), 11, 0.5, 1, 2, True, "lost")
    first, second = gate_reports(batch(DRIFTING[:2], [report, None]))
    assert second is None
    np.testing.assert_array_equal(first.events, report.events)
    assert vars(first) | {"events": None} == vars(report) | {"events": None}


def test_without_a_gate_there_are_no_reports():
    assert gate_reports(batch(DRIFTING)) == [None] * 3


@pytest.mark.parametrize("enable", [True, False])
def test_reports_are_fetched_with_a_gate_alone(enable):
    assert (EXTRA in advantage_fields(worker_of(gate=GateConfig(enable=enable)).prune_opd)) == enable


@pytest.mark.parametrize("normaliser", ["generated", "reliable"])
def test_the_update_counts_the_tokens_of_the_normaliser(normaliser):
    assert RELIABLE in UPDATE_FIELDS
    seen = []
    worker = worker_of(loss_normaliser=normaliser)
    worker.actor = SimpleNamespace(train_mini_batch=lambda data: seen.append(data["loss_mask"].values().tolist()))
    events = [[False, True], [True]]
    data = batch(events)
    data["loss_mask"], data[RELIABLE] = data["response_mask"], jagged([torch.tensor([1, 0]), torch.tensor([1])])
    data[CANDIDATES] = data[STUDENT_IDS]
    inspect.unwrap(PruneOPDWorker.update_actor)(worker, data)
    assert seen == [{"generated": [1, 1, 1], "reliable": [1, 0, 1]}[normaliser]]
