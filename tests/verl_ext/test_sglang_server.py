"""Our SGLang server gives every token's row once, and leaves other requests as they were.

The engine is scripted. Importing SGLang takes seconds.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from importlib.util import find_spec
from threading import Barrier, Semaphore
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from verl_ext.rollout.rows import At, Chunk, TopKRows

if find_spec("sglang") is None:
    pytest.skip("SGLang is not installed", allow_module_level=True)

from sglang.srt.managers.io_struct import GenerateReqInput
from verl.workers.rollout import replica
from verl.workers.rollout.replica import RolloutReplicaRegistry

from verl_ext import compat
from verl_ext.rollout import register
from verl_ext.rollout.following import Following

register("sglang")
TopKSGLangReplica = RolloutReplicaRegistry.get("sglang")
from verl_ext.rollout import sglang_server  # noqa: E402
from verl_ext.rollout.sglang_server import FollowedManager, TopKSGLangServer, observe  # noqa: E402

K, VOCAB = 3, 40


def test_two_threads_load_the_servers_at_once(monkeypatch):
    """verl's loader sets a variable and deletes it: the second of two that overlap found none."""
    inside = Semaphore(1)

    def one_at_a_time() -> None:
        assert inside.acquire(blocking=False)
        sleep(0.05)  # the other thread comes
        inside.release()

    monkeypatch.setattr(replica, "_load_sglang", one_at_a_time)
    both = Barrier(2)

    def load() -> Any:
        both.wait()
        return RolloutReplicaRegistry.get("sglang")

    with ThreadPoolExecutor(2) as threads:
        loads = [threads.submit(load) for _ in range(2)]
    assert [load.result() for load in loads] == [TopKSGLangReplica] * 2


class Text:
    """Sampled tokens and, for each, what SGLang reports: the token's log-prob, and the K most
    likely by rank."""

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

    def entries(self, part: slice) -> tuple[list[Any], list[Any]]:
        own = [
            (float(v), t, None) for v, t in zip(self.sampled[part], self.tokens[part], strict=True)
        ]
        rows = zip(self.log_probs[part], self.top[part], strict=True)
        return own, [[(float(v), int(i), None) for v, i in zip(*row, strict=True)] for row in rows]

    def output(
        self, count: int, finish: dict[str, Any] | None = None, prompt: int = 5
    ) -> dict[str, Any]:
        """The cumulative output of a request after ``count`` tokens."""
        own, top = self.entries(slice(0, count))
        info = {
            "finish_reason": finish,
            "output_token_logprobs": own,
            "output_top_logprobs": top,
            "cached_tokens": 2,
        }
        return {"output_ids": self.tokens[:count], "meta_info": info}


LENGTH, ABORT = {"type": "length"}, {"type": "abort"}


def drain(following: Following) -> list[Chunk]:
    items = [following.queue.get_nowait() for _ in range(following.queue.qsize())]
    return [item for item in items if item is not None]


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


@pytest.mark.parametrize("step", [1, 5, 30])
def test_chunks_hold_every_token_once(step: int) -> None:
    text, following = Text(50), Following(7, K, chunk=8)
    for count in [*range(1, 50, step), 50]:
        observe(following, text.output(count)["meta_info"], finished=count == 50)
    check_chunks(drain(following), text, 50)


@pytest.mark.parametrize(
    "info", [{}, {"output_token_logprobs": None}, {"output_token_logprobs": []}]
)
def test_an_abort_before_the_first_token_reports_nothing(info: dict[str, Any]) -> None:
    following = Following(4, K, chunk=8)
    observe(following, info, finished=True)
    assert following.queue.empty()


# -------------------------------------------------------------------------------------- the manager


class Manager:
    """Stands for SGLang's tokenizer manager: generates ``text`` a few tokens at a time."""

    context_len = 100

    def __init__(self, text: Text, finish: dict[str, Any] = LENGTH, silent: bool = False):
        self.text, self.finish, self.silent = text, finish, silent
        self.requests: list[GenerateReqInput] = []
        self.aborted: list[str] = []

    async def generate_request(
        self, request: GenerateReqInput, http: Any = None
    ) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(request)
        length = len(self.text.tokens)
        while self.silent:
            await asyncio.sleep(1)
        if request.stream:
            for count in range(1, length, 3):
                await asyncio.sleep(0)
                yield self.text.output(count)
        output = self.text.output(length, self.finish)
        if self.finish is ABORT:
            # As of a response that waited for memory.
            output["output_ids"] = output["output_ids"][-1:]
        yield output

    def abort_request(self, rid: str) -> None:
        self.aborted.append(rid)


def request(rid: str = "r") -> GenerateReqInput:
    return GenerateReqInput(
        rid=rid, input_ids=[1] * 5, sampling_params={"temperature": 0.5}, return_logprob=False
    )


async def outputs(manager: FollowedManager, asked: GenerateReqInput) -> list[Any]:
    return [output async for output in manager.generate_request(asked)]


def test_requests_nobody_follows_are_untouched() -> None:
    asked, manager = request(), Manager(Text(20))
    (output,) = asyncio.run(outputs(FollowedManager(manager), asked))
    assert output == manager.text.output(20, LENGTH)
    assert (asked.stream, asked.return_logprob, asked.sampling_params) == (
        False,
        False,
        {"temperature": 0.5},
    )


@pytest.mark.parametrize("finish", [LENGTH, ABORT])
def test_of_a_followed_request_only_the_last_output_comes_out(finish: dict[str, Any]) -> None:
    """verl takes the first and reads no more."""
    text = Text(20)
    manager = FollowedManager(Manager(text, finish))
    following = manager.followed["r"] = Following(5, K, chunk=32)
    asked = request()
    (output,) = asyncio.run(outputs(manager, asked))
    assert output["output_ids"] == text.tokens
    assert output["meta_info"]["finish_reason"] == finish
    check_chunks(drain(following), text, 20)
    assert (asked.stream, asked.return_logprob, asked.top_logprobs_num) == (True, True, K)
    assert asked.sampling_params == {"temperature": 0.5, "stream_interval": 2}
    assert manager.aborted == []


def test_all_else_is_the_managers() -> None:
    assert FollowedManager(Manager(Text(3))).context_len == Manager.context_len


# --------------------------------------------------------------------------------------- the server


class Server(TopKSGLangServer):
    """Without a Ray actor and an engine of its own; verl's ``generate`` is verl's."""

    lora_as_adapter = False

    def __init__(self, manager: Manager, **config: Any):
        given = {
            "logprobs_mode": "raw_logprobs",
            "max_model_len": 90,
            "enable_rollout_routing_replay": False,
        }
        given |= {
            "response_length": 50,
            "prompt_length": 40,
            "mtp": None,
            "skip_tokenizer_init": True,
        }
        self.config = SimpleNamespace(**given | config)
        self.tokenizer_manager = FollowedManager(manager)
        self._disaggregation_role, self.replica_rank, self.global_steps = "null", 0, 7


PARAMS = {"temperature": 1.0, "max_tokens": 20, "logprobs": True}


async def followed(server: Server, **kwargs: Any) -> list[Any]:
    return [item async for item in server.follow([1] * 5, dict(PARAMS), "r", K, 8, **kwargs)]


def test_follow_gives_chunks_and_then_what_generate_returns() -> None:
    text = Text(20)
    server = Server(Manager(text))
    *chunks, output = asyncio.run(followed(server, priority=3))
    check_chunks(chunks, text, 20)
    assert len(chunks) > 1
    assert output.token_ids == text.tokens
    np.testing.assert_array_equal(np.float32(output.log_probs), text.sampled)
    assert output.stop_reason == "length"
    assert output.extra_fields["global_steps"] == 7
    assert server.tokenizer_manager.followed == {}


def test_follow_raises_what_generate_raises() -> None:
    server = Server(Manager(Text(20)), max_model_len=3)
    with pytest.raises(ValueError, match="exceeds the model's maximum context length"):
        asyncio.run(followed(server))
    assert server.tokenizer_manager.followed == {}


def test_a_reader_who_goes_away_ends_the_request() -> None:
    manager = Manager(Text(20))

    async def leave() -> None:
        server = Server(manager)
        async with aclosing(server.follow([1] * 5, dict(PARAMS), "r", K, 8)) as items:
            async for _ in items:
                break
        await asyncio.sleep(0.01)
        assert server.tokenizer_manager.followed == {}

    asyncio.run(leave())
    assert manager.aborted == ["r"]


def test_processed_log_probs_cannot_be_followed() -> None:
    with pytest.raises(
        ValueError, match=r"^rollout.logprobs_mode: got 'processed_logprobs', allowed to follow"
    ):
        asyncio.run(followed(Server(Manager(Text(3)), logprobs_mode="processed_logprobs")))


def test_abort_reaches_the_engine() -> None:
    manager = Manager(Text(3))
    asyncio.run(Server(manager).abort("r"))
    assert manager.aborted == ["r"]


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_the_engine_is_told_which_log_probs_to_report(monkeypatch, mode: str) -> None:
    monkeypatch.delenv(sglang_server.ORIGINAL, raising=False)
    at_launch = []

    async def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        at_launch.append(os.environ.get(sglang_server.ORIGINAL))
        self.tokenizer_manager = Manager(Text(3))

    monkeypatch.setattr(sglang_server.SGLangHttpServer, "launch_server", launch)
    server = Server(Manager(Text(3)), logprobs_mode=mode)
    asyncio.run(server.launch_server())
    assert at_launch == ["1" if mode == "raw_logprobs" else None]
    assert isinstance(server.tokenizer_manager, FollowedManager)


# ------------------------------------------------------------------------------------------ scoring


class Prefill(Manager):
    """Answers a question about a prompt as SGLang does: rows from ``logprob_start_len`` on, the
    first of them empty."""

    async def generate_request(
        self, request: GenerateReqInput, http: Any = None
    ) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(request)
        while self.silent:
            await asyncio.sleep(1)
        start, length = request.logprob_start_len, len(request.input_ids)
        own, top = self.text.entries(slice(start, length))
        own[0], top[0] = (None, own[0][1], None), None
        info = {
            "finish_reason": LENGTH,
            "input_token_logprobs": own,
            "input_top_logprobs": top,
            "output_top_logprobs": self.text.entries(slice(length, length + 1))[1],
            "cached_tokens": 4,
        }
        yield {"output_ids": [1], "meta_info": info}


@pytest.mark.parametrize("start", [1, 9, 20])
def test_rows_are_those_from_the_start_to_the_next_token(start: int) -> None:
    text = Text(30)
    manager = Prefill(text)
    score = asyncio.run(Server(manager).score([1] * 20, start, K, "s", 0))
    np.testing.assert_array_equal(score.rows.ids, text.top[start:20])
    np.testing.assert_array_equal(score.rows.log_probs, text.log_probs[start:20])
    np.testing.assert_array_equal(score.sampled, text.sampled[start:20])
    np.testing.assert_array_equal(score.ahead.ids, text.top[20:21])
    np.testing.assert_array_equal(score.ahead.log_probs, text.log_probs[20:21])
    assert score.rows.ids.shape == (20 - start, K)
    assert {score.rows.ids.dtype, score.ahead.ids.dtype} == {np.dtype(np.int32)}
    assert (score.computed, score.private) == (16, 0)
    (asked,) = manager.requests
    assert asked.sampling_params == {"max_new_tokens": 1, "temperature": 1.0}
    assert (asked.return_logprob, asked.logprob_start_len, asked.top_logprobs_num) == (
        True,
        start - 1,
        K,
    )


def test_chosen_ids_are_looked_up_in_a_wider_row_that_stays_here() -> None:
    text = Text(30)
    wanted = np.full((11, 2), 10**6, dtype=np.int32)
    wanted[:, 0] = text.top[9:20, -1]  # the last of each; the other is none of them
    manager = Prefill(text)
    score = asyncio.run(Server(manager).score([1] * 20, 9, 1, "s", 0, At(wanted, K)))
    np.testing.assert_array_equal(score.rows.ids, text.top[9:20, :1])
    np.testing.assert_array_equal(
        score.rows.chosen.log_probs, text.log_probs[9:20, -1:].repeat(2, 1)
    )
    assert score.rows.chosen.outside.tolist() == [[False, True]] * 11
    np.testing.assert_array_equal(score.ahead.ids, text.top[20:21])
    assert manager.requests[0].top_logprobs_num == K


@pytest.mark.parametrize(
    ("length", "context", "allowed"),
    [(89, 100, True), (90, 100, False), (53, 60, True), (54, 60, False)],
)
def test_a_sequence_beyond_the_context_is_refused(length: int, context: int, allowed: bool) -> None:
    manager = Prefill(Text(100))
    manager.context_len = context
    score = Server(manager).score([1] * length, 9, K, "s")
    if allowed:
        asyncio.run(score)
    else:
        with pytest.raises(
            ValueError, match=rf"of {length} tokens, the engine's context allows {length - 1}$"
        ):
            asyncio.run(score)
        assert manager.requests == []


def test_an_asker_who_goes_away_ends_the_scoring() -> None:
    manager = Prefill(Text(30), silent=True)

    async def body() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(Server(manager).score([1] * 20, 9, K, "s"), 0.01)

    asyncio.run(body())
    assert manager.aborted == [manager.requests[0].rid]


# ---------------------------------------------------------------------------------- verl's registry


def test_verl_starts_our_servers_under_its_own_name() -> None:
    assert TopKSGLangReplica is sglang_server.TopKSGLangReplica


def test_the_replicas_servers_are_ours(monkeypatch) -> None:
    monkeypatch.setattr(sglang_server.SGLangReplica, "__init__", lambda self, *args, **kwargs: None)
    replica = TopKSGLangReplica("config", replica_rank=0)
    assert replica.server_class.__ray_metadata__.class_name == "TopKSGLangServer"


def test_everything_of_sglang_that_is_in_use_exists() -> None:
    assert compat.missing(compat.SGLANG_SYMBOLS) == []
