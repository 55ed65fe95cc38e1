"""A finished response gets its rows even from a failing teacher, or says what is missing."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest

from verl_ext.rollout import scoring
from verl_ext.rollout.rows import MISSING, MISSING_ID, BadQuestion, NoServer, Score, TopKRows
from verl_ext.rollout.scoring import ResponseScorer, ScoreReport

K, VOCAB = 3, 100
FOREVER = 60.0


def row(token_ids: list[int]) -> list[int]:
    """Candidates of the token after some others; none like those of another context."""
    first = sum((i + 1) * token for i, token in enumerate(token_ids)) % (VOCAB - K)
    return list(range(first, first + K))


def own(token_ids: list[int]) -> float:
    """Log-prob of the last of some tokens."""
    return -(len(token_ids) + token_ids[-1] / VOCAB)


class Teacher:
    """Knows a row for every context; ``faults`` are what it does instead, one a question."""

    def __init__(self, *faults: Any):
        self.faults, self.questions, self.cancelled = list(faults), [], 0
        self.now, self.most = 0, 0
        self.hold: asyncio.Event | None = None

    async def score(self, token_ids: list[int], start: int, topk: int) -> Score:
        self.questions.append((list(token_ids), start, topk))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.hold is not None:
                await self.hold.wait()
            fault = self.faults.pop(0) if self.faults else None
            if isinstance(fault, Exception):
                raise fault
            if fault == "silence":
                await asyncio.Event().wait()
            answer = self.answer(token_ids, start)
            return answer if fault is None else fault(answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1

    @staticmethod
    def answer(token_ids: list[int], start: int) -> Score:
        ids = [row(token_ids[:end]) for end in range(start, len(token_ids))]
        rows = TopKRows(np.array(ids, dtype=np.int32), -2 - np.array(ids, dtype=np.float32))
        sampled = [own(token_ids[: end + 1]) for end in range(start, len(token_ids))]
        answer = Score(rows, np.array(sampled, dtype=np.float32), len(token_ids))
        for array in (rows.ids, rows.log_probs, answer.sampled):
            array.setflags(write=False)  # as Ray delivers them
        return answer


def scorer_of(teacher: Teacher, **changes: Any) -> ResponseScorer:
    return ResponseScorer(
        teacher,
        **{"topk": K, "vocab_size": VOCAB, "concurrency": 4, "deadline": FOREVER, "retries": 2}
        | changes,
    )


def score(
    scorer: ResponseScorer, prompt: list[int], response: list[int]
) -> tuple[TopKRows, np.ndarray, ScoreReport]:
    rows, sampled, report = asyncio.run(scorer.score(prompt, response))
    assert rows.ids.shape == rows.log_probs.shape == (len(response), K)
    assert sampled.shape == (len(response),)
    assert (rows.ids.dtype, rows.log_probs.dtype, sampled.dtype) == (
        np.int32,
        np.float32,
        np.float32,
    )
    return rows, sampled, report


def check(
    rows: TopKRows,
    sampled: np.ndarray,
    prompt: list[int],
    response: list[int],
    missing: tuple[int, ...] = (),
) -> None:
    """Every token has its own row, or none at all."""
    for t, token in enumerate(response):
        if t in missing:
            assert rows.ids[t].tolist() == [MISSING_ID] * K
            assert rows.log_probs[t].tolist() == [MISSING] * K
            assert sampled[t] == MISSING
        else:
            expected = row(prompt + response[:t])
            assert rows.ids[t].tolist() == expected
            assert rows.log_probs[t].tolist() == [-2 - i for i in expected]
            assert sampled[t] == np.float32(own([*prompt, *response[:t], token]))


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those made, in seconds; none takes time."""
    made: list[float] = []
    sleep = asyncio.sleep
    monkeypatch.setattr(scoring, "PAUSE", 1.0)

    async def pause(seconds: float) -> None:
        made.append(seconds)
        await sleep(0)

    monkeypatch.setattr(
        scoring.asyncio, "sleep", lambda seconds: pause(seconds) if seconds else sleep(0)
    )
    return made


PROMPT, RESPONSE = [11, 12, 13], [41, 42, 43, 44, 45]


@pytest.mark.parametrize("prompt", [[7], PROMPT])
@pytest.mark.parametrize("response", [[5], [5, 5], RESPONSE])
def test_every_row_is_that_of_its_token(prompt: list[int], response: list[int]) -> None:
    teacher = Teacher()
    rows, sampled, report = score(scorer_of(teacher), prompt, response)
    check(rows, sampled, prompt, response)
    assert teacher.questions == [(prompt + response, len(prompt), K)]
    assert (report.late, report.failed, report.missing, report.error) == (0, 0, 0, "")
    assert report.computed == len(prompt) + len(response)


def test_the_lists_of_the_caller_are_left_alone() -> None:
    prompt, response = list(PROMPT), list(RESPONSE)
    score(scorer_of(Teacher()), prompt, response)
    assert (prompt, response) == (PROMPT, RESPONSE)


def test_about_an_empty_response_nobody_is_asked() -> None:
    teacher = Teacher()
    _, _, report = score(scorer_of(teacher), PROMPT, [])
    assert not teacher.questions
    assert report == ScoreReport()


# ------------------------------------------------------------------------------------------- faults


def too_short(answer: Score) -> Score:
    return Score(answer.rows[1:], answer.sampled, answer.computed)


def of_another_k(answer: Score) -> Score:
    return Score(
        TopKRows(answer.rows.ids[:, 1:], answer.rows.log_probs[:, 1:]),
        answer.sampled,
        answer.computed,
    )


def of_fewer_tokens(answer: Score) -> Score:
    return Score(answer.rows, answer.sampled[1:], answer.computed)


LOST = RuntimeError("Traceback of Ray\nRuntimeError: out of memory")
FAULTS = [
    (LOST, (0, 1), "RuntimeError: out of memory"),
    (KeyError(), (0, 1), "KeyError:"),
    ("silence", (1, 0), "no answer within 0.01 s"),
    (too_short, (0, 1), "BadScore: rows of shape"),
    (of_another_k, (0, 1), "BadScore: rows of shape"),
    (of_fewer_tokens, (0, 1), "BadScore: log-probs of the tokens themselves"),
]
NAMES = ["raises", "raises_nothing", "silent", "too_short", "another_k", "fewer_tokens"]


@pytest.mark.parametrize(("fault", "counts", "error"), FAULTS, ids=NAMES)
@pytest.mark.parametrize("times", [1, 2])
def test_a_question_that_failed_is_asked_again(
    fault: Any, counts: tuple[int, int], error: str, times: int
) -> None:
    teacher = Teacher(*[fault] * times)
    rows, sampled, report = score(
        scorer_of(teacher, deadline=0.01 if fault == "silence" else FOREVER), PROMPT, RESPONSE
    )
    check(rows, sampled, PROMPT, RESPONSE)
    assert teacher.questions == [(PROMPT + RESPONSE, len(PROMPT), K)] * (times + 1)
    assert (report.late, report.failed) == (counts[0] * times, counts[1] * times)
    assert report.missing == 0
    assert report.error.startswith(error)
    assert teacher.cancelled == counts[0] * times  # nobody waits for it any more


@pytest.mark.parametrize(("fault", "counts", "error"), FAULTS, ids=NAMES)
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_after_the_last_retry_all_rows_are_missing(
    fault: Any, counts: tuple[int, int], error: str, retries: int
) -> None:
    teacher = Teacher(*[fault] * 10)
    scorer = scorer_of(teacher, retries=retries, deadline=0.01 if fault == "silence" else FOREVER)
    rows, sampled, report = score(scorer, PROMPT, RESPONSE)
    check(rows, sampled, PROMPT, RESPONSE, missing=(0, 1, 2, 3, 4))
    asked = retries + 1
    assert len(teacher.questions) == asked
    assert (report.late, report.failed) == (counts[0] * asked, counts[1] * asked)
    assert report.missing == len(RESPONSE)
    assert report.error.startswith(error)


def test_faults_of_different_kinds_share_the_retries() -> None:
    teacher = Teacher(LOST, "silence", too_short)
    _, _, report = score(scorer_of(teacher, deadline=0.01), PROMPT, RESPONSE)
    assert (report.late, report.failed, report.missing, len(teacher.questions)) == (1, 2, 5, 3)
    assert report.error.startswith("BadScore")  # the last one


def test_answers_that_are_no_use_have_cost_the_teacher_all_the_same() -> None:
    _, _, report = score(scorer_of(Teacher(LOST, too_short)), PROMPT, RESPONSE)
    assert report.computed == 2 * len(PROMPT + RESPONSE)


def test_a_pause_before_a_retry_is_twice_as_long_as_the_one_before(pauses: list[float]) -> None:
    """A server that is restarted is back after a while."""
    teacher = Teacher(*[LOST] * 5)
    rows, sampled, _ = score(scorer_of(teacher, retries=5), PROMPT, RESPONSE)
    check(rows, sampled, PROMPT, RESPONSE)
    assert pauses == [1, 2, 4, 8, 16]


def test_no_pause_is_longer_than_a_minute(pauses: list[float]) -> None:
    score(scorer_of(Teacher(*[LOST] * 2000), retries=1999), PROMPT, RESPONSE)
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert max(pauses) == 60


def test_what_no_server_could_answer_is_asked_once(pauses: list[float]) -> None:
    teacher = Teacher(BadQuestion("a sequence of 99 tokens, the context allows 98"))
    _, _, report = score(scorer_of(teacher), PROMPT, RESPONSE)
    assert (report.missing, report.failed, len(teacher.questions), pauses) == (
        len(RESPONSE),
        1,
        1,
        [],
    )


@pytest.mark.parametrize("before", [(), (LOST,)])
def test_without_a_server_no_further_question_is_asked(before: tuple[Exception, ...]) -> None:
    teacher = Teacher(*before, *[NoServer("no teacher server is left")] * 9)
    rows, sampled, report = score(scorer_of(teacher, retries=5), PROMPT, RESPONSE)
    check(rows, sampled, PROMPT, RESPONSE, missing=(0, 1, 2, 3, 4))
    assert (report.failed, len(teacher.questions)) == (len(before) + 1, len(before) + 1)
    assert report.error == "NoServer: no teacher server is left"


def test_a_cancelled_caller_is_no_fault_of_the_teacher() -> None:
    teacher = Teacher("silence")

    async def body() -> None:
        task = asyncio.create_task(scorer_of(teacher).score(PROMPT, RESPONSE))
        while not teacher.now:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())
    assert (len(teacher.questions), teacher.cancelled) == (1, 1)


# ----------------------------------------------------------------------------------------- bad rows


def spoilt(t: int, name: str, value: float) -> Callable[[Score], Score]:
    """An answer with one bad value."""

    def spoil(answer: Score) -> Score:
        ids, log_probs, sampled = (
            answer.rows.ids.copy(),
            answer.rows.log_probs.copy(),
            answer.sampled.copy(),
        )
        if name == "sampled":
            sampled[t] = value
        else:
            {"ids": ids, "log_probs": log_probs}[name][t, K - 1] = value
        return Score(TopKRows(ids, log_probs), sampled, answer.computed)

    return spoil


BAD = [
    ("log_probs", np.nan),
    ("log_probs", -np.inf),
    ("log_probs", np.inf),
    ("log_probs", 0.3),
    ("log_probs", 1e30),
    ("log_probs", -1e30),
    ("log_probs", -1.0),  # above the candidates before it
    ("ids", -1),
    ("ids", VOCAB),
    ("sampled", np.nan),
    ("sampled", np.inf),
    ("sampled", -np.inf),
    ("sampled", 50),
    ("sampled", 0.01),
    ("sampled", -1e30),
]


@pytest.mark.parametrize(("name", "value"), BAD)
@pytest.mark.parametrize("t", [0, 2, 4])
def test_a_bad_row_is_missing_and_the_others_are_kept(name: str, value: float, t: int) -> None:
    teacher = Teacher(spoilt(t, name, value))
    rows, sampled, report = score(scorer_of(teacher), PROMPT, RESPONSE)
    check(rows, sampled, PROMPT, RESPONSE, missing=(t,))
    assert (report.missing, report.late, report.failed) == (1, 0, 0)
    assert len(teacher.questions) == 1  # asked again it would say the same


@pytest.mark.parametrize(("name", "value"), [("log_probs", np.nan), ("ids", VOCAB)])
def test_the_row_of_the_token_that_would_come_next_does_not_matter(name: str, value: float) -> None:
    rows, sampled, report = score(
        scorer_of(Teacher(spoilt(len(RESPONSE), name, value))), PROMPT, RESPONSE
    )
    check(rows, sampled, PROMPT, RESPONSE)
    assert report.missing == 0


def test_the_largest_id_is_one_below_the_vocabulary() -> None:
    rows, _, report = score(scorer_of(Teacher(spoilt(1, "ids", VOCAB - 1))), PROMPT, RESPONSE)
    assert report.missing == 0
    assert rows.ids[1, K - 1] == VOCAB - 1


@pytest.mark.parametrize("value", [-np.inf, np.nan, 1e30])
def test_where_nobody_reads_the_tokens_own_log_probs_rows_are_kept_without(value: float) -> None:
    scorer = scorer_of(Teacher(spoilt(1, "sampled", value)), needs_sampled=False)
    rows, _, report = score(scorer, PROMPT, RESPONSE)
    assert report.missing == 0
    assert rows.ids[1].tolist() == row([*PROMPT, RESPONSE[0]])


@pytest.mark.parametrize("value", [0.0, 1e-4, -0.0, -9999.0])
def test_a_log_prob_may_be_off_by_rounding(value: float) -> None:
    _, sampled, report = score(scorer_of(Teacher(spoilt(1, "sampled", value))), PROMPT, RESPONSE)
    assert (report.missing, sampled[1]) == (0, np.float32(value))


def test_a_row_that_names_an_id_twice_is_missing() -> None:
    def twice(answer: Score) -> Score:
        ids = answer.rows.ids.copy()
        ids[2, 2] = ids[2, 0]
        return Score(TopKRows(ids, answer.rows.log_probs), answer.sampled, answer.computed)

    rows, sampled, report = score(scorer_of(Teacher(twice)), PROMPT, RESPONSE)
    check(rows, sampled, PROMPT, RESPONSE, missing=(2,))
    assert report.missing == 1


def test_candidates_of_one_log_prob_may_come_in_any_order() -> None:
    def tied(answer: Score) -> Score:
        rows = TopKRows(answer.rows.ids[:, ::-1], np.full_like(answer.rows.log_probs, -2.0))
        return Score(rows, answer.sampled, answer.computed)

    _, _, report = score(scorer_of(Teacher(tied)), PROMPT, RESPONSE)
    assert report.missing == 0


# ----------------------------------------------------------------------------------- many responses


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_responses_are_asked_about_at_once(concurrency: int) -> None:
    teacher, count = Teacher(), 10
    scorer = scorer_of(teacher, concurrency=concurrency)

    async def body() -> list[Any]:
        teacher.hold = asyncio.Event()
        tasks = [asyncio.create_task(scorer.score(PROMPT, [i + 1] * (i + 1))) for i in range(count)]
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(teacher.questions) == concurrency
        teacher.hold.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(body())
    assert teacher.most == concurrency
    for i, (rows, sampled, _) in enumerate(answers):
        check(rows, sampled, PROMPT, [i + 1] * (i + 1))


def test_a_failure_gives_its_place_to_the_next() -> None:
    teacher = Teacher(LOST, NoServer(), "silence")
    scorer = scorer_of(teacher, concurrency=1, retries=0, deadline=0.01)

    async def body() -> list[int]:
        answers = await asyncio.gather(*(scorer.score(PROMPT, RESPONSE) for _ in range(4)))
        return [report.missing for _, _, report in answers]

    assert asyncio.run(body()) == [5, 5, 5, 0]


def test_it_can_be_sent_to_another_process_before_it_is_used() -> None:
    scorer = cloudpickle.loads(cloudpickle.dumps(scorer_of(Teacher(), concurrency=1)))
    check(*score(scorer, PROMPT, RESPONSE)[:2], PROMPT, RESPONSE)
    assert scorer.slots is scorer.slots


def test_times_are_those_of_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first question to the last, retries included."""
    teacher, clock = Teacher(LOST, "silence"), iter(range(100, 200))
    monkeypatch.setattr(
        scoring, "time", SimpleNamespace(time=lambda: 10 * len(teacher.questions) + next(clock))
    )
    _, _, report = score(scorer_of(teacher, deadline=0.01), PROMPT, RESPONSE)
    assert (report.began, report.ended) == (100, 131)


def test_a_response_nobody_answered_about_has_times_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((5.0, 7.5))
    monkeypatch.setattr(scoring, "time", SimpleNamespace(time=lambda: next(clock)))
    _, _, report = score(scorer_of(Teacher(NoServer())), PROMPT, RESPONSE)
    assert (report.began, report.ended) == (5, 7.5)
