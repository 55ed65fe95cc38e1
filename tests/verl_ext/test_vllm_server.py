"""Our vLLM server gives every token's row once, and leaves other requests as they were.

The engine is scripted. Importing vLLM takes seconds.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from verl_ext.rollout.rows import At, Chunk, DeadServer, Score, TopKRows

# With SGLang verl puts a stand-in in its place.
pytest.importorskip("vllm.v1", reason="vLLM is not installed")

from verl.workers.rollout.replica import RolloutReplicaRegistry
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs, append_logprobs_for_next_position
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsTensors

from verl_ext.rollout import register, vllm_server
from verl_ext.rollout.following import Following
from verl_ext.rollout.vllm_server import (
    FollowedEngine,
    TailLogprobs,
    TopKHttpServer,
    TopKReplica,
    observe,
)

K, VOCAB = 3, 40


class Text:
    """Sampled tokens and, for each, the row vLLM reports: the token itself, then the K most
    likely."""

    def __init__(self, length: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.top = np.argsort(rng.random((length, VOCAB)), axis=1)[:, :K]
        self.log_probs = -np.sort(rng.random((length, K)).astype(np.float32))
        column = rng.integers(0, K + 1, length)  # K: the token is none of them
        self.tokens = [
            int(row[c]) if c < K else VOCAB + 1 for row, c in zip(self.top, column, strict=True)
        ]
        self.sampled = np.array(
            [row[c] if c < K else -9 for row, c in zip(self.log_probs, column, strict=True)],
            dtype=np.float32,
        )
        assert {*column} == {*range(K + 1)}

    def output(self, count: int, finished: bool = False) -> Any:
        """The cumulative output of a request after ``count`` tokens."""
        flat = FlatLogprobs()
        for t in range(count):
            ids = [self.tokens[t], *self.top[t].tolist()]
            values = [self.sampled[t].item(), *self.log_probs[t].tolist()]
            append_logprobs_for_next_position(flat, ids, values, [None] * (K + 1), 1, K)
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=self.tokens[:count], logprobs=flat)],
            finished=finished,
        )


def drain(following: Following) -> list[Chunk]:
    return [following.queue.get_nowait() for _ in range(following.queue.qsize())]


def check_chunks(chunks: list[Chunk], text: Text, count: int) -> None:
    """The chunks are the first ``count`` tokens, each once."""
    assert [token for chunk in chunks for token in chunk.token_ids] == text.tokens[:count]
    rows = TopKRows.join(*(chunk.rows for chunk in chunks))
    np.testing.assert_array_equal(rows.ids, text.top[:count])
    np.testing.assert_array_equal(rows.log_probs, text.log_probs[:count])
    np.testing.assert_array_equal(
        np.concatenate([c.sampled_log_probs for c in chunks]), text.sampled[:count]
    )
    assert rows.ids.dtype == np.int32
    assert rows.log_probs.dtype == np.float32


# ---------------------------------------------------------------------------------------- following


def test_a_row_has_k_candidates_whether_or_not_the_token_is_among_them() -> None:
    text, following = Text(30), Following(1, K, chunk=30)
    observe(following, text.output(30, finished=True))
    (chunk,) = drain(following)
    among = (chunk.rows.ids == np.array(chunk.token_ids)[:, None]).any(1)
    assert 0 < among.sum() < 30
    assert chunk.rows.ids.shape == chunk.rows.log_probs.shape == (30, K)


@pytest.mark.parametrize("step", [1, 5, 30])
def test_chunks_hold_every_token_once(step: int) -> None:
    text, following = Text(50), Following(7, K, chunk=8)
    for count in [*range(1, 50, step), 50]:
        observe(following, text.output(count, finished=count == 50))
    check_chunks(drain(following), text, 50)


def test_an_abort_before_the_first_token_reports_nothing() -> None:
    following = Following(4, K, chunk=8)
    observe(following, SimpleNamespace(outputs=[], finished=True))
    assert following.queue.empty()


# --------------------------------------------------------------------------------------- the engine


class Engine:
    """Stands for vLLM's engine: generates ``text`` a few tokens at a time."""

    name = "engine"

    def __init__(self, text: Text):
        self.text, self.params, self.aborted, self.closed = text, [], [], False

    async def generate(
        self, prompt: Any, params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncIterator[Any]:
        self.params.append((params, kwargs))
        length = len(self.text.tokens)
        try:
            for count in [*range(1, length, 3), length]:
                await asyncio.sleep(0)
                yield self.text.output(count, finished=count == length)
        finally:
            self.closed = True

    async def abort(self, request_id: str, **kwargs: Any) -> None:
        self.aborted.append((request_id, kwargs))


async def outputs(engine: FollowedEngine, params: SamplingParams, **kwargs: Any) -> list[Any]:
    return [output async for output in engine.generate("prompt", params, "r", **kwargs)]


def test_requests_nobody_follows_are_untouched() -> None:
    engine, params = Engine(Text(20)), SamplingParams(max_tokens=5)
    followed = FollowedEngine(engine)
    followed.followed["another"] = Following(4, K, 8)
    assert len(asyncio.run(outputs(followed, params, priority=3))) == 8
    ((seen, kwargs),) = engine.params
    assert seen is params
    assert kwargs == {"priority": 3}
    assert followed.followed["another"].queue.empty()


def test_a_followed_request_reports_with_parameters_of_its_own() -> None:
    text = Text(20)
    engine, params = Engine(text), SamplingParams(max_tokens=5, temperature=0.7, logprobs=0)
    followed, following = FollowedEngine(engine), Following(4, K, 8)
    followed.followed["r"] = following
    assert len(asyncio.run(outputs(followed, params))) == 8
    ((seen, _),) = engine.params
    assert seen is not params
    assert (seen.logprobs, seen.flat_logprobs, seen.detokenize) == (K, True, False)
    assert (seen.max_tokens, seen.temperature) == (5, 0.7)
    assert (params.logprobs, params.flat_logprobs, params.detokenize) == (0, False, True)
    check_chunks(drain(following), text, 20)


def test_all_else_is_the_engines() -> None:
    engine = Engine(Text(20))
    followed = FollowedEngine(engine)
    assert followed.name == "engine"
    assert followed.abort == engine.abort
    with pytest.raises(AttributeError):
        _ = followed.no_such_method


# -------------------------------------------------------------------------------------- prompt rows


def tail_of(wanted: int) -> TailLogprobs:
    params = SamplingParams(prompt_logprobs=K, logprobs=K, flat_logprobs=True)
    processor = LogprobsProcessor.from_new_request(None, SimpleNamespace(sampling_params=params))
    return TailLogprobs(**vars(processor), wanted=wanted, topk=K)


@pytest.mark.parametrize("start", [17, 18, 29, 30])
@pytest.mark.parametrize(
    "first", [1, 17], ids=["a row for every token", "a row for every token that was computed"]
)
def test_the_tail_is_kept_whatever_vllms_model_runner_hands_over(start: int, first: int) -> None:
    """16 of 30 tokens are cached. The older runner begins with the row of token 1, the newer with
    that of token 17."""
    length = 30
    ids, log_probs = torch.randint(VOCAB, (length, K + 1)), torch.randn(length, K + 1)
    tail = tail_of(length - start)
    tail._update_prompt_logprobs(
        LogprobsTensors(ids[first:], log_probs[first:], torch.zeros(length - first))
    )
    # The first column is the token itself.
    np.testing.assert_array_equal(tail.rows.ids, ids[start:, 1:].numpy())
    np.testing.assert_array_equal(tail.rows.log_probs, log_probs[start:, 1:].numpy())
    np.testing.assert_array_equal(tail.sampled, log_probs[start:, 0].numpy())


def test_the_processor_has_the_fields_we_pass_on() -> None:
    own = {"wanted", "topk"}
    assert {field.name for field in fields(TailLogprobs)} == {
        field.name for field in fields(LogprobsProcessor)
    } | own
    assert "_update_prompt_logprobs" in vars(LogprobsProcessor)


# --------------------------------------------------------------------------------------- the server


class Server(TopKHttpServer):
    """Our server without verl's start, and with a scripted ``generate``."""

    def __init__(self, text: Text | None = None, logprobs_mode: str = "raw_logprobs"):
        self.config = SimpleNamespace(logprobs_mode=logprobs_mode, max_model_len=100)
        self.engine = FollowedEngine(Engine(text or Text(20)))
        self.error: Exception | None = None

    async def generate(
        self, prompt_ids: list[int], sampling_params: Any, request_id: str, **kwargs: Any
    ) -> Any:
        async for _ in self.engine.generate(
            prompt_ids, SamplingParams(**sampling_params), request_id, **kwargs
        ):
            if self.error is not None:
                raise self.error
        return "output"


def test_follow_gives_chunks_and_then_what_generate_returns() -> None:
    text = Text(20)
    server = Server(text)

    async def body() -> list[Any]:
        return [
            item async for item in server.follow([1] * 5, {"max_tokens": 20}, "r", K, 8, priority=3)
        ]

    *chunks, output = asyncio.run(body())
    assert output == "output"
    assert [len(chunk.token_ids) for chunk in chunks] == [3, 8, 8, 1]
    check_chunks(chunks, text, 20)
    assert server.engine.followed == {}
    assert server.engine.params[0][1] == {"priority": 3}


def test_follow_raises_what_generate_raises() -> None:
    server = Server()
    server.error = RuntimeError("engine died")

    async def body() -> None:
        async for _ in server.follow([1], {}, "r", K, 8):
            pass

    with pytest.raises(RuntimeError, match="engine died"):
        asyncio.run(body())
    assert server.engine.followed == {}


def test_a_reader_who_goes_away_ends_the_request() -> None:
    server = Server(Text(2000))

    async def body() -> None:
        async with aclosing(server.follow([1], {}, "r", K, 8)) as stream:
            async for _ in stream:
                break
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(body())
    assert server.engine.followed == {}
    assert server.engine.closed


def test_processed_log_probs_cannot_be_followed() -> None:
    async def body() -> None:
        async for _ in Server(logprobs_mode="processed_logprobs").follow([1], {}, "r", K, 8):
            pass

    with pytest.raises(
        ValueError,
        match=r"logprobs_mode: got 'processed_logprobs', allowed to follow: 'raw_logprobs'",
    ):
        asyncio.run(body())


def test_abort_reaches_the_engine() -> None:
    server = Server()
    asyncio.run(server.abort("r"))
    assert server.engine.aborted == [("r", {})]


class Scoring(Server):
    """Our server with a scripted prefix cache: how many tokens each key has. Blocks are of one
    token."""

    def __init__(self, shared: int = 0):
        super().__init__()
        self.cached, self.asked = {None: shared}, []

    async def _tail(
        self, token_ids: list[int], start: int, topk: int, cache_salt: str | None
    ) -> tuple[SimpleNamespace, str, int]:
        self.asked.append(cache_salt)
        cached = self.cached.get(cache_salt, 0)
        self.cached[cache_salt] = len(token_ids)
        tail = SimpleNamespace(rows=f"rows of {cache_salt}", sampled=f"sampled of {cache_salt}")
        return tail, f"next of {cache_salt}", cached


def whose(score: Score) -> set[str]:
    """The prefix caches that the parts of an answer come from."""
    rows, sampled, ahead = score.rows, score.sampled, score.ahead
    assert (rows[:8], sampled[:11], ahead[:8]) == ("rows of ", "sampled of ", "next of ")
    return {rows[8:], sampled[11:], ahead[8:]}


def test_a_score_costs_the_uncached_tail() -> None:
    server = Scoring(32)
    score = asyncio.run(server.score([1] * 50, 33, K, "s"))
    assert whose(score) == {"None"}
    assert (score.computed, score.private) == (18, 0)


def test_where_others_left_too_much_the_score_is_made_again_under_a_key_of_its_own() -> None:
    server = Scoring(33)
    score = asyncio.run(server.score([1] * 50, 33, K, "s"))
    assert server.asked[0] is None
    assert len(server.asked) == 2
    assert whose(score) == {server.asked[1]}
    assert (score.computed, score.private) == (17 + 50, 1)
    again = asyncio.run(server.score([1] * 60, 51, K, "s", score.private))
    assert whose(again) == whose(score)
    assert (again.computed, again.private) == (10, score.private)
    assert len(server.asked) == 3


@pytest.mark.parametrize("private", [0, 1])
def test_what_withdrawn_questions_left_in_the_caches_is_no_obstacle(private: int) -> None:
    server = Scoring(33)
    before = asyncio.run(server.score([1] * 40, 33, K, "s")).private if private else 0
    for length in (50, 60, 70):  # answers nobody took: asked again from the same token on
        score = asyncio.run(server.score([1] * length, 41, K, "s", before))
        assert whose(score) == {str(server.asked[-1])}
    assert server.asked[-1] is not None


def test_keys_of_two_sequences_differ() -> None:
    server = Scoring(33)
    for name in ("s", "t"):
        asyncio.run(server.score([1] * 50, 33, K, name))
    assert len({*server.asked}) == 3


@pytest.mark.parametrize(("length", "allowed"), [(99, True), (100, False)])
def test_a_sequence_beyond_the_context_is_refused(length: int, allowed: bool) -> None:
    """One token is generated for the next token's row, so one less than the context."""
    if allowed:
        asyncio.run(Scoring().score([1] * length, 1, K, "s"))
    else:
        with pytest.raises(
            ValueError, match="a sequence of 100 tokens, the engine's context allows 99"
        ):
            asyncio.run(Scoring().score([1] * length, 1, K, "s"))


class Prefill:
    """Stands for vLLM's engine while it scores: prompt rows, then one generated token."""

    def __init__(self, text: Text, silent: bool = False):
        self.text, self.silent, self.requests, self.aborted = text, silent, [], []
        self.output_processor = SimpleNamespace(request_states={})

    async def add_request(self, request_id: str, prompt: Any, params: SamplingParams) -> Any:
        self.requests.append((prompt, params))
        processor = LogprobsProcessor.from_new_request(
            None, SimpleNamespace(sampling_params=params)
        )
        state = SimpleNamespace(logprobs_processor=processor)
        self.output_processor.request_states[f"internal-{request_id}"] = state
        return SimpleNamespace(request_id=f"internal-{request_id}", get=lambda: self._get(state))

    async def _get(self, state: Any) -> Any:
        await asyncio.sleep(3600 if self.silent else 0)
        length, text = len(self.requests[-1][0]["prompt_token_ids"]), self.text
        ids = torch.tensor(np.c_[text.tokens, text.top][1:length])
        log_probs = torch.tensor(np.c_[text.sampled, text.log_probs][1:length])
        state.logprobs_processor._update_prompt_logprobs(
            LogprobsTensors(ids, log_probs, torch.zeros(len(ids)))
        )
        flat = FlatLogprobs()
        next_ids, next_log_probs = (
            [0, *text.top[length].tolist()],
            [0.0, *text.log_probs[length].tolist()],
        )
        append_logprobs_for_next_position(flat, next_ids, next_log_probs, [None] * (K + 1), 1, K)
        return SimpleNamespace(
            finished=True, outputs=[SimpleNamespace(logprobs=flat)], num_cached_tokens=8
        )

    async def abort(self, request_id: str, internal: bool) -> None:
        self.aborted.append((request_id, internal))


def scoring(engine: Prefill) -> Server:
    server = Server()
    server.engine = engine
    return server


@pytest.mark.parametrize("start", [9, 15, 20])
def test_rows_are_those_from_the_start_to_the_next_token(start: int) -> None:
    text = Text(30)
    engine = Prefill(text)
    score = asyncio.run(scoring(engine).score([1] * 20, start, K, "s"))
    np.testing.assert_array_equal(score.rows.ids, text.top[start:20])
    np.testing.assert_array_equal(score.rows.log_probs, text.log_probs[start:20])
    np.testing.assert_array_equal(score.sampled, text.sampled[start:20])
    np.testing.assert_array_equal(score.ahead.ids, text.top[20:21])
    np.testing.assert_array_equal(score.ahead.log_probs, text.log_probs[20:21])
    arrays = (score.rows.log_probs, score.sampled, score.ahead.log_probs)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert {score.rows.ids.dtype, score.ahead.ids.dtype} == {np.dtype(np.int32)}
    assert score.computed == 12
    ((prompt, params),) = engine.requests
    assert "cache_salt" not in prompt
    assert (params.max_tokens, params.prompt_logprobs, params.logprobs) == (1, K, K)
    # vLLM's default with prompt log-probs reads no cache.
    assert params.skip_reading_prefix_cache is False


def test_chosen_ids_are_looked_up_in_a_wider_row_that_stays_here() -> None:
    text, wanted = Text(30), np.full((11, 2), VOCAB + 5, dtype=np.int32)
    wanted[:, 0] = text.top[9:20, 2]  # the third most likely of each; the other is none of them
    engine = Prefill(text)
    score = asyncio.run(scoring(engine).score([1] * 20, 9, 1, "s", 0, At(wanted, K)))
    np.testing.assert_array_equal(score.rows.ids, text.top[9:20, :1])
    smallest = text.log_probs[9:20, 2:]
    np.testing.assert_array_equal(score.rows.chosen.log_probs, smallest.repeat(2, 1))
    assert score.rows.chosen.outside.tolist() == [[False, True]] * 11
    np.testing.assert_array_equal(score.ahead.ids, text.top[20:21])
    ((_, params),) = engine.requests
    assert (params.prompt_logprobs, params.logprobs) == (K, K)
    with pytest.raises(ValueError, match=r"^chosen ids: got 11 rows, allowed: 10, one per token$"):
        asyncio.run(scoring(engine).score([1] * 20, 10, 1, "s", 0, At(wanted, K)))


def test_a_private_score_has_a_key() -> None:
    engine = Prefill(Text(30))
    asyncio.run(scoring(engine).score([1] * 20, 9, K, "s", 1))
    assert engine.requests[0][0]["cache_salt"]


def test_an_asker_who_goes_away_ends_the_scoring() -> None:
    engine = Prefill(Text(30), silent=True)

    async def body() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(scoring(engine).score([1] * 20, 9, K, "s"), 0.01)

    asyncio.run(body())
    ((request_id, internal),) = engine.aborted
    assert internal
    assert request_id in engine.output_processor.request_states


def test_an_engine_that_died_is_told_from_a_server_that_errs() -> None:
    class Dead(Prefill):
        async def _get(self, state: Any) -> Any:
            raise EngineDeadError

    server = scoring(Dead(Text(30)))
    server._server_address, server._server_port = "10.0.0.1", 1234
    with pytest.raises(DeadServer, match=r"^the engine of 10\.0\.0\.1:1234 is dead$"):
        asyncio.run(server.score([1] * 20, 9, K, "s"))


# ---------------------------------------------------------------------------------- verl's registry


def test_verl_starts_our_servers_under_its_own_name(monkeypatch) -> None:
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    register("vllm")
    assert RolloutReplicaRegistry.get("vllm") is TopKReplica


def test_the_replicas_servers_are_ours(monkeypatch) -> None:
    monkeypatch.setattr(vllm_server.vLLMReplica, "__init__", lambda self, *args, **kwargs: None)
    replica = TopKReplica("config", replica_rank=0)
    assert replica.server_class.__ray_metadata__.class_name == "TopKHttpServer"
