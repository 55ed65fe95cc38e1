"""Every response token gets its own row of the teacher on the way to the worker, or none."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template

from recipe.prune_opd.config import PruneOPDConfig, TeacherConfig, TeacherServerConfig
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport
from recipe.prune_opd.teacher.answers import (
    SERVED_IDS,
    SERVED_LOG_PROBS,
    Known,
    is_missing,
    served_rows,
)
from recipe.prune_opd.teacher.client import SCORE_REPORT, TeachingClient
from recipe.prune_opd.training.agent_loop import TaughtOutput
from verl_ext.rollout.rows import MISSING, MISSING_ID, At, Score, TopKRows
from verl_ext.rollout.scoring import ScoreReport

K, VOCAB, PROMPT, RESPONSE = 3, 50, [30, 31], [40, 41, 42, 43]


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


@pytest.mark.parametrize("module", ["teacher.client", "training.worker"])
def test_every_module_can_be_the_first(module: str):
    """verl's plugin imports our agent loop while verl's is imported, wherever that is."""
    script = [sys.executable, "-c", f"import recipe.prune_opd.{module}"]
    run = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]


# --------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("before", [(0, 0, 0), (2, 0, 5), (127, 1, 3)])
def test_rows_of_the_response_are_the_last_ones(before: tuple[int, ...]):
    lengths = (4, 1, 3)
    numbers = iter(range(1000))
    blocks = [
        torch.tensor([[next(numbers), -1] for _ in range(n + m)])
        for n, m in zip(before, lengths, strict=True)
    ]
    responses = jagged([torch.zeros(length) for length in lengths])
    rows = served_rows(jagged(blocks), responses)
    expected = [block[n:] for block, n in zip(blocks, before, strict=True)]
    assert [row.tolist() for row in rows.unbind()] == [block.tolist() for block in expected]
    assert rows.offsets().tolist() == responses.offsets().tolist()


def test_a_padding_row_of_verl_has_rows_of_its_own_length():
    """It is longer than verl's fields of a response, and resized under these names alone."""
    sample = {
        "responses": torch.tensor(RESPONSE),
        SERVED_IDS: torch.ones(len(RESPONSE), K, dtype=torch.int32),
        SERVED_LOG_PROBS: torch.full((len(RESPONSE), K), MISSING),
    }
    padding, _ = construct_minimal_padding_template(sample, {}, eos_token_id=1)
    responses = jagged([sample["responses"], padding["responses"]])
    log_probs = served_rows(
        jagged([sample[SERVED_LOG_PROBS], padding[SERVED_LOG_PROBS]]), responses
    )
    ids = served_rows(jagged([sample[SERVED_IDS], padding[SERVED_IDS]]), responses)
    assert ids.offsets().tolist() == log_probs.offsets().tolist() == responses.offsets().tolist()
    assert is_missing(log_probs.values()).tolist() == [True] * len(RESPONSE) + [False]


def test_a_token_is_missing_if_its_best_candidate_is_impossible():
    log_probs = torch.tensor([[-1.0, -2.0], [-1.0, MISSING], [MISSING, MISSING], [0.0, 0.0]])
    assert is_missing(log_probs).tolist() == [False, False, True, False]
    assert is_missing(log_probs.reshape(2, 2, 2)).tolist() == [[False, False], [True, False]]


# ------------------------------------------------------------------------------------------- client


def rows_of(count: int, first: int = 0) -> TopKRows:
    """Rows that tell their place, as Ray delivers them."""
    ids = (first + np.arange(count * K, dtype=np.int32).reshape(count, K)) % VOCAB
    rows = TopKRows(ids, -1 - ids.astype(np.float32))
    for array in (rows.ids, rows.log_probs):
        array.setflags(write=False)
    return rows


class Teacher:
    """Stands for ``ScoringClient``."""

    def __init__(self, error: Exception | None = None):
        self.questions: list[tuple[list[int], int, int]] = []
        self.error, self.now, self.most = error, 0, 0

    async def score(self, token_ids: list[int], start: int, topk: int) -> Score:
        self.questions.append((token_ids, start, topk))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if self.error is not None:
            raise self.error
        count = len(token_ids) - start
        sampled = -np.array(token_ids[start:], dtype=np.float32)
        sampled.setflags(write=False)
        return Score(rows_of(count), sampled, 9)


def client_of(
    teacher: Any, strategy: str = "intersection", workers: int = 1, wide: int = 0, **given: Any
) -> TeachingClient:
    rollout = SimpleNamespace(agent=SimpleNamespace(num_workers=workers))
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout))
    server = TeacherServerConfig(engine="vllm", wide_topk=wide)
    settings = TeacherConfig(path="T", home="server", server=server, **given)
    prune_opd = PruneOPDConfig(teacher=settings, strategy=strategy, topk=K)
    return TeachingClient(
        SimpleNamespace(config=config),
        prune_opd=prune_opd,
        teacher=teacher,
        vocab_size=VOCAB,
        teaches=True,
    )


def output_of(response: list[int] = RESPONSE) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=PROMPT,
        response_ids=response,
        response_mask=[1] * len(response),
        metrics=AgentLoopMetrics(),
    )


def taught(
    client: TeachingClient, known: TopKRows | None = None, response: list[int] = RESPONSE
) -> dict[str, Any]:
    """Fields a response has when it has been taught, next to those it had."""
    output = output_of(response)
    gate = GateReport(asked=5.0, waited=2.0, teacher_tokens=11)
    output.extra_fields[GATE_REPORT] = gate
    rows = asyncio.run(client.teach(output, Known(teacher=known)))
    assert set(output.extra_fields) == {GATE_REPORT, SCORE_REPORT}  # a reward function sees them
    assert output.extra_fields[GATE_REPORT] is gate
    extra = rows | {SCORE_REPORT: output.extra_fields[SCORE_REPORT]}
    assert set(rows) == {SERVED_IDS, SERVED_LOG_PROBS}
    assert (extra[SERVED_IDS].dtype, extra[SERVED_LOG_PROBS].dtype) == (torch.int32, torch.float32)
    return extra


@pytest.mark.parametrize("strategy", ["only_tch", "intersection"])
def test_a_response_gets_its_rows(strategy: str):
    teacher = Teacher()
    extra = taught(client_of(teacher, strategy))
    assert extra[SERVED_IDS].tolist() == rows_of(4).ids.tolist()
    assert extra[SERVED_LOG_PROBS].tolist() == rows_of(4).log_probs.tolist()
    assert teacher.questions == [(PROMPT + RESPONSE, 2, K)]
    assert (extra[SCORE_REPORT].computed, extra[SCORE_REPORT].missing) == (9, 0)
    assert extra[SCORE_REPORT].ended >= extra[SCORE_REPORT].began > 0


@pytest.mark.parametrize("known", [None, rows_of(4, first=7)])
def test_the_sampled_token_comes_first(known: TopKRows | None):
    """A gate does not ask about it."""
    teacher = Teacher()
    extra = taught(client_of(teacher, "sampled"), known)
    assert extra[SERVED_IDS][:, 0].tolist() == RESPONSE
    assert extra[SERVED_LOG_PROBS][:, 0].tolist() == [-40, -41, -42, -43]
    assert extra[SERVED_IDS][:, 1:].tolist() == rows_of(4).ids.tolist()
    assert extra[SERVED_LOG_PROBS][:, 1:].tolist() == rows_of(4).log_probs.tolist()
    assert len(teacher.questions) == 1


def test_what_a_gate_knows_is_not_asked_again():
    teacher = Teacher()
    extra = taught(client_of(teacher), rows_of(4, first=7))
    assert extra[SERVED_IDS].tolist() == rows_of(4, first=7).ids.tolist()
    assert extra[SERVED_LOG_PROBS].tolist() == rows_of(4, first=7).log_probs.tolist()
    assert not teacher.questions
    report = extra[SCORE_REPORT]
    assert (report.early, report.computed, report.missing) == (3.0, 11, 0)
    assert report.ended - report.began == pytest.approx(2.0)


def test_where_a_gate_knows_too_little_the_whole_is_asked():
    teacher = Teacher()
    extra = taught(client_of(teacher))
    assert extra[SERVED_IDS].tolist() == rows_of(4).ids.tolist()
    assert teacher.questions == [(PROMPT + RESPONSE, 2, K)]


@pytest.mark.parametrize(
    ("strategy", "width"), [("only_tch", K), ("intersection", K), ("sampled", K + 1)]
)
def test_without_an_answer_the_fields_are_there_all_the_same(strategy: str, width: int):
    teacher = Teacher(RuntimeError("lost"))
    extra = taught(client_of(teacher, strategy, retries=1))
    assert extra[SERVED_IDS].shape == extra[SERVED_LOG_PROBS].shape == (4, width)
    assert extra[SERVED_LOG_PROBS].eq(MISSING).all()
    assert extra[SERVED_IDS][:, width - K :].eq(MISSING_ID).all()
    report = extra[SCORE_REPORT]
    assert (report.failed, report.missing, report.error) == (2, 4, "RuntimeError: lost")


@pytest.mark.parametrize(("strategy", "width"), [("only_tch", K), ("sampled", K + 1)])
def test_an_empty_response_has_no_rows(strategy: str, width: int):
    teacher = Teacher()
    extra = taught(client_of(teacher, strategy), response=[])
    assert extra[SERVED_IDS].shape == extra[SERVED_LOG_PROBS].shape == (0, width)
    assert not teacher.questions


@pytest.mark.parametrize(
    ("concurrency", "workers", "most"),
    [(6, 2, 3), (7, 2, 4), (4, 4, 1), (9, 4, 3), (2, 8, 1), (5, 1, 5)],
)
def test_workers_share_the_bound(concurrency: int, workers: int, most: int):
    teacher = Teacher()
    client = client_of(teacher, workers=workers, concurrency=concurrency)

    async def body() -> None:
        await asyncio.gather(*(client.teach(output_of()) for _ in range(20)))

    asyncio.run(body())
    assert (teacher.most, len(teacher.questions)) == (most, 20)


def test_deadline_and_retries_are_the_teachers():
    scorer = client_of(Teacher(), deadline=3.5, retries=7)._scorer
    assert (scorer.deadline, scorer.retries, scorer.topk, scorer.vocab_size) == (3.5, 7, K, VOCAB)


def test_the_client_can_be_sent_to_the_rollout_workers():
    client = cloudpickle.loads(cloudpickle.dumps(client_of(Teacher())))
    assert taught(client)[SERVED_IDS].shape == (4, K)


def test_verl_takes_the_fields_of_a_response():
    """Rows become fields of the batch, the report stays among the others as plain values."""
    output = output_of()
    rows = asyncio.run(client_of(Teacher()).teach(output))
    batch = TaughtOutput.of(output, rows).as_dict()
    assert batch[SERVED_IDS].shape == batch[SERVED_LOG_PROBS].shape == (4, K)
    assert set(batch["extra_fields"]) == {SCORE_REPORT}
    assert ScoreReport(**batch["extra_fields"][SCORE_REPORT]).computed == 9


def test_a_response_with_an_image_is_refused():
    teacher, output = Teacher(), output_of()
    output.multi_modal_data = {"images": ["pixels"], "videos": None}
    with pytest.raises(ValueError, match=r"prune_opd\.teacher\.home: a response has images"):
        asyncio.run(client_of(teacher).teach(output))
    output.multi_modal_data = {"images": []}
    asyncio.run(client_of(teacher).teach(output))
    assert len(teacher.questions) == 1


# ------------------------------------------------------------------------ the student's candidates

WIDE = 4
PROBABILITIES = [[0.5, 0.25, 0.125], [0.5, 0.2, 0.1], [0.6, 0.3, 0.1], [0.4, 0.4, 0.1]]
STUDENT = TopKRows(
    np.array([[0, 9, 3], [4, 0, 1], [49, 8, 2], [1, 2, 0]], np.int32),
    np.log(np.array(PROBABILITIES, np.float32)),
)
"""Of the rollout. Of the four rows the teacher ranks ids 0 to 3 first, in this order."""
OUTSIDE = [[False, True, False], [True, False, False], [True, True, False], [False] * 3]
TOLD = [[-1, -4, -4], [-4, -1, -2], [-4, -4, -3], [-2, -3, -1]]


def wide_rows(count: int) -> TopKRows:
    ids = np.tile(np.arange(WIDE, dtype=np.int32), (count, 1))
    return TopKRows(ids, (-1 - ids).astype(np.float32))


class WideTeacher:
    """Stands for ``ScoringClient``, asked at chosen ids."""

    def __init__(self) -> None:
        self.asked: list[At] = []

    async def score(self, token_ids: list[int], start: int, topk: int, at: At) -> Score:
        self.asked.append(at)
        count = len(token_ids) - start
        rows = wide_rows(count).narrowed(topk, at)
        return Score(rows, -np.ones(count, np.float32), 9)


@pytest.mark.parametrize("grew", [False, True])
@pytest.mark.parametrize("strategy", ["only_stu", "union"])
def test_the_students_candidates_come_last_with_what_the_teacher_says_of_them(
    strategy: str, grew: bool
):
    """Whether or not a gate has asked for them."""
    teacher = WideTeacher()
    told = wide_rows(4).narrowed(K, At(STUDENT.ids, WIDE)) if grew else None
    output = output_of()
    output.extra_fields[GATE_REPORT] = GateReport()
    client = client_of(teacher, strategy, wide=WIDE)
    fields = asyncio.run(client.teach(output, Known(STUDENT, told)))
    assert fields[SERVED_IDS].tolist() == [[0, 1, 2, *row] for row in STUDENT.ids.tolist()]
    assert fields[SERVED_LOG_PROBS].tolist() == [[-1, -2, -3, *row] for row in TOLD]
    report = output.extra_fields[SCORE_REPORT]
    assert (report.candidates, report.outside) == (12, np.sum(OUTSIDE))
    assert report.outside_mass == pytest.approx(0.25 + 0.5 + 0.9)
    assert [at.wide for at in teacher.asked] == [WIDE] * (not grew)


@pytest.mark.parametrize("wide", [0, WIDE])
def test_where_the_rollout_tells_the_students_part_its_log_probs_come_last(wide: int):
    strategy = "only_stu" if wide else "intersection"
    teacher = WideTeacher() if wide else Teacher()
    client = client_of(teacher, strategy, wide=wide)
    client.prune_opd = client.prune_opd.changed(student="rollout")
    fields = asyncio.run(client.teach(output_of(), Known(STUDENT)))
    assert fields[SERVED_IDS].shape == fields[SERVED_LOG_PROBS].shape == (4, K * (3 if wide else 2))
    assert fields[SERVED_IDS][:, -K:].tolist() == STUDENT.ids.tolist()
    assert fields[SERVED_LOG_PROBS][:, -K:].tolist() == STUDENT.log_probs.tolist()
    before = [[0, 1, 2, *row] for row in STUDENT.ids.tolist()] if wide else rows_of(4).ids.tolist()
    assert fields[SERVED_IDS][:, :-K].tolist() == before


@pytest.mark.parametrize("known", [Known(STUDENT), Known()])
def test_a_gate_alone_leaves_the_students_part(known: Known):
    """The teacher that rewards is the trainer's own; nobody is asked about finished responses."""
    client, output = client_of(None), output_of()
    client.prune_opd = client.prune_opd.changed(student="rollout")
    client.teaches = False
    fields = asyncio.run(client.teach(output, known))
    told = known.student.log_probs.tolist() if known.student else [[MISSING] * K] * 4
    assert fields[SERVED_LOG_PROBS].tolist() == told
    assert not output.extra_fields


def test_of_a_token_without_candidates_the_teacher_is_not_asked_and_it_is_missing():
    """A tool's, or one of a response that a loop of the user's rewrote."""
    student = TopKRows(STUDENT.ids.copy(), STUDENT.log_probs.copy())
    student.ids[2], student.log_probs[2] = MISSING_ID, MISSING
    for known, missing in ((Known(student), [2]), (Known(), [0, 1, 2, 3])):
        output = output_of()
        fields = asyncio.run(client_of(WideTeacher(), "only_stu", wide=WIDE).teach(output, known))
        log_probs = fields[SERVED_LOG_PROBS]
        assert is_missing(log_probs).nonzero().flatten().tolist() == missing
        assert log_probs[missing].eq(MISSING).all()
        report = output.extra_fields[SCORE_REPORT]
        assert report.candidates == K * (4 - len(missing))
        assert report.error == "the rollout reported no candidates of some tokens"


def test_an_empty_response_has_columns_for_all():
    output = output_of([])
    known = Known(STUDENT[:0])
    fields = asyncio.run(client_of(WideTeacher(), "only_stu", wide=WIDE).teach(output, known))
    assert fields[SERVED_IDS].shape == fields[SERVED_LOG_PROBS].shape == (0, 2 * K)


def test_without_need_nobody_asks_for_them():
    assert client_of(WideTeacher(), "intersection", wide=WIDE).wide == 0
    client = client_of(WideTeacher(), "only_stu", wide=WIDE)
    assert client.wide == WIDE
    client.teaches = False  # the worker group scores, servers are for the gate alone
    assert client.wide == 0
