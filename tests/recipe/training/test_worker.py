"""The worker makes the same advantages and records for every home of the teacher.

Batches are made up here; no model and no engine.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.config import (
    DriftConfig,
    GateConfig,
    PruneOPDConfig,
    TeacherConfig,
    TeacherServerConfig,
)
from recipe.prune_opd.config.task_reward import TaskRewardConfig
from recipe.prune_opd.method.gates import Cumulative, Gate
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.task_reward import Candidates
from recipe.prune_opd.records.tally import (
    COLUMNS,
    GATE_REPORT,
    RECORDED,
    GateReport,
    Reports,
    Tally,
    recorded_edges,
)
from recipe.prune_opd.records.tally import SUMS as PER_TOKEN
from recipe.prune_opd.teacher.answers import SERVED_IDS, SERVED_LOG_PROBS, is_missing
from recipe.prune_opd.teacher.client import SCORE_REPORT
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training.fields import (
    ADVANTAGES,
    CANDIDATES,
    COUNTED,
    ERRORS,
    EXTRA,
    LIMIT,
    OLD_LOG_PROBS,
    POSITIONS,
    SAMPLED_OLD,
    STEP,
    STUDENT_IDS,
    STUDENT_LOG_PROBS,
    STUDENT_ON_TEACHER,
    SUMS,
    TASK_ADVANTAGES,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    TEACHER_ON_STUDENT,
    TEACHER_SAMPLED,
    UPDATE_FIELDS,
    advantage_fields,
    counted_tokens,
    reports,
    served_fields,
    student_fields,
)
from recipe.prune_opd.training.worker import PruneOPDWorker
from verl_ext.logits import log_probs_at, top_log_probs
from verl_ext.rollout.rows import MISSING, MISSING_ID
from verl_ext.rollout.scoring import ScoreReport
from verl_ext.topk import REQUEST

K, W_DROP = 4, 0.25


def worker_of(answers: bool = True, **changes: object) -> PruneOPDWorker:
    """A worker without models; ``answers``: of a sequence-parallel group the rank that does."""
    worker = object.__new__(PruneOPDWorker)
    worker.actor = SimpleNamespace(
        engine=SimpleNamespace(is_mp_src_rank_with_outputs=lambda: answers)
    )
    given = {
        "teacher": TeacherConfig(path="T"),
        "drift": DriftConfig(w_drop=W_DROP),
        "topk": K,
    } | changes
    worker.prune_opd = PruneOPDConfig(**given)
    worker.home = build_home(worker.prune_opd)
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
        LIMIT: torch.tensor([10 + row for row in range(len(events))]),
        STUDENT_IDS: jagged([student.expand(len(row), K).clone() for row in events]),
        TEACHER_IDS: jagged([student + K * flag.long().unsqueeze(1) for flag in flags]),
        **{
            name: jagged(log_probs)
            for name in (STUDENT_LOG_PROBS, TEACHER_LOG_PROBS, TEACHER_ON_STUDENT)
        },
    }
    data = TensorDict(fields, batch_size=len(events))
    if reports is not None:
        report_to(data, [{GATE_REPORT: r} if r is not None else {} for r in reports])
    return data


def report_to(data: TensorDict, extra: list[dict]) -> None:
    """Put reports into a batch as an agent loop's output leaves them."""
    outputs = [TokenOutput(token_ids=[], extra_fields=given) for given in extra]
    tu.assign_non_tensor_stack(
        data, EXTRA, [output.model_dump()["extra_fields"] for output in outputs]
    )


def computed(worker: PruneOPDWorker, data: TensorDict) -> TensorDict:
    return inspect.unwrap(PruneOPDWorker.compute_pruned_advantage)(worker, data)


DRIFTING = [[False] * 3 + [True] * 6, [True, False] * 6, [False] * 5]


def test_reliable_tokens_are_those_with_weight_left():
    result = computed(worker_of(loss_normaliser="reliable"), batch(DRIFTING))
    # Reliability is 0 at the fourth event.
    assert [row.tolist() for row in result[COUNTED].unbind()] == [
        [1] * 6 + [0] * 3,
        [1] * 6 + [0] * 6,
        [1] * 5,
    ]
    effective = result[SUMS][:, COLUMNS.index("effective_length")]
    assert effective.tolist() == [6, 6, 5]


def with_tools(data: TensorDict, *masks: list[int]) -> TensorDict:
    """The same with tokens of tools."""
    data["response_mask"] = jagged([torch.tensor(mask) for mask in masks])
    return data


def test_what_tools_said_is_neither_trained_nor_counted():
    masks = [1, 1, 0, 0, 1, 1, 0, 1, 1], [1] * 6 + [0] * 6, [1] * 5
    data = with_tools(batch(DRIFTING), *masks)
    data["responses"] = jagged(
        [torch.tensor([4] * n + [1] + [5] * m) for n, m in ((7, 1), (5, 6), (4, 0))]
    )
    result = computed(worker_of(), data)
    tally = Tally(result[SUMS], result[POSITIONS], 64)
    assert tally.column("tokens").tolist() == [6, 6, 5]
    assert tally.column("events").tolist() == [4, 3, 0]
    assert tally.column("effective_length").tolist() == [5, 6, 5]
    assert tally.column("reliable_to").tolist() == [8, 6, 5]
    # The student's last token, not the tool's.
    assert tally.column("ended").tolist() == [0, 1, 1]
    for row, mask in enumerate(masks):
        others = ~torch.tensor(mask).bool()
        assert result[COUNTED].unbind()[row][others].sum() == 0
        assert result[ADVANTAGES].unbind()[row][others].abs().sum() == 0


def test_by_turn_events_count_in_their_turn_alone():
    """A token without the teacher's score begins no turn."""
    data = with_tools(batch([[True] * 3 + [False] + [True] * 6]), [1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
    log_probs = data[TEACHER_LOG_PROBS].unbind()[0].clone()
    log_probs[5] = -torch.inf
    data[TEACHER_LOG_PROBS] = jagged([log_probs])
    for scope, kept in (("response", 3), ("turn", 6)):
        drift = DriftConfig(w_drop=W_DROP, scope=scope)
        tally = computed(worker_of(drift=drift), data)[SUMS]
        assert tally[0, COLUMNS.index("effective_length")] == kept


def test_the_gates_events_are_those_of_the_students_tokens():
    report = GateReport(events=np.array([False, True, True]))
    data = with_tools(batch([[False, True, True, False, True]], [report]), [1, 0, 1, 0, 1])
    result = computed(worker_of(gate=GateConfig(enable=True)), data)
    tally = Tally(result[SUMS], result[POSITIONS], 64)
    assert (tally.column("gate_tokens").item(), tally.column("gate_agreed").item()) == (3, 3)


def with_task(data: TensorDict, advantages: list[float]) -> TensorDict:
    """The same with an advantage of every response, as verl's estimators write it."""
    lengths = [len(row) for row in data["responses"].unbind()]
    rows = [torch.full((n,), given) for n, given in zip(lengths, advantages, strict=True)]
    mask = data["response_mask"].unbind()
    data[TASK_ADVANTAGES] = jagged([row * own for row, own in zip(rows, mask, strict=True)])
    data[SAMPLED_OLD] = jagged([-1.0 - torch.rand(n) for n in lengths])
    return data


@pytest.mark.parametrize(("responses", "trained"), [("all", [1, 1, 1]), ("ended", [0, 1, 0])])
def test_task_rewards_are_one_more_candidate_beside_the_distilled(responses, trained):
    """Their factor multiplies them; R does not."""
    data = with_tools(batch(DRIFTING), [1] * 9, [1, 1, 0] + [1] * 9, [1] * 5)
    data["responses"] = jagged(
        [torch.tensor([4] * n + [end]) for n, end in zip((8, 11, 4), (4, 1, 4), strict=True)]
    )
    with_task(data, [0.5, -2.0, 3.0])
    alone = computed(worker_of(), data)
    both = computed(worker_of(task_reward=TaskRewardConfig(coef=2, responses=responses)), data)
    for row, given in enumerate([0.5, -2.0, 3.0]):
        for name in (CANDIDATES, OLD_LOG_PROBS, ADVANTAGES):
            own = both[name].unbind()[row]
            assert torch.equal(own[:, :-1], alone[name].unbind()[row])
        mask = data["response_mask"].unbind()[row]
        last = both[ADVANTAGES].unbind()[row][:, -1]
        assert torch.equal(last, 2 * given * trained[row] * mask)
        assert torch.equal(
            both[CANDIDATES].unbind()[row][:, -1], data["responses"].unbind()[row].int()
        )
        assert torch.equal(
            both[OLD_LOG_PROBS].unbind()[row][:, -1], data[SAMPLED_OLD].unbind()[row]
        )
        assert torch.equal(both[COUNTED].unbind()[row], alone[COUNTED].unbind()[row])
    sums = Tally(both[SUMS], both[POSITIONS], 64)
    expected = [2 * 0.5 * 9, 2 * 2 * 11, 2 * 3 * 5]
    assert sums.column("task").tolist() == [e * t for e, t in zip(expected, trained, strict=True)]
    assert Tally(alone[SUMS], alone[POSITIONS], 64).column("task").tolist() == [0, 0, 0]
    distilled = alone[ADVANTAGES].to_padded_tensor(0).abs().sum((-1, -2))
    torch.testing.assert_close(sums.column("distillation").float(), distilled)


def test_the_gradient_of_both_is_the_sum_of_their_gradients():
    """Where the sampled token is among the candidates, too."""
    torch.manual_seed(0)
    own, tokens = torch.arange(K).expand(1, 3, K), torch.tensor([[0, 7, 3]])
    old = torch.log_softmax(torch.randn(1, 3, 9), -1)
    given, task, mask = torch.randn(1, 3, K), torch.tensor([[0.5, 0.5, -1.0]]), torch.ones(1, 3)
    distilled = Candidates(own, log_probs_at(old, own), given)
    sampled = old.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def gradient(candidates: Candidates) -> torch.Tensor:
        logits = old.clone().requires_grad_()
        now = torch.log_softmax(logits, -1).gather(-1, candidates.ids)
        loss, _ = topk_policy_loss(now, candidates.old_log_probs, candidates.advantages, mask)
        return torch.autograd.grad(loss, logits)[0]

    logits = old.clone().requires_grad_()
    policy = (task * torch.log_softmax(logits, -1).gather(-1, tokens.unsqueeze(-1))[..., 0]).mean()
    (of_task,) = torch.autograd.grad(-policy, logits)
    both = gradient(distilled.with_sampled(tokens, sampled, task))
    torch.testing.assert_close(both, gradient(distilled) + of_task)


def test_every_response_keeps_the_limit_that_it_carries():
    """TransferQueue may answer with a column of numbers or of rows."""
    data = batch(DRIFTING)
    for limits in (data[LIMIT], data[LIMIT].unsqueeze(1)):
        data[LIMIT] = limits
        sums = computed(worker_of(), data)[SUMS]
        assert sums[:, COLUMNS.index("limit")].tolist() == [10, 11, 12]
    with pytest.raises(RuntimeError, match=r"^responses carry no limit: their prompts were not"):
        computed(worker_of(), data.exclude(LIMIT))


def test_a_response_cut_by_the_gate_has_as_many_reliable_tokens():
    cut = [row[: Gate(Cumulative(W_DROP)).feed(row)] for row in DRIFTING]
    assert [len(row) for row in cut] == [6, 6, 5]
    whole, stopped = (
        computed(worker_of(loss_normaliser="reliable"), batch(events))[COUNTED]
        for events in (DRIFTING, cut)
    )
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
    columns = [COLUMNS.index(f"gate_{name}") for name in ("stopped", "tokens", "agreed")]
    assert sums[:, columns].tolist() == [[1, 9, 9], [0, 2, 1], [0, 0, 0]]


def test_a_report_comes_back_as_it_was():
    report = GateReport(True, 9, np.array([True, False]), 11, 0.5, 1, 2, True, "lost")
    first, second = reports(batch(DRIFTING[:2], [report, None]))
    assert second == Reports()
    np.testing.assert_array_equal(first.gate.events, report.events)
    assert vars(first.gate) | {"events": None} == vars(report) | {"events": None}
    assert first.score is None


def test_reports_of_a_score_come_back_as_they_were():
    report = ScoreReport(
        late=1, failed=2, missing=3, computed=40, began=1.5, ended=2.5, error="lost"
    )
    data = batch(DRIFTING[:2])
    report_to(data, [{SCORE_REPORT: report}, {}])
    assert reports(data) == [Reports(score=report), Reports()]


def test_where_nobody_is_asked_there_are_no_reports_and_no_errors():
    assert reports(batch(DRIFTING)) == [Reports()] * 3
    assert ERRORS not in computed(worker_of(), batch(DRIFTING))


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("home", ["worker_group", "server"])
def test_reports_are_fetched_where_servers_are_asked(gate, home):
    worker = worker_of(
        gate=GateConfig(enable=gate),
        teacher=TeacherConfig(path="T", home=home),
        strategy="intersection",
    )
    assert (EXTRA in advantage_fields(worker.home)) == (gate or home == "server")


def test_of_reports_numbers_and_the_last_errors_are_left():
    """Clock times to the millisecond; nothing per token, and of the texts no more than the last."""
    score = ScoreReport(late=1, computed=40, began=1.79e9, ended=1.79e9 + 0.125, error="slow")
    gate = GateReport(failed=2, events=np.array([True, True]), error="gone")
    worker = worker_of(gate=GateConfig(enable=True))
    data = batch(DRIFTING)
    report_to(data, [{GATE_REPORT: gate, SCORE_REPORT: score}, {GATE_REPORT: GateReport()}, {}])
    found = computed(worker, data)
    assert tu.get(found, ERRORS) == [{"gate": "gone", "score": "slow"}, {}, {}]
    tally = Tally(found[SUMS], found[POSITIONS], worker.max_length)
    assert tally.column("gate_failed").tolist() == [2, 0, 0]
    assert tally.column("score_computed").tolist() == [40, 0, 0]
    seconds = tally.column("score_ended") - tally.column("score_began")
    assert seconds.tolist() == [0.125, 0, 0]


@pytest.mark.parametrize("normaliser", ["generated", "reliable"])
def test_the_update_counts_the_tokens_of_the_normaliser(normaliser):
    assert COUNTED in UPDATE_FIELDS
    seen = []
    worker = worker_of(loss_normaliser=normaliser)
    worker.actor.train_mini_batch = lambda data: seen.append(data["loss_mask"].values().tolist())
    data = batch(DRIFTING)
    data["loss_mask"] = data["response_mask"]
    data.update(computed(worker, data).select(COUNTED, CANDIDATES))
    inspect.unwrap(PruneOPDWorker.update_actor)(worker, data)
    reliable = [1] * 6 + [0] * 3 + [1] * 6 + [0] * 6 + [1] * 5
    assert seen == [{"generated": [1] * 26, "reliable": reliable}[normaliser]]


def test_a_sequence_parallel_group_answers_and_dumps_once(tmp_path):
    """All its ranks are given the same responses."""
    data, group = batch(DRIFTING), {}
    data["prompts"] = jagged([torch.tensor([2, 3])] * len(DRIFTING))
    tu.assign_non_tensor_data(data, STEP, "step_7")
    for rank in (4, 5):
        worker = worker_of(answers=rank == 4, dump_dir=str(tmp_path / "dump"))
        worker._rank = rank
        group[rank] = computed(worker, data)
    assert [group[4] is None, group[5] is None] == [False, True]
    assert [file.name for file in (tmp_path / "dump").iterdir()] == ["step_7_rank_4.pt"]
    dumped = torch.load(tmp_path / "dump" / "step_7_rank_4.pt", weights_only=True)
    assert torch.equal(dumped[SUMS], group[4][SUMS])


def test_a_sequence_parallel_group_reads_served_scores_once():
    data = given_by_servers(*passes("only_tch"))
    assert read_or_none(server_of("only_tch"), data) is not None
    assert read_or_none(server_of("only_tch", answers=False), data) is None


@pytest.mark.parametrize("enable", [True, False])
def test_sums_by_position_are_of_the_same_tokens(enable):
    """Also in plain OPD: drift is measured there, and every token trained on."""
    drift = DriftConfig(w_drop=W_DROP, w_base=0, enable=enable)
    worker = worker_of(drift=drift)
    found = computed(worker, batch(DRIFTING))
    tally = Tally(found[SUMS], found[POSITIONS], worker.max_length)
    edges = recorded_edges(worker.max_length)
    totals = {name: sum(tally.by_position(name, edges)) for name in RECORDED}
    for name in ("tokens", "overlap", "events", "weight", "reward"):
        assert totals[name] == pytest.approx(tally.total[name]), name
    assert totals["trained"] == (6 + 6 + 5 if enable else 9 + 12 + 5)


# ---------------------------------------------------------------------------- a teacher that serves


LENGTHS, V, END = (7, 1, 5), 12, 1
SERVED_STRATEGIES = ("only_tch", "intersection", "sampled")
EVERY = torch.tensor([True] * sum(LENGTHS))


def server_of(strategy: str, **changes: object) -> PruneOPDWorker:
    return worker_of(teacher=TeacherConfig(path="T", home="server"), strategy=strategy, **changes)


def wide_server() -> PruneOPDWorker:
    wide = TeacherServerConfig(engine="vllm", wide_topk=64)
    teacher = TeacherConfig(path="T", home="server", server=wide)
    worker = worker_of(teacher=teacher, topk=2, strategy="only_stu")
    worker.vocab_size = V
    return worker


def cut(values: torch.Tensor) -> torch.Tensor:
    """(tokens of all responses, ...) -> jagged."""
    return jagged(list(values.split(LENGTHS)))


def passes(strategy: str) -> tuple[TensorDict, TensorDict]:
    """A batch that lacks the teacher's fields, and those that a pass of the teacher would give."""
    generator, count = torch.Generator().manual_seed(0), sum(LENGTHS)
    student, teacher = torch.randn(2, count, V, generator=generator)
    teacher = student + 0.7 * teacher
    responses = torch.randint(0, V, (count, 1), generator=generator)
    responses[LENGTHS[0] - 1] = END
    student_ids, student_log_probs = top_log_probs(student, K, V)
    ids, log_probs = top_log_probs(teacher, K, V)
    batch = {
        "responses": cut(responses.squeeze(1)),
        "response_mask": cut(torch.ones(count, dtype=torch.long)),
        LIMIT: torch.full((len(LENGTHS),), 64),
        STUDENT_IDS: cut(student_ids),
        STUDENT_LOG_PROBS: cut(student_log_probs),
        STUDENT_ON_TEACHER: cut(log_probs_at(student, ids)),
        "old_log_probs": cut(log_probs_at(student, responses).squeeze(1)),
    }
    fields = {TEACHER_IDS: cut(ids), TEACHER_LOG_PROBS: cut(log_probs)}
    if strategy == "sampled":
        fields[TEACHER_SAMPLED] = cut(log_probs_at(teacher, responses).squeeze(1))
    return TensorDict(batch, batch_size=len(LENGTHS)), TensorDict(fields, batch_size=len(LENGTHS))


def given_by_servers(
    batch: TensorDict, fields: TensorDict, known: torch.Tensor = EVERY
) -> TensorDict:
    """What the agent loop leaves of the teacher's fields, where the servers gave a row; rows before
    are verl's."""
    ids, log_probs = (
        fields[TEACHER_IDS].values().clone(),
        fields[TEACHER_LOG_PROBS].values().clone(),
    )
    ids[~known], log_probs[~known] = MISSING_ID, MISSING
    if TEACHER_SAMPLED in fields:
        own = fields[TEACHER_SAMPLED].values().masked_fill(~known, MISSING)
        ids = torch.cat([batch["responses"].values().unsqueeze(1).int(), ids], 1)
        log_probs = torch.cat([own.unsqueeze(1), log_probs], 1)
    more = iter((0, 127, 3))
    blocks = [
        (a, b, next(more))
        for a, b in zip(ids.split(LENGTHS), log_probs.split(LENGTHS), strict=True)
    ]
    return batch.clone().update(
        {
            SERVED_IDS: jagged(
                [torch.cat([a.new_full((n, a.shape[1]), 7), a]) for a, _, n in blocks]
            ),
            SERVED_LOG_PROBS: jagged(
                [torch.cat([b.new_zeros(n, b.shape[1]), b]) for _, b, n in blocks]
            ),
        }
    )


def read_or_none(worker: PruneOPDWorker, data: TensorDict) -> TensorDict | None:
    data = data.select(*served_fields(worker.home))
    return inspect.unwrap(PruneOPDWorker.read_served_scores)(worker, data)


def read(worker: PruneOPDWorker, data: TensorDict) -> TensorDict:
    fields = read_or_none(worker, data)
    # TransferQueue stores samples and puts them together again.
    return TensorDict(
        {name: jagged(list(field.unbind())) for name, field in fields.items()}, batch_size=len(data)
    )


def without(data: TensorDict, tokens: torch.Tensor) -> TensorDict:
    """The batch as if its responses did not have some tokens."""
    parts = list((~tokens).split(LENGTHS))
    kept = {
        name: jagged([row[part] for row, part in zip(field.unbind(), parts, strict=True)])
        for name, field in data.items()
        if name != LIMIT
    }
    return TensorDict(kept | {LIMIT: data[LIMIT]}, batch_size=len(LENGTHS))


@pytest.mark.parametrize("strategy", SERVED_STRATEGIES)
def test_servers_give_the_fields_of_a_pass(strategy: str):
    batch, expected = passes(strategy)
    found = read(server_of(strategy), given_by_servers(batch, expected))
    assert set(found.keys()) == set(expected.keys())
    for name, field in expected.items():
        assert found[name].offsets().tolist() == field.offsets().tolist(), name
        torch.testing.assert_close(found[name].values(), field.values(), rtol=0, atol=0)


def test_fields_by_hand():
    """Two responses, K = 2; rows are the sampled token, then the teacher's own."""
    data = TensorDict(
        {
            "responses": jagged([torch.tensor([5, 6]), torch.tensor([7])]),
            STUDENT_IDS: jagged([torch.tensor([[4, 9], [8, 3]]), torch.tensor([[2, 1]])]),
            SERVED_IDS: jagged(
                [torch.tensor([[0, 0, 0], [5, 9, 4], [6, 1, 8]]), torch.tensor([[7, 3, 4]])]
            ),
            SERVED_LOG_PROBS: jagged(
                [
                    torch.tensor([[0.0, 0, 0], [-5, -1, -2], [-6, -0.5, -3]]),
                    torch.tensor([[-7.0, -0.1, -4]]),
                ]
            ),
        },
        batch_size=2,
    )
    found = read(server_of("sampled"), data)
    assert found[TEACHER_IDS].values().tolist() == [[9, 4], [1, 8], [3, 4]]
    assert found[TEACHER_SAMPLED].values().tolist() == [-5, -6, -7]
    for name in (SERVED_IDS, SERVED_LOG_PROBS):
        data[name] = jagged([row[:, 1:] for row in data[name].unbind()])
    found = read(server_of("intersection"), data)
    assert found[TEACHER_LOG_PROBS].values()[:2].tolist() == [[-1, -2], [-0.5, -3]]


def test_candidates_of_the_rollout_are_the_students_everywhere():
    """K = 2. The first response has a row before its own, verl's; its last id is none of the
    common vocabulary."""
    worker = wide_server()
    ids = [[1, 2, 9, 4], [8, 1, V, 8]], [[3, 4, 5, 7]]
    told = [[-1.0, -2, -1.5, -2], [-0.5, -3, -3, -0.5]], [[-0.1, -4, -4, -4]]
    before = [[0, 0, 0, 0]]
    data = TensorDict(
        {
            "responses": jagged([torch.tensor([5, 6]), torch.tensor([7])]),
            SERVED_IDS: jagged([torch.tensor(before + ids[0]), torch.tensor(ids[1])]),
            SERVED_LOG_PROBS: jagged(
                [torch.tensor(before + told[0]).float(), torch.tensor(told[1])]
            ),
        },
        batch_size=2,
    )
    found = read(worker, data)
    assert found[TEACHER_IDS].values().tolist() == [[1, 2], [8, 1], [3, 4]]
    assert found[TEACHER_LOG_PROBS].values()[1].tolist() == [-0.5, -3]
    assert found[TEACHER_ON_STUDENT].values().tolist() == [[-1.5, -2], [MISSING, -0.5], [-4, -4]]

    def infer(given: TensorDict) -> TensorDict:
        request = given[REQUEST]
        assert (request.topk, request.at, request.sampled, request.entropy) == (
            *(0, STUDENT_IDS),
            *(True, True),
        )
        return TensorDict({}, batch_size=2)

    worker.actor = SimpleNamespace(infer_batch=infer)
    data = data.select(*student_fields(worker.home), strict=False)
    fields = inspect.unwrap(PruneOPDWorker.compute_log_prob)(worker, data)
    assert fields[STUDENT_IDS].values().tolist() == [[9, 4], [V, 8], [5, 7]]


REPORTED = [[4, 9], [8, 3], [2, 1]]


def reported(before: int, told: list[list[int]] = REPORTED) -> TensorDict:
    """Two responses with columns of the teacher ``before`` the student's two; the first has a row
    before its own, verl's."""
    ids = torch.tensor([[11] * before + row for row in [[0, 0], *told]])
    log_probs = -ids.float()
    return TensorDict(
        {
            "responses": jagged([torch.tensor([5, 6]), torch.tensor([7])]),
            SERVED_IDS: jagged([ids[:3], ids[3:]]),
            SERVED_LOG_PROBS: jagged([log_probs[:3], log_probs[3:]]),
        },
        batch_size=2,
    )


def read_student(worker: PruneOPDWorker, data: TensorDict) -> TensorDict | None:
    data = data.select(*served_fields(worker.home))
    return inspect.unwrap(PruneOPDWorker.read_reported_student)(worker, data)


@pytest.mark.parametrize("before", [0, 2, 5])
def test_what_the_rollout_reports_stands_for_a_pass_of_the_student(before):
    """Whatever the teacher's servers tell beside it."""
    worker = wide_server()
    found = read_student(worker, reported(before))
    assert found[STUDENT_IDS].values().tolist() == REPORTED
    assert found[STUDENT_LOG_PROBS].values().tolist() == [[-4, -9], [-8, -3], [-2, -1]]
    assert found[STUDENT_IDS].offsets().tolist() == [0, 2, 3]
    worker.actor = SimpleNamespace(
        engine=SimpleNamespace(is_mp_src_rank_with_outputs=lambda: False)
    )
    assert read_student(worker, reported(before)) is None


@pytest.mark.parametrize("lacking", [MISSING_ID, V])
def test_a_token_of_which_the_rollout_reports_too_little_takes_no_part(lacking):
    """Nothing, or an id that one of the models lacks."""
    found = read_student(wide_server(), reported(0, [[4, 9], [8, lacking], [2, 1]]))
    assert found[STUDENT_IDS].values()[1].tolist() == [0, 0]
    assert is_missing(found[STUDENT_LOG_PROBS].values()).tolist() == [False, True, False]
    fields = {
        name: torch.nested.to_padded_tensor(jagged(list(field.unbind())), 0)
        for name, field in found.items()
    }
    fields[TEACHER_LOG_PROBS] = torch.zeros(2, 2, 2)
    fields["response_mask"] = torch.tensor([[1, 1], [1, 0]])
    assert counted_tokens(fields).tolist() == [[True, False], [True, False]]


def test_servers_tell_what_the_weights_need_of_the_sampled_tokens():
    """Also where the strategy does not ask for them."""
    batch, fields = passes("sampled")
    drift = DriftConfig(w_drop=W_DROP, weights="importance", weights_args={"gamma": 2})
    worker = server_of("intersection", drift=drift)
    data = batch.clone().update(read(worker, given_by_servers(batch, fields)))
    found = computed(worker, data)
    gaps = (fields[TEACHER_SAMPLED].values() - batch["old_log_probs"].values()).abs()
    for row, gap in enumerate(gaps.split(LENGTHS)):
        expected = (3 - 2 * (gap.cumsum(0) - gap) / gap.sum()).sum()
        assert found[SUMS][row, COLUMNS.index("loss_weight")] == pytest.approx(float(expected))


@pytest.mark.parametrize("metric", ["overlap_ratio", "teacher_top_p_accept"])
@pytest.mark.parametrize("strategy", SERVED_STRATEGIES)
def test_both_homes_of_the_teacher_lead_to_the_same_advantages(strategy: str, metric: str):
    batch, fields = passes(strategy)
    worker = server_of(strategy, drift=DriftConfig(w_drop=W_DROP, metric=metric))
    expected = computed(worker, batch.clone().update(fields))
    found = computed(worker, batch.clone().update(read(worker, given_by_servers(batch, fields))))
    assert expected[ADVANTAGES].values().count_nonzero() > 5
    assert expected[SUMS][:, COLUMNS.index("events")].sum() > 0
    for name, field in expected.exclude(ERRORS).items():
        theirs, ours = (
            value.values() if value.is_nested else value for value in (field, found[name])
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


LACKING = torch.zeros(sum(LENGTHS), dtype=torch.bool).index_fill(
    0, torch.tensor([1, 4, 6, 9]), True
)


@pytest.mark.parametrize("normaliser", ["generated", "reliable"])
@pytest.mark.parametrize("metric", ["overlap_ratio", "teacher_top_p_accept"])
@pytest.mark.parametrize("strategy", SERVED_STRATEGIES)
def test_a_token_without_a_score_takes_no_part(strategy: str, metric: str, normaliser: str):
    batch, fields = passes(strategy)
    worker = server_of(
        strategy, drift=DriftConfig(w_drop=W_DROP, metric=metric), loss_normaliser=normaliser
    )
    lacking = batch.clone().update(read(worker, given_by_servers(batch, fields, ~LACKING)))
    # What the student's pass says of an id that no model has.
    on_teacher = batch[STUDENT_ON_TEACHER].values().masked_fill(LACKING.unsqueeze(1), -torch.inf)
    lacking[STUDENT_ON_TEACHER] = cut(on_teacher)
    result, expected = (
        computed(worker, lacking),
        computed(worker, without(batch.clone().update(fields), LACKING)),
    )
    for name in (ADVANTAGES, "advantages", "returns", COUNTED):
        values = result[name].values()
        assert not values[LACKING].any(), name
        torch.testing.assert_close(values[~LACKING], expected[name].values())
    assert expected[COUNTED].values().any()
    for name in (CANDIDATES, OLD_LOG_PROBS):
        torch.testing.assert_close(result[name].values()[~LACKING], expected[name].values())
    columns = [COLUMNS.index(name) for name in (*PER_TOKEN, "effective_length")]
    torch.testing.assert_close(result[SUMS][:, columns], expected[SUMS][:, columns])
    assert result[SUMS][:, COLUMNS.index("missing")].tolist() == [3, 0, 1]
    assert expected[SUMS][:, COLUMNS.index("missing")].tolist() == [0, 0, 0]
    # Its last token, the end, has no score: the response ended all the same.
    assert result[SUMS][:, COLUMNS.index("ended")].tolist() == [1, 0, 0]
    assert not result[SUMS].isnan().any()


@pytest.mark.parametrize("metric", ["overlap_ratio", "teacher_top_p_accept"])
@pytest.mark.parametrize("strategy", ["only_stu", "intersection", "sampled"])
def test_a_token_that_the_rollout_did_not_report_takes_no_part(strategy: str, metric: str):
    """The teacher has scored it, in the worker group, at whatever stands there."""
    batch, fields = passes(strategy)
    fields[TEACHER_ON_STUDENT] = cut(fields[TEACHER_LOG_PROBS].values() - 1)
    batch.update(fields)
    drift = DriftConfig(w_drop=W_DROP, metric=metric)
    worker = worker_of(strategy=strategy, drift=drift)
    lacking = batch.clone()
    for name, nothing in ((STUDENT_IDS, 0), (STUDENT_LOG_PROBS, MISSING)):
        lacking[name] = cut(batch[name].values().clone().masked_fill_(LACKING[:, None], nothing))
    result, expected = computed(worker, lacking), computed(worker, without(batch, LACKING))
    for name in (ADVANTAGES, COUNTED):
        values = result[name].values()
        assert not values[LACKING].any(), name
        torch.testing.assert_close(values[~LACKING], expected[name].values())
    columns = [COLUMNS.index(name) for name in (*PER_TOKEN, "effective_length")]
    torch.testing.assert_close(result[SUMS][:, columns], expected[SUMS][:, columns])
    assert result[SUMS][:, COLUMNS.index("missing")].tolist() == [3, 0, 1]
    assert not result[SUMS].isnan().any()
    loss, _ = topk_policy_loss(
        *(result[name].values() for name in (OLD_LOG_PROBS, OLD_LOG_PROBS, ADVANTAGES)), ~LACKING
    )
    assert loss.isfinite()


def test_without_drift_weights_a_token_without_a_score_takes_no_part_either():
    batch, fields = passes("intersection")
    worker = server_of("intersection", drift=DriftConfig(enable=False))
    found = computed(
        worker, batch.clone().update(read(worker, given_by_servers(batch, fields, ~LACKING)))
    )
    assert found[COUNTED].values().tolist() == (~LACKING).long().tolist()
    assert found[SUMS][:, COLUMNS.index("loss_weight")].tolist() == [4, 1, 4]


def test_a_response_without_any_score_is_no_error():
    batch, fields = passes("only_tch")
    worker = server_of("only_tch")
    lacking = batch.clone().update(read(worker, given_by_servers(batch, fields, ~EVERY)))
    lacking[STUDENT_ON_TEACHER] = cut(
        torch.full_like(batch[STUDENT_ON_TEACHER].values(), -torch.inf)
    )
    result = computed(worker, lacking)
    assert not result[ADVANTAGES].values().any()
    assert not result[COUNTED].values().any()
    assert result[SUMS][:, COLUMNS.index("missing")].tolist() == list(LENGTHS)
    assert not result[SUMS].isnan().any()


def test_tokens_nobody_generated_lack_no_score():
    batch, fields = passes("intersection")
    batch["response_mask"] = cut(torch.tensor([0] * 7 + [1] * 6))
    worker = server_of("intersection")
    known = torch.tensor([False] * 7 + [True] * 6)
    found = computed(
        worker, batch.clone().update(read(worker, given_by_servers(batch, fields, known)))
    )
    assert found[SUMS][:, COLUMNS.index("missing")].tolist() == [0, 0, 0]
    assert found[SUMS][:, COLUMNS.index("tokens")].tolist() == [0, 1, 5]


@pytest.mark.parametrize("strategy", SERVED_STRATEGIES)
def test_the_advantage_reads_what_it_says(strategy: str):
    batch, fields = passes(strategy)
    worker = server_of(strategy)
    report_to(batch, [{}] * len(LENGTHS))
    found = computed(worker, batch.update(fields).select(*advantage_fields(worker.home)))
    assert {CANDIDATES, OLD_LOG_PROBS, ADVANTAGES, COUNTED} <= set(found.keys())
