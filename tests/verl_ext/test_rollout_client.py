"""Every token is scored once and in order, whatever the servers do, and no server is kept.

Servers and load balancer answer as Ray's handles do.
"""

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayTaskError,
)
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_ext.rollout import client
from verl_ext.rollout.client import FollowingClient, GrowingSequence, ScoringClient
from verl_ext.rollout.rotation import PATIENCE
from verl_ext.rollout.rows import (
    BadQuestion,
    BadScore,
    Chunk,
    DeadServer,
    NoServer,
    Score,
    TopKRows,
)
from verl_ext.rollout.scoring import ResponseScorer, ScoreReport

K, VOCAB, PROMPT, LENGTH = 3, 100, 5, 80


def remote(answer: Any) -> SimpleNamespace:
    """A method of an actor handle: ``remote`` gives an awaitable at once."""

    def call(*args: Any, **kwargs: Any) -> asyncio.Task:
        async def body() -> Any:
            return answer(*args, **kwargs)

        return asyncio.ensure_future(body())

    return SimpleNamespace(remote=call)


def through_ray(cause: Exception) -> RayTaskError:
    """An actor's exception as its caller gets it: of its own class and of Ray's, its text behind a
    traceback."""
    traceback = f"Traceback (most recent call last):\n  File ...\n{type(cause).__name__}: {cause}"
    return RayTaskError("method", traceback, cause, "title", 1, "0.0.0.0").as_instanceof_cause()


class Balancer:
    """Stands for verl's load balancer."""

    def __init__(self, **servers: Any):
        self.servers, self.acquired, self.released, self.fields, self.removed = (
            servers,
            [],
            [],
            [],
            [],
        )
        self.acquire_server, self.release_server = remote(self._acquire), remote(self._release)
        self.remove_servers = remote(self._remove)
        self.require_acquire_fields = remote(lambda: ["prompt_ids"])
        self.require_release_fields = remote(lambda: ["request_id"])

    def _acquire(self, request_id: str, **fields: Any) -> tuple[str, Any]:
        if not self.servers:
            raise through_ray(RuntimeError("No available servers in load balancer"))
        server_id = min(self.servers)
        self.acquired.append((server_id, request_id))
        self.fields.append(fields)
        return server_id, self.servers[server_id]

    def _release(self, server_id: str, request_id: str) -> None:
        self.released.append((server_id, request_id))

    def _remove(self, server_ids: list[str]) -> None:
        for server_id in server_ids:
            self.removed.append(server_id)
            self.servers.pop(server_id, None)


class Server:
    """A teacher with a row of its own for every token; ``faults`` are what it does instead, one a
    question."""

    def __init__(self, *faults: Any):
        rng = np.random.default_rng(0)
        shape = (LENGTH + 1, K)
        ids = np.argsort(rng.random((LENGTH + 1, VOCAB)), axis=1)[:, :K]
        log_probs = -3 - np.sort(rng.random(shape), axis=1)
        self.rows = TopKRows(ids.astype(np.int32), log_probs.astype(np.float32))
        self.faults, self.questions, self.score = (
            list(faults),
            [],
            SimpleNamespace(remote=self._score),
        )
        self.sampled = -rng.random(LENGTH).astype(np.float32)
        self.private = 0

    def _score(
        self, token_ids: list[int], start: int, topk: int, sequence_id: str, private: int
    ) -> asyncio.Future:
        self.questions.append((len(token_ids), start, sequence_id, private))
        assert topk == K
        rows, sampled = self.rows[start : len(token_ids) + 1], self.sampled[start : len(token_ids)]
        future = asyncio.get_running_loop().create_future()
        fault = self.faults.pop(0) if self.faults else None
        if fault is None:
            future.set_result(
                Score(rows[:-1], sampled, len(token_ids) - start, rows[-1:], self.private)
            )
        elif isinstance(fault, Exception):
            future.set_exception(fault)
        elif fault != "silence":
            rows = fault(rows)
            future.set_result(
                Score(rows[:-1], sampled, len(token_ids) - start, rows[-1:], self.private)
            )
        return future


def client_of(balancer: Balancer) -> ScoringClient:
    return ScoringClient(None, balancer, dict(balancer.servers))


def run(balancer: Balancer, body: Any) -> None:
    """``body`` of a scoring client's one sequence."""

    async def main() -> None:
        async with client_of(balancer).sequence(PROMPT, K, VOCAB) as sequence:
            await body(sequence)
        await asyncio.sleep(0)

    asyncio.run(main())


def same(rows: TopKRows, expected: TopKRows) -> bool:
    return np.array_equal(rows.ids, expected.ids) and np.array_equal(
        rows.log_probs, expected.log_probs
    )


# -------------------------------------------------------------------------------- growing sequences


@pytest.mark.parametrize("seed", range(20))
def test_every_token_gets_its_row_once_and_in_order(seed: int):
    server, rng = Server(), random.Random(seed)
    lengths = [*sorted(rng.sample(range(PROMPT + 1, LENGTH), rng.randint(1, 10))), LENGTH]

    async def body(sequence: GrowingSequence) -> None:
        given = [await sequence.score(list(range(length)), 1) for length in lengths]
        assert [len(rows) for rows in given] == np.diff([PROMPT, *lengths]).tolist()
        assert same(TopKRows.join(*given), server.rows[PROMPT:LENGTH])
        assert sequence.computed == sum(length - start for length, start, *_ in server.questions)

    run(Balancer(a=server), body)
    assert [length for length, *_ in server.questions] == lengths
    # The row of the token after the last came with the answer before.
    assert [start for _, start, *_ in server.questions] == [PROMPT] + [
        length + 1 for length in lengths[:-1]
    ]


def cut(rows: TopKRows) -> TopKRows:
    return rows[:-1]


def foreign(rows: TopKRows) -> TopKRows:
    return TopKRows(rows.ids + VOCAB, rows.log_probs)


FAULTS = [
    (RuntimeError("out of memory"), RuntimeError),
    (cut, BadScore),
    (foreign, BadScore),
]


@pytest.mark.parametrize(("fault", "error"), FAULTS, ids=["raises", "too_short", "foreign"])
@pytest.mark.parametrize("first", [True, False])
def test_after_an_error_nothing_has_changed(
    monkeypatch, fault: Any, error: type[Exception], first: bool
):
    monkeypatch.setattr(ray, "cancel", lambda reference: None)
    server = Server(*([] if first else [None]), fault)

    async def body(sequence: GrowingSequence) -> None:
        begin = PROMPT
        if not first:
            begin = 20
            await sequence.score(list(range(begin)), 1)
        with pytest.raises(error):
            await sequence.score(list(range(30)), 1)
        assert sequence.scored == begin
        assert same(await sequence.score(list(range(30)), 1), server.rows[begin:30])
        assert same(await sequence.score(list(range(41)), 1), server.rows[30:41])

    run(Balancer(a=server), body)
    assert len({start for length, start, *_ in server.questions if length == 30}) == 1


def test_past_the_deadline_the_question_stays_open_and_its_answer_comes_first():
    server = Server()
    slow, asked = asyncio.Event, []

    def score(token_ids: list[int], *rest: Any) -> Any:
        asked.append(len(token_ids))
        answer = server._score(token_ids, *rest)

        async def body() -> Score:
            if len(asked) == 1:
                await released.wait()
            return await answer

        return asyncio.ensure_future(body())

    async def body(sequence: GrowingSequence) -> None:
        nonlocal released
        released = slow()
        for _ in range(2):
            with pytest.raises(TimeoutError, match=r"^no answer within 0\.01 s$"):
                await sequence.score(list(range(30)), 0.01)
        assert sequence.scored == PROMPT
        released.set()
        # Those the late question was about, then the rest.
        assert same(await sequence.score(list(range(40)), 1), server.rows[PROMPT:30])
        assert same(await sequence.score(list(range(40)), 1), server.rows[30:40])

    released = slow()
    balancer = Balancer(a=SimpleNamespace(score=SimpleNamespace(remote=score)))
    run(balancer, body)
    assert asked == [30, 40]  # no token is asked about twice
    assert len(balancer.acquired) == 1


def test_a_load_balancer_that_never_answers_is_past_the_deadline_too():
    balancer = Balancer(a=Server())
    balancer.acquire_server = SimpleNamespace(
        remote=lambda **kwargs: asyncio.get_running_loop().create_future()
    )

    async def body(sequence: GrowingSequence) -> None:
        with pytest.raises(TimeoutError, match=r"^no answer within 0\.01 s$"):
            await sequence.score(list(range(30)), 0.01)

    run(balancer, body)
    assert balancer.released == []


@pytest.mark.parametrize("error", [TimeoutError, asyncio.TimeoutError])
def test_an_open_question_is_withdrawn_with_its_sequence(monkeypatch, error: type[Exception]):
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    balancer = Balancer(a=Server("silence"))

    async def body(sequence: GrowingSequence) -> None:
        # Or the caller goes away.
        deadline, patience = (0.01, 60) if error is TimeoutError else (60, 0.01)
        with pytest.raises(error):
            await asyncio.wait_for(sequence.score(list(range(30)), deadline), patience)
        assert not cancelled

    run(balancer, body)
    assert len(cancelled) == 1
    assert balancer.released == balancer.acquired


@pytest.mark.parametrize(
    "death",
    [ActorDiedError(), DeadServer("its engine"), OutOfMemoryError("1 worker was killed\nTop 10")],
    ids=["actor", "engine", "memory"],
)
def test_a_dead_server_leaves_the_rotation_and_another_takes_over(death: Exception):
    dead, alive = Server(None, death), Server()
    balancer = Balancer(a=dead, b=alive)

    async def body(sequence: GrowingSequence) -> None:
        await sequence.score(list(range(20)), 1)
        with pytest.raises(DeadServer) as raised:
            await sequence.score(list(range(30)), 1)
        assert len(str(raised.value).splitlines()) == 1
        await asyncio.sleep(0)  # it is told, not waited for
        assert list(balancer.servers) == ["b"]
        assert same(await sequence.score(list(range(35)), 1), alive.rows[20:35])

    run(balancer, body)
    assert [server_id for server_id, _ in balancer.acquired] == ["a", "b"]
    assert [server_id for server_id, _ in balancer.released] == ["b"]


def test_without_a_server_left_the_balancers_error_is_raised():
    async def body(sequence: GrowingSequence) -> None:
        with pytest.raises(DeadServer):
            await sequence.score(list(range(30)), 1)
        with pytest.raises(RuntimeError, match="No available servers"):
            await sequence.score(list(range(30)), 1)

    balancer = Balancer(a=Server(ActorDiedError()))
    run(balancer, body)
    assert balancer.released == []


def test_a_sequence_stays_with_its_server_under_one_name():
    server = Server()
    balancer = Balancer(a=server)

    async def body(sequence: GrowingSequence) -> None:
        for length in (20, 30, 40):
            await sequence.score(list(range(length)), 1)
        assert balancer.released == []

    run(balancer, body)
    ((_, name),) = balancer.acquired
    assert {sequence_id for *_, sequence_id, _ in server.questions} == {name}
    assert balancer.released == [("a", name)]


def test_sequences_have_different_names():
    server = Server()
    for _ in range(2):
        run(Balancer(a=server), lambda sequence: sequence.score(list(range(20)), 1))
    assert len({sequence_id for *_, sequence_id, _ in server.questions}) == 2


def test_a_private_prefix_stays_private():
    server = Server(None, None, cut)

    async def body(sequence: GrowingSequence) -> None:
        await sequence.score(list(range(10)), 1)
        server.private = 2
        await sequence.score(list(range(20)), 1)
        with pytest.raises(BadScore):
            await sequence.score(list(range(30)), 1)
        await sequence.score(list(range(40)), 1)

    run(Balancer(a=server), body)
    assert [private for *_, private in server.questions] == [0, 0, 2, 2]


def test_a_sequence_nobody_asked_about_takes_no_server():
    balancer = Balancer(a=Server())

    async def body(sequence: GrowingSequence) -> None:
        pass

    run(balancer, body)
    assert balancer.acquired == balancer.released == []


def test_an_error_of_the_caller_releases_the_server():
    balancer = Balancer(a=Server())

    async def body(sequence: GrowingSequence) -> None:
        await sequence.score(list(range(20)), 1)
        raise KeyError("caller")

    async def main() -> None:
        with pytest.raises(KeyError):
            async with client_of(balancer).sequence(PROMPT, K, VOCAB) as sequence:
                await body(sequence)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert balancer.released == balancer.acquired


# ---------------------------------------------------------------------------------- whole sequences


def ask(balancer: Balancer, *patience: float) -> list[Any]:
    """The answers and errors of one client, its questions being asked one after another."""

    async def main() -> list[Any]:
        scoring, given = client_of(balancer), []
        for seconds in patience:
            try:
                given.append(await asyncio.wait_for(scoring.score(list(range(30)), 20, K), seconds))
            except Exception as error:
                given.append(error)
            await asyncio.sleep(0)
        return given

    return asyncio.run(main())


def kinds(given: list[Any]) -> list[type]:
    return [type(one) for one in given]


@pytest.mark.parametrize("start", [1, 20, 29])
def test_a_whole_score_is_the_answer_of_the_server(start: int):
    server = Server()
    balancer = Balancer(a=server)
    answer = asyncio.run(client_of(balancer).score(list(range(30)), start, K))
    assert same(answer.rows, server.rows[start:30])
    assert np.array_equal(answer.sampled, server.sampled[start:30])
    ((length, first, name, private),) = server.questions
    assert (length, first, private) == (30, start, 0)
    assert name
    assert not balancer.removed


def test_every_whole_score_is_a_sequence_of_its_own():
    """Under one name they would all go to one server, and into one cache."""
    server = Server()
    ask(Balancer(a=server), 9, 9, 9)
    assert len({name for _, _, name, _ in server.questions}) == 3


def test_a_server_that_is_silent_again_and_again_leaves_the_rotation(monkeypatch):
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    balancer = Balancer(a=Server(*["silence"] * 9))
    given = ask(balancer, *[0.01] * PATIENCE, 9)
    assert kinds(given) == [*[asyncio.TimeoutError] * PATIENCE, NoServer]
    assert str(given[-1]) == "no teacher server is left"
    assert balancer.removed == ["a"]
    assert len(cancelled) == PATIENCE  # the server need not go on


@pytest.mark.parametrize(
    "fault", [RuntimeError("out of memory"), ActorUnavailableError("", None)], ids=str
)
def test_a_server_that_fails_is_asked_again_where_there_is_no_other(fault: Exception):
    balancer = Balancer(a=Server(*[fault] * 9))
    assert kinds(ask(balancer, *[9] * 10)) == [*[type(fault)] * 9, Score]
    assert not balancer.removed


def test_a_question_that_is_at_fault_is_not_held_against_the_server():
    text = "score: a sequence of 99 tokens, the engine's context allows 98"
    balancer = Balancer(a=Server(*[ValueError(text)] * 9))
    given = ask(balancer, *[9] * 9)
    assert kinds(given) == [BadQuestion] * 9
    assert str(given[0]) == text
    assert not balancer.removed


@pytest.mark.parametrize(
    "death", [ActorDiedError(), through_ray(DeadServer("its engine"))], ids=["actor", "engine"]
)
def test_a_dead_server_is_dropped_at_once(death: Exception):
    balancer = Balancer(a=Server(death))
    first, second = ask(balancer, 9, 9)
    assert type(first) is DeadServer
    assert first.__cause__ is death
    assert type(second) is NoServer
    assert balancer.removed == ["a"]


@pytest.mark.parametrize("fault", [None, ActorDiedError()], ids=str)
def test_a_drop_is_not_waited_for(fault: Exception | None):
    """The balancer may be as dead as the server."""
    balancer = Balancer(a=Server(fault))
    never = SimpleNamespace(
        remote=lambda *args, **kwargs: asyncio.get_running_loop().create_future()
    )
    balancer.remove_servers = balancer.release_server = never
    assert kinds(ask(balancer, 9)) == [Score if fault is None else DeadServer]


@pytest.mark.parametrize(
    "fault",
    [RuntimeError("out of memory"), ActorUnavailableError("", None), ActorDiedError(), "silence"],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_one_good_server_is_enough_for_all_responses(monkeypatch, fault: Any, seed: int):
    """A server that fails at once is always the least busy one: it must not get every question
    there is."""
    monkeypatch.setattr("verl_ext.rollout.scoring.PAUSE", 0.0)
    monkeypatch.setattr(ray, "cancel", lambda reference: None)
    random.seed(seed)
    bad, good = Server(*[fault] * 999), Server()
    scorers = [
        ResponseScorer(
            client_of(Balancer(a=bad, b=good)),
            K,
            VOCAB,
            concurrency=4,
            deadline=0.5 if fault == "silence" else 60,
            retries=2,
        )
        for _ in range(8)  # rollout workers
    ]

    async def main() -> list[ScoreReport]:
        asked = [
            scorer.score(list(range(20)), list(range(20, 30)))
            for scorer in scorers
            for _ in range(16)
        ]
        return [report for _, _, report in await asyncio.gather(*asked)]

    reports = asyncio.run(main())
    assert [report.missing for report in reports] == [0] * 128
    assert sum(report.late + report.failed for report in reports) == len(bad.questions) > 0
    assert len(good.questions) == 128  # nothing was scored twice


# ------------------------------------------------------------------------------- followed responses


CHUNKS = [
    Chunk([1, 2], TopKRows(np.zeros((2, K)), np.zeros((2, K))), np.zeros(2)) for _ in range(3)
]
OUTPUT = TokenOutput(token_ids=[1, 2] * 3, stop_reason="completed")


class Rollout:
    """A rollout server's handle, its ``follow`` being a stream of references."""

    def __init__(self, *items: Any):
        self.items, self.calls, self.aborted = items, [], []
        self.follow = SimpleNamespace(options=self._options)
        self.abort = remote(self.aborted.append)

    def _options(self, num_returns: str) -> SimpleNamespace:
        assert num_returns == "streaming"
        return SimpleNamespace(remote=self._follow)

    async def _follow(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        for item in self.items:
            future = asyncio.get_running_loop().create_future()
            if isinstance(item, Exception):
                future.set_exception(item)
            else:
                future.set_result(item)
            yield future


CONFIG = SimpleNamespace(
    actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(full_determinism=False))
)


def follow(balancer: Balancer, abort: bool = False) -> tuple[list[Chunk], TokenOutput | None]:
    """The chunks of one response and its output."""

    async def main() -> tuple[list[Chunk], TokenOutput | None]:
        chunks = []
        following = FollowingClient(LLMServerClient(CONFIG, balancer))
        try:
            async with following.follow(
                "r", [7, 8], {"max_tokens": 9}, topk=K, chunk=2
            ) as response:
                async for chunk in response:
                    assert response.output is None
                    chunks.append(chunk)
                    if abort:
                        await response.abort()
            return chunks, response.output
        finally:
            await asyncio.sleep(0)

    return asyncio.run(main())


def test_a_followed_response_gives_its_chunks_and_then_its_output():
    server = Rollout(*CHUNKS, OUTPUT)
    balancer = Balancer(a=server)
    chunks, output = follow(balancer)
    assert [id(chunk) for chunk in chunks] == [id(chunk) for chunk in CHUNKS]
    assert output is OUTPUT
    (call,) = server.calls
    assert call.pop("request_id") != "r"  # every turn is a request of its own
    assert call == {
        "prompt_ids": [7, 8],
        "sampling_params": {"max_tokens": 9},
        "topk": K,
        "chunk": 2,
    }
    assert (balancer.acquired, balancer.released) == ([("a", "r")], [("a", "r")])
    assert balancer.fields == [{"prompt_ids": [7, 8]}]  # what the balancer declares


def test_an_abort_names_the_request():
    server = Rollout(CHUNKS[0], OUTPUT)
    follow(Balancer(a=server), abort=True)
    assert server.aborted == [server.calls[0]["request_id"]]


def test_an_error_of_the_server_is_raised_and_releases_it():
    server = Rollout(CHUNKS[0], RuntimeError("engine died"))
    balancer = Balancer(a=server)
    with pytest.raises(RuntimeError, match="engine died"):
        follow(balancer)
    assert balancer.released == [("a", "r")]
    assert server.aborted == [server.calls[0]["request_id"]]  # nobody reads on


def test_many_responses_of_one_name_are_requests_of_their_own():
    """Under full_determinism verl calls them all det-0."""
    server = Rollout(CHUNKS[0], OUTPUT)
    for _ in range(2):
        follow(Balancer(a=server))
    assert len({call["request_id"] for call in server.calls}) == 2


def test_an_abort_that_fails_costs_nothing(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(client.logger, "warning", lambda text, *args: said.append(text % args))
    server = Rollout(CHUNKS[0], OUTPUT)

    def fail(request_id: str) -> None:
        raise ActorDiedError

    server.abort = remote(fail)
    chunks, output = follow(Balancer(a=server), abort=True)
    assert (len(chunks), output) == (1, OUTPUT)
    assert len(said) == 1
    assert "could not be aborted" in said[0]
