"""A gated response stops where the rule on the whole response does, whatever the servers do.

Student and teacher are scripted.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.config import DriftConfig, GateConfig, PruneOPDConfig, TeacherConfig
from recipe.prune_opd.method.gates import GATES
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.training.gated_response import DRIFT, find_events
from recipe.prune_opd.training.trajectory import Trajectory
from verl_ext.rollout.client import ScoringClient
from verl_ext.rollout.rows import Chunk, Score, TopKRows

K, VOCAB, PROMPT = 4, 1000, [900, 901, 902]
LATE, LOST = (
    TimeoutError("no answer within 5.0 s"),
    RuntimeError("Traceback of Ray\nRuntimeError: out of memory"),
)
sleep = asyncio.sleep


class Text:
    """A response nobody stops, with what both models say about it: the given drift events."""

    def __init__(self, events: list[bool], seed: int = 0):
        rng = np.random.default_rng(seed)
        self.events, n = events, len(events)
        # Distinct within a token.
        ids = np.argsort(rng.random((n, 50)), axis=1)[:, : 2 * K].astype(np.int32)
        # Of 4; below 0.7 is an event.
        shared = np.where(events, rng.integers(0, 3, n), rng.integers(3, K + 1, n))
        teacher = np.stack([row[K - s : 2 * K - s] for row, s in zip(ids, shared, strict=True)])
        falling = np.log([0.6, 0.3, 0.06, 0.04]).astype(np.float32)
        log_probs = np.tile(falling, (n, 1))
        self.student, self.teacher = (
            TopKRows(ids[:, :K], log_probs),
            TopKRows(rng.permuted(teacher, axis=1), log_probs),
        )
        self.tokens = rng.integers(0, VOCAB, n).tolist()
        self.sampled = rng.standard_normal(n).astype(np.float32)


class Response:
    """Stands for ``FollowedResponse``: the text from where the request takes it up, in chunks of
    random size."""

    def __init__(self, student: "Student", begin: int, limit: int):
        self.student, self.begin, self.limit = student, begin, limit
        self.aborted, self.started, self.output = False, False, None

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        student, text, at = self.student, self.student.text, self.begin
        self.started = True
        end = min(self.begin + self.limit, len(text.tokens))
        interruption = next((i for i in student.interruptions if self.begin <= i < end), None)
        while at < end and not self.aborted and at != interruption:
            await student.pause()
            size = student.rng.randint(1, student.chunk)
            stop = min(at + size, end if interruption is None else interruption)
            part, at = slice(at, stop), stop
            if stop > part.start:
                yield Chunk(text.tokens[part], text.student[part], text.sampled[part])
            if student.error is not None:
                raise student.error
        cut = self.aborted or at == interruption
        if at == interruption:
            student.interruptions.remove(at)
        student.version += 1
        self.output = TokenOutput(
            token_ids=text.tokens[self.begin : at],
            routed_experts=np.arange(len(PROMPT) + at),
            stop_reason="aborted" if cut else "completed" if at == len(text.tokens) else "length",
            num_preempted=5,
            extra_fields={"global_steps": student.version, "num_cached_tokens": 3},
        )

    async def abort(self) -> None:
        self.student.aborts += 1
        self.aborted = self.started  # a server knows no request that has not begun


class Student(TeachingClient):
    """Client of a rollout server that generates ``text``."""

    def __init__(
        self, text: Text, teacher: Any, prune_opd: PruneOPDConfig, seed: int = 0, pauses: int = 2
    ):
        super().__init__(None, prune_opd=prune_opd, teacher=teacher, vocab_size=VOCAB)
        self.text, self.rng, self.pauses = text, random.Random(seed), pauses
        self.chunk = prune_opd.gate.chunk_for(len(text.tokens))
        self.interruptions: list[int] = []
        self.error: Exception | None = None
        self.requests: list[tuple[list[int], int]] = []
        self.arguments: dict[str, Any] = {}
        self.aborts, self.version, self.open = 0, 0, 0

    async def pause(self) -> None:
        for _ in range(self.rng.randint(0, self.pauses)):
            await sleep(0)

    @asynccontextmanager
    async def follow(self, request_id, prompt_ids, sampling_params, **arguments):
        self.requests.append((list(prompt_ids), sampling_params["max_tokens"]))
        self.arguments = arguments
        begin = len(prompt_ids) - len(PROMPT)
        assert prompt_ids == PROMPT + self.text.tokens[:begin]
        self.open += 1
        await self.pause()
        try:
            yield Response(self, begin, sampling_params["max_tokens"])
        finally:
            self.open -= 1


class Teacher:
    """Stands for ``ScoringClient`` and its sequence; ``faults`` are raised instead of an answer,
    one a question."""

    def __init__(
        self, text: Text, faults: tuple[Exception | None, ...] = (), seed: int = 0, pauses: int = 2
    ):
        self.text, self.faults, self.rng, self.pauses = (
            text,
            list(faults),
            random.Random(seed),
            pauses,
        )
        self.scored, self.computed, self.open = 0, 0, 0
        self.questions: list[tuple[int, int]] = []
        self.before: Callable[[], Coroutine[Any, Any, Any]] | None = None

    @asynccontextmanager
    async def sequence(self, prompt_length, topk, vocab_size):
        assert (prompt_length, topk, vocab_size) == (len(PROMPT), K, VOCAB)
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    def skip_to(self, tokens: int) -> None:
        assert tokens == len(PROMPT) + self.scored

    async def score(self, token_ids: list[int], deadline: float) -> TopKRows:
        begin, end = self.scored, len(token_ids) - len(PROMPT)
        assert token_ids == PROMPT + self.text.tokens[:end]
        assert end > begin, "nothing is asked for"
        self.questions.append((begin, end))
        for _ in range(self.rng.randint(0, self.pauses)):
            await sleep(0)
        if self.before is not None:
            await self.before()
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        self.scored, self.computed = end, self.computed + end - begin
        return self.text.teacher[begin:end]


def settings(kind: str = "cumulative", retries: int = 2, **gate: Any) -> PruneOPDConfig:
    """A gate quick enough for responses of some hundred tokens."""
    quick = {"window": 16, "run_length": 5, "chunk": 8, "deadline": 5.0} | gate
    return PruneOPDConfig(
        teacher=TeacherConfig(path="T"),
        drift=DriftConfig(w_drop=0.1),
        gate=GateConfig(enable=True, kind=kind, retries=retries, **quick),
        topk=K,
    )


def generate(
    student: Student, limit: int = 10_000, known: list[TopKRows | None] | None = None, **kwargs: Any
) -> TokenOutput:
    """One gated response of one turn, with its report among its ``extra_fields``, and the teacher's
    rows, if all are ``known``. Nothing may hang and no task may stay behind, whatever happens."""

    async def ask(params: dict[str, Any]) -> TokenOutput:
        async with Trajectory(student, limit) as trajectory:
            trajectory.loop = SimpleNamespace(response_length=limit)
            output = await trajectory.generate(
                "r", prompt_ids=PROMPT, sampling_params=params, **kwargs
            )
        tokens = output.token_ids
        finished = AgentLoopOutput(
            prompt_ids=PROMPT,
            response_ids=tokens,
            response_mask=[1] * len(tokens),
            metrics=AgentLoopMetrics(),
        )
        rows = trajectory.finish(finished).teacher
        if known is not None:
            known.append(rows)
        report = finished.extra_fields[GATE_REPORT]
        assert trajectory.loop.response_length == (len(tokens) if report.stopped else limit)
        output.extra_fields[GATE_REPORT] = report
        return output

    async def body() -> TokenOutput:
        params = {"max_tokens": limit, "logprobs": True, "temperature": 0.7}
        given = dict(params)
        try:
            return await asyncio.wait_for(ask(params), 20)
        finally:
            assert params == given, "the caller's dict was changed"
            await sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert student.open == 0

    return asyncio.run(body())


def drifting(rng: random.Random, length: int) -> list[bool]:
    first, last = rng.random() * 0.4, rng.random()
    return [rng.random() < first + (last - first) * t / length for t in range(length)]


def check(output: TokenOutput, text: Text, stop: int | None, end: int | None = None) -> GateReport:
    """The output is the text up to the stop, or to its end, in all its fields."""
    kept = (len(text.tokens) if end is None else end) if stop is None else stop
    report = output.extra_fields[GATE_REPORT]
    assert output.token_ids == text.tokens[:kept]
    assert output.log_probs == text.sampled[:kept].tolist()
    assert output.routed_experts.tolist() == list(range(len(PROMPT) + kept))
    assert report.stopped == (stop is not None)
    assert report.generated >= kept
    assert report.events.tolist() == text.events[: len(report.events)]
    if stop is not None:
        assert (output.stop_reason, len(report.events)) == (DRIFT, kept)
    return report


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The seconds slept between an abort and going on, which take none here."""
    slept: list[float] = []

    async def nap(seconds: float) -> None:
        slept.append(seconds)
        for _ in range(20):
            await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", nap)
    return slept


# ----------------------------------------------------------------------------------------- the stop


@pytest.mark.parametrize("kind", [kind for kind in GATES if kind != "never"])
@pytest.mark.parametrize(
    "paces", [(0, 6), (6, 0), (3, 3)], ids=["slow_teacher", "slow_student", "alike"]
)
def test_stop_is_that_of_the_rule_on_the_whole_response(kind: str, paces: tuple[int, int]) -> None:
    rng, stops = random.Random(kind), 0
    for seed in range(60):
        text = Text(drifting(rng, rng.randint(1, 200)), seed)
        config = settings(kind, chunk=rng.choice([1, 3, 8, 64]), min_tokens=rng.choice([1, 30]))
        expected = config.new_gate().feed(text.events)
        teacher = Teacher(text, seed=seed, pauses=paces[1])
        output = generate(Student(text, teacher, config, seed, paces[0]))
        report = check(output, text, expected)
        assert report.teacher_tokens == teacher.computed
        assert (report.late, report.failed, report.given_up, report.error) == (0, 0, False, "")
        stops += expected is not None
    assert 5 < stops < 60  # both outcomes were tested


def test_a_gate_that_stops_nothing_has_everything_scored() -> None:
    text = Text([True] * 100)
    teacher = Teacher(text, pauses=3)
    student = Student(text, teacher, settings("never"), pauses=0)
    known: list[TopKRows | None] = []
    report = check(generate(student, known=known), text, None)
    assert report.events.tolist() == [True] * 100
    assert [len(rows) for rows in known] == [100]


def test_a_response_without_drift_is_left_alone_and_scored_to_its_end() -> None:
    text = Text([False] * 100)
    teacher = Teacher(text, pauses=30)
    output = generate(Student(text, teacher, settings(), pauses=0))
    report = check(output, text, None)
    assert output.stop_reason == "completed"
    assert output.num_preempted == 5
    assert output.extra_fields["num_cached_tokens"] == 3
    assert (len(report.events), report.generated, teacher.scored) == (100, 100, 100)


def test_drift_found_after_the_end_still_stops_the_response() -> None:
    text = Text([False] * 50 + [True] * 20)
    report = check(
        generate(Student(text, Teacher(text, pauses=200), settings(), pauses=0)), text, 59
    )
    assert report.generated == 70
    assert report.waited > 0


def test_generation_ends_soon_after_the_stop() -> None:
    text = Text([True] * 5000)
    student = Student(text, Teacher(text, pauses=0), settings(), pauses=10)
    report = check(generate(student), text, 9)
    assert student.aborts
    assert report.generated < 9 + 10 * 8


def test_at_the_limit_the_stop_reason_is_verls() -> None:
    text = Text([False] * 100)
    output = generate(Student(text, Teacher(text), settings()), limit=40)
    assert output.stop_reason == "length"
    assert len(check(output, text, None, end=40).events) == 40


def test_log_probs_are_returned_only_where_asked_for() -> None:
    text = Text([False] * 10)
    student = Student(text, Teacher(text), settings())
    params = {"max_tokens": 99, "logprobs": None}
    output = asyncio.run(
        Trajectory(student, 99).generate("r", prompt_ids=PROMPT, sampling_params=params)
    )
    assert output.log_probs is None


@pytest.mark.parametrize(
    ("given", "passed"), [({}, {}), ({"priority": 0}, {}), ({"priority": 3}, {"priority": 3})]
)
def test_the_request_carries_k_the_chunk_and_a_priority(
    given: dict[str, int], passed: dict[str, int]
) -> None:
    text = Text([False] * 10)
    student = Student(text, Teacher(text), settings(chunk=32))
    generate(student, **given)
    assert student.arguments == {"topk": K, "chunk": 32, **passed}


@pytest.mark.parametrize(("limit", "chunk"), [(99, 64), (4096, 64), (5000, 128), (12288, 256)])
def test_a_chunk_that_is_not_given_follows_the_responses_limit(limit: int, chunk: int) -> None:
    text = Text([False] * 10)
    student = Student(text, Teacher(text), settings(chunk=None))
    generate(student, limit)
    assert student.arguments["chunk"] == chunk


def test_the_nucleus_metric_looks_at_the_sampled_token() -> None:
    rng = random.Random(0)
    text = Text(drifting(rng, 300))
    # The teacher's first two candidates have 0.9 of the mass, the third crosses 0.95, the fourth is
    # out.
    columns = [rng.choice([3, None]) if event else rng.choice([0, 1, 2]) for event in text.events]
    text.tokens = [
        VOCAB - 1 if c is None else int(row[c])
        for row, c in zip(text.teacher.ids, columns, strict=True)
    ]
    config = settings()
    config = config.changed(drift=config.drift.changed(metric="teacher_top_p_accept"))
    stop = config.new_gate().feed(text.events)
    assert stop is not None
    check(generate(Student(text, Teacher(text), config)), text, stop)


def test_events_by_hand() -> None:
    log_probs = np.log([[0.6, 0.3, 0.06, 0.04]] * 3).astype(np.float32)
    student = TopKRows(np.array([[1, 2, 3, 4]] * 3, dtype=np.int32), log_probs)
    teacher = TopKRows(
        np.array([[4, 3, 2, 9], [9, 8, 1, 2], [5, 6, 7, 8]], dtype=np.int32), log_probs
    )
    assert find_events(DriftConfig().build(), student, teacher, [1, 9, 8]).tolist() == [
        False,
        True,
        True,
    ]
    nucleus = DriftConfig(metric="teacher_top_p_accept", top_p=0.95).build()
    assert find_events(nucleus, student, teacher, [1, 9, 8]).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["image_data", "video_data", "audio_data"])
def test_prompts_with_more_than_text_are_refused(name: str) -> None:
    text = Text([False])
    teacher = Teacher(text)
    with pytest.raises(ValueError, match=rf"prune_opd\.gate\.enable: .* {name}"):
        generate(Student(text, teacher, settings()), **{name: ["pixels"]})
    assert not teacher.questions


def test_no_image_is_no_reason_to_refuse() -> None:
    text = Text([False])
    check(
        generate(Student(text, Teacher(text), settings()), image_data=None, video_data=[]),
        text,
        None,
    )


def test_the_client_itself_stays_ungated() -> None:
    """It hands on to verl's, whichever it is: one that goes on after a weight update, say."""

    class Given:
        async def generate(self, *given: Any, **named: Any) -> Any:
            return given, named

    client = TeachingClient(Given(), prune_opd=settings(), teacher=None, vocab_size=VOCAB)
    answer = asyncio.run(client.generate("id", prompt_ids=[1], sampling_params={}))
    assert answer == (("id",), {"prompt_ids": [1], "sampling_params": {}})


@pytest.mark.parametrize("stops", [True, False])
def test_what_the_teacher_said_is_kept_from_the_start_on(stops: bool) -> None:
    for seed in range(10):
        text = Text([False] * 30 + [stops] * 70, seed)
        known: list[TopKRows | None] = []
        student = Student(text, Teacher(text, seed=seed), settings(), seed)
        output = generate(student, known=known)
        (rows,) = known
        assert len(output.token_ids) == len(rows)
        np.testing.assert_array_equal(rows.ids, text.teacher.ids[: len(rows)])
        np.testing.assert_array_equal(rows.log_probs, text.teacher.log_probs[: len(rows)])


def test_after_faults_the_rows_still_begin_at_the_start() -> None:
    text, known = Text([False] * 100), []
    student = Student(text, Teacher(text, (LATE, None, LOST)), settings())
    assert not generate(student, known=known).extra_fields[GATE_REPORT].given_up
    np.testing.assert_array_equal(known[0].ids, text.teacher.ids)


@pytest.mark.parametrize("faults", [(LOST,) * 9, (LATE, None, LOST, None, LATE)])
def test_where_the_teacher_did_not_say_all_nothing_is_known(faults) -> None:
    text, known = Text([False] * 100), []
    student = Student(text, Teacher(text, faults), settings())
    assert generate(student, known=known).extra_fields[GATE_REPORT].given_up
    assert known == [None]


# --------------------------------------------------------------------------------- aborts by others


def test_an_abort_by_somebody_else_is_gone_on_from(naps: list[float]) -> None:
    rng, stops = random.Random(0), 0
    for seed in range(40):
        text = Text(drifting(rng, 200), seed)
        config = settings("consecutive")
        student = Student(text, Teacher(text, seed=seed), config, seed)
        cuts = [0, *sorted(rng.sample(range(1, 150), 3))]
        student.interruptions = list(cuts)
        stop = config.new_gate().feed(text.events)
        output = generate(student, limit=200)
        check(output, text, stop)
        starts = [0, *cuts][: len(student.requests)]
        assert student.requests == [(PROMPT + text.tokens[:at], 200 - at) for at in starts]
        if stop is None:
            assert len(student.requests) == 5
        fields = output.extra_fields
        assert (fields["min_global_steps"], fields["max_global_steps"]) == (1, student.version)
        stops += stop is not None
    assert 5 < stops < 40
    assert set(naps) == {1}


def test_steps_are_given_without_an_abort_too() -> None:
    text = Text([False] * 10)
    fields = generate(Student(text, Teacher(text), settings())).extra_fields
    assert (fields["min_global_steps"], fields["max_global_steps"], fields["global_steps"]) == (
        1,
        1,
        1,
    )


def test_nothing_more_is_generated_where_the_stop_falls_between_two_requests(
    naps: list[float],
) -> None:
    text = Text([True] * 1000)
    teacher = Teacher(text, pauses=0)
    student = Student(text, teacher, settings(), pauses=0)
    student.interruptions = [20]

    async def nap() -> None:
        while not naps:
            await sleep(0)

    teacher.before = nap
    assert check(generate(student), text, 9).generated == 20
    assert len(student.requests) == 1


def test_a_stop_before_the_next_request_has_begun_ends_that_too(naps: list[float]) -> None:
    text = Text([True] * 5000)
    teacher = Teacher(text, pauses=0)
    student = Student(text, teacher, settings(), pauses=10)
    student.interruptions = [20]

    async def second() -> None:
        while len(student.requests) < 2:
            await sleep(0)

    teacher.before = second
    assert check(generate(student), text, 9).generated < 100


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "late", "failed", "error"),
    [(LATE, 1, 0, "no answer within 5.0 s"), (LOST, 0, 1, "RuntimeError: out of memory")],
    ids=["late", "failed"],
)
@pytest.mark.parametrize("at", [0, 1])
def test_after_a_fault_the_next_question_covers_the_tokens(fault, late, failed, error, at) -> None:
    text = Text([False] * 40 + [True] * 60)
    teacher = Teacher(text, (None,) * at + (fault,))
    report = check(generate(Student(text, teacher, settings())), text, 49)
    assert (report.late, report.failed, report.error, report.given_up) == (
        late,
        failed,
        error,
        False,
    )
    (begin, end), (again, further) = teacher.questions[at : at + 2]
    assert begin == again
    assert further > end  # asked again with the next chunk, not at once


def test_a_fault_at_the_last_question_is_asked_again() -> None:
    text = Text([False] * 6)
    teacher = Teacher(text, (LATE, LOST), pauses=0)
    report = check(generate(Student(text, teacher, settings(chunk=64), pauses=0)), text, None)
    assert (report.late, report.failed, report.given_up, len(report.events)) == (1, 1, False, 6)


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("length", [5, 300])
def test_one_fault_more_than_the_retries_costs_the_gate(retries: int, length: int) -> None:
    text = Text([True] * length)
    teacher = Teacher(text, (LATE, LOST) * 10)
    output = generate(Student(text, teacher, settings(retries=retries)))
    report = check(output, text, None)
    assert output.stop_reason == "completed"
    assert report.given_up
    assert report.late + report.failed == len(teacher.questions) == retries + 1
    assert len(report.events) == 0


def test_events_found_before_it_was_given_up_stay() -> None:
    text = Text([False] * 100)
    teacher = Teacher(text, (None, None, LATE, LATE, LATE))
    report = check(generate(Student(text, teacher, settings())), text, None)
    assert report.given_up
    assert len(report.events) == teacher.scored > 0


def test_no_token_is_lost_or_doubled_whatever_goes_wrong(naps: list[float]) -> None:
    rng, given_up = random.Random(0), 0
    for seed in range(150):
        text = Text(drifting(rng, rng.randint(1, 200)), seed)
        config = settings(rng.choice(list(GATES)), retries=2, chunk=rng.choice([1, 8, 64]))
        faults = tuple(rng.choice([None, None, None, LATE, LOST]) for _ in range(100))
        student = Student(
            text, Teacher(text, faults, seed, rng.randint(0, 8)), config, seed, rng.randint(0, 8)
        )
        student.interruptions = rng.sample(range(200), 2)
        output = generate(student, limit=len(text.tokens))
        report = output.extra_fields[GATE_REPORT]
        stop = config.new_gate().feed(text.events)
        if report.given_up and not report.stopped:
            stop = None
        check(output, text, stop)
        assert report.given_up == (report.late + report.failed > 2)
        given_up += report.given_up
    assert 20 < given_up < 130


def test_a_teacher_that_never_answers_costs_the_gate_alone(monkeypatch) -> None:
    """With the real scoring client, whose deadline it is."""
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "cancel", cancelled.append)

    class Silent(ScoringClient):
        async def _acquire_server(self, request_id, **extra):
            ask = SimpleNamespace(remote=lambda *args: asyncio.get_running_loop().create_future())
            return "s", SimpleNamespace(score=ask)

        def _release_server(self, server_id, request_id=None):
            released.append(server_id)

    released: list[str] = []
    text = Text([True] * 300)
    output = generate(Student(text, Silent(None, None, {}), settings(deadline=0.01)))
    report = check(output, text, None)
    assert (output.stop_reason, report.given_up, report.late, report.failed) == (
        "completed",
        True,
        3,
        0,
    )
    assert report.error == "no answer within 0.01 s"
    assert (len(cancelled), released) == (1, ["s"])  # asked once, waited for three times


def test_a_useless_answer_of_the_server_counts_as_failed(monkeypatch) -> None:
    """With the real scoring client, which refuses it."""
    text = Text([False] * 20 + [True] * 80)
    # And the row of the token that would come next.
    text.teacher = TopKRows.join(text.teacher, text.teacher[:1])
    asked: list[tuple[int, int]] = []

    async def score(token_ids, start, topk, sequence_id, private):
        begin, end = start - len(PROMPT), len(token_ids) - len(PROMPT)
        asked.append((begin, end))
        rows = text.teacher[begin : end + 1]
        if len(asked) == 2:
            rows = TopKRows(rows.ids, np.full_like(rows.log_probs, np.nan))
        return Score(rows[:-1], np.zeros(end - begin, dtype=np.float32), end - begin, rows[-1:])

    class Broken(ScoringClient):
        async def _acquire_server(self, request_id, **extra):
            return "s", SimpleNamespace(score=SimpleNamespace(remote=score))

        def _release_server(self, server_id, request_id=None):
            pass

    report = check(generate(Student(text, Broken(None, None, {}), settings())), text, 29)
    assert (report.late, report.failed, report.given_up) == (0, 1, False)
    assert report.error == "BadScore: a log-prob that is not finite"
    assert asked[2][0] == asked[1][0]


def test_an_exception_of_the_students_engine_is_the_callers() -> None:
    text = Text([False] * 100)
    teacher = Teacher(text, pauses=50)
    student = Student(text, teacher, settings())
    student.error = RuntimeError("engine died")
    with pytest.raises(RuntimeError, match="engine died"):
        generate(student)
    assert teacher.open == 0


def test_a_cancelled_response_leaves_nothing_behind() -> None:
    text = Text([False] * 100_000)
    teacher = Teacher(text)
    student = Student(text, teacher, settings())

    async def ask() -> None:
        async with Trajectory(student, 100_000) as trajectory:
            await trajectory.generate("r", prompt_ids=PROMPT, sampling_params={})

    async def body() -> None:
        task = asyncio.create_task(ask())
        while len(teacher.questions) < 3:
            await sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(body())
    assert (student.open, teacher.open) == (0, 0)
