"""SGLang's server with the methods of ``vllm_server``: ``follow`` a response, ``score`` a sequence.

Everything else (weight sync, memory, LoRA, radix cache) is verl's, inherited.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from numpy.typing import NDArray
from sglang.srt.managers.io_struct import GenerateReqInput
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.sglang_rollout.async_sglang_server import SGLangHttpServer, SGLangReplica

from verl_ext import compat
from verl_ext.rollout.following import Following
from verl_ext.rollout.rows import RAW, RESERVED, At, Chunk, Score, TopKRows, check_room

ORIGINAL = "SGLANG_RETURN_ORIGINAL_LOGPROB"
"""Variable of SGLang's processes: log-probs are those before temperature, top-p and top-k."""
MESSAGES = 16
"""Messages per chunk from SGLang's scheduler: each costs some tokens, too few delay a chunk."""
Entries = list[tuple[float, int, Any]]
"""Triples (log-prob, id, text) as SGLang gives them."""


def read_rows(rows: list[Entries], topk: int) -> TopKRows:
    """Candidates (N, K) as SGLang gives them, by rank, with the token itself among them or not."""
    values = np.array(
        [[(value, token) for value, token, *_ in row] for row in rows], dtype=np.float64
    )
    values = values.reshape(len(rows), topk, 2)
    return TopKRows(values[:, :, 1].astype(np.int32), values[:, :, 0].astype(np.float32))


def read_sampled(entries: Entries) -> NDArray[np.float32]:
    """Log-probs (N,) of the tokens themselves."""
    return np.array([value for value, *_ in entries], dtype=np.float32)


def observe(following: Following, info: dict[str, Any], finished: bool) -> None:
    """Report what is new in the cumulative ``meta_info`` of a request."""
    # A request that is aborted before its first token has none.
    sampled: Entries = info.get("output_token_logprobs") or []
    due = following.due(len(sampled), finished)
    if due is not None:
        rows = read_rows(info["output_top_logprobs"][due], following.topk)
        token_ids = [token for _, token, *_ in sampled[due]]
        following.queue.put_nowait(Chunk(token_ids, rows, read_sampled(sampled[due])))


class FollowedManager:
    """Tokenizer manager as verl's server sees it: followed requests report what they generate."""

    def __init__(self, manager: Any):
        self._manager = manager
        self.followed: dict[str, Following] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    async def generate_request(
        self, request: GenerateReqInput, http: Any = None
    ) -> AsyncIterator[dict[str, Any]]:
        """See ``TokenizerManager.generate_request``; a followed one gives its last output only."""
        following = self.followed.get(request.rid)
        if following is None:
            async for output in self._manager.generate_request(request, http):
                yield output
            return
        request.stream, request.return_logprob, request.top_logprobs_num = (
            True,
            True,
            following.topk,
        )
        request.sampling_params["stream_interval"] = max(1, following.chunk // MESSAGES)
        finished = False
        try:
            async for output in self._manager.generate_request(request, http):
                info = output["meta_info"]
                finished = info["finish_reason"] is not None
                observe(following, info, finished)
        finally:
            if not finished:  # the reader went away: SGLang would generate to the end
                self._manager.abort_request(request.rid)
        # Of a response aborted while it waits for memory SGLang gives the last token alone.
        output["output_ids"] = [token for _, token, *_ in info.get("output_token_logprobs") or []]
        yield output


class TopKSGLangServer(SGLangHttpServer):
    """Server of one node of a replica."""

    async def launch_server(self, *args: Any, **kwargs: Any) -> None:
        """See ``SGLangHttpServer``."""
        if self.config.logprobs_mode == RAW:
            os.environ[ORIGINAL] = "1"
        await super().launch_server(*args, **kwargs)
        self.tokenizer_manager: Any = FollowedManager(self.tokenizer_manager)

    async def follow(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        topk: int,
        chunk: int,
        **kwargs: Any,
    ) -> AsyncIterator[Chunk | TokenOutput]:
        """See ``TopKHttpServer.follow``; ``priority`` is not passed on: SGLang knows none.

        Raises:
            ValueError: the engine reports processed log-probs.
        """
        if self.config.logprobs_mode != RAW:
            raise ValueError(
                f"rollout.logprobs_mode: got {self.config.logprobs_mode!r}, allowed to follow:"
                f" {RAW!r}"
            )
        kwargs.pop("priority", None)
        following = Following(len(prompt_ids), topk, chunk)
        self.tokenizer_manager.followed[request_id] = following
        generation = self.generate(prompt_ids, sampling_params, request_id, **kwargs)
        try:
            async with aclosing(following.until(generation)) as items:
                async for item in items:
                    yield item
        finally:
            del self.tokenizer_manager.followed[request_id]

    async def abort(self, request_id: str) -> None:
        """See ``TopKHttpServer.abort``."""
        self.tokenizer_manager.abort_request(request_id)

    async def score(
        self,
        token_ids: list[int],
        start: int,
        topk: int,
        sequence_id: str,
        private: int = 0,
        at: At | None = None,
    ) -> Score:
        """See ``TopKHttpServer.score``; no cache is private: SGLang computes every row asked for.

        Its ``token_ids_logprob`` takes the same ids for all tokens: those of all of them would be
        more than a wide top k.

        Raises:
            ValueError: the sequence is too long, or ``at`` has not a row for each token.
        """
        context = self.tokenizer_manager.context_len - RESERVED["sglang"]
        check_room(token_ids, min(self.config.max_model_len - 1, context))
        wide = at.wide if at else topk
        request = GenerateReqInput(
            rid=uuid4().hex,
            input_ids=token_ids,
            sampling_params={"max_new_tokens": 1, "temperature": 1.0},
            return_logprob=True,
            logprob_start_len=start - 1,  # the first row of an answer is always empty
            top_logprobs_num=wide,
        )
        generation = self.tokenizer_manager.generate_request(request, None)
        try:
            info = (await anext(generation))["meta_info"]
        except asyncio.CancelledError:  # the asker went away
            self.tokenizer_manager.abort_request(request.rid)
            raise
        found = info["input_top_logprobs"][1:], info["output_top_logprobs"][:1]
        rows, ahead = (read_rows(part, wide) for part in found)
        computed = len(token_ids) - info["cached_tokens"]
        rows = rows.narrowed(topk, at) if at else rows
        return Score(rows, read_sampled(info["input_token_logprobs"][1:]), computed, ahead, private)


class TopKSGLangReplica(SGLangReplica):
    """Replica of verl's whose servers are ours."""

    def __init__(self, *args: Any, **kwargs: Any):
        compat.check("sglang")
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(TopKSGLangServer)
