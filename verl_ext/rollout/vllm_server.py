"""Server of vLLM, as verl's, that can also ``follow`` a response and ``score`` a sequence.

Everything else (weight sync, sleep, admission, LoRA, prefix cache) is verl's, inherited.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from numpy.typing import NDArray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import RequestOutput
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsTensors

from verl_ext import compat
from verl_ext.rollout.following import Following
from verl_ext.rollout.rows import RAW, At, Chunk, DeadServer, Score, TopKRows, check_room


def observe(following: Following, output: RequestOutput) -> None:
    """Report what is new in the cumulative output of a request."""
    if not output.outputs:  # aborted before the first token
        return
    token_ids, logprobs = output.outputs[0].token_ids, output.outputs[0].logprobs
    due = following.due(len(token_ids), output.finished)
    if due is not None:
        chunk = _chunk(list(token_ids[due]), logprobs, due.start, due.stop, following.topk)
        following.queue.put_nowait(chunk)


def _chunk(token_ids: list[int], logprobs: FlatLogprobs, begin: int, end: int, topk: int) -> Chunk:
    ids, log_probs = _flat_rows(logprobs, begin, end, topk)
    return Chunk(token_ids, TopKRows(ids[:, 1:], log_probs[:, 1:]), log_probs[:, 0])


def _flat_rows(
    logprobs: FlatLogprobs, begin: int, end: int, topk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 1 + K) of positions begin to end: the token itself, then the K most likely."""
    part, shape = slice(begin * (topk + 1), end * (topk + 1)), (end - begin, topk + 1)
    ids = np.array(logprobs.token_ids[part], dtype=np.int32).reshape(shape)
    return ids, np.array(logprobs.logprobs[part], dtype=np.float32).reshape(shape)


class FollowedEngine:
    """Engine of vLLM as verl's server sees it: followed requests report what they generate."""

    def __init__(self, engine: Any):
        self._engine = engine
        self.followed: dict[str, Following] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncIterator[RequestOutput]:
        """See ``AsyncLLM.generate``."""
        following = self.followed.get(request_id)
        if following is not None:
            sampling_params = sampling_params.clone()
            sampling_params.logprobs = following.topk
            sampling_params.flat_logprobs = True  # keeps the sampled token and the top k apart
            sampling_params.detokenize = False  # would more than double the cost of log-probs
        async for output in self._engine.generate(prompt, sampling_params, request_id, **kwargs):
            if following is not None:
                observe(following, output)
                if output.finished and output.outputs:
                    output.outputs[0].logprobs = _sampled_alone(
                        output.outputs[0].logprobs, following.topk
                    )
            yield output


def _sampled_alone(logprobs: FlatLogprobs, topk: int) -> list[dict[int, Logprob]]:
    """Log-probs as verl reads them; left flat, they would become K + 1 objects, 8 µs per token."""
    column = slice(None, None, topk + 1)
    sampled = zip(logprobs.token_ids[column], logprobs.logprobs[column], strict=True)
    return [{token: Logprob(log_prob)} for token, log_prob in sampled]


@dataclass
class TailLogprobs(LogprobsProcessor):
    """Last rows of a prompt, kept as arrays; vLLM's own class makes objects of every row.

    Counted from the end, because only that is the same in vLLM's two model runners: the older one
    hands over a row for every token but the first, those of cached tokens with whatever was in
    memory, the newer one only what it computed. Both do so in one piece, when the prompt is
    through.
    """

    wanted: int = 0
    topk: int = 0

    def __post_init__(self) -> None:
        shape = (0, self.topk + 1)
        self._ids = np.zeros(shape, dtype=np.int32)
        self._log_probs = np.zeros(shape, dtype=np.float32)

    @property
    def rows(self) -> TopKRows:
        """Candidates (N, K)."""
        return TopKRows(self._ids[:, 1:], self._log_probs[:, 1:])

    @property
    def sampled(self) -> NDArray[np.float32]:
        """Log-probs (N,) of the prompt's tokens themselves, which vLLM puts first."""
        return self._log_probs[:, 0]

    def _update_prompt_logprobs(self, prompt_logprobs_tensors: LogprobsTensors) -> None:
        ids, log_probs = prompt_logprobs_tensors[:2]
        tail = slice(max(0, len(ids) - self.wanted), None)
        self._ids = np.asarray(ids[tail], dtype=np.int32)
        self._log_probs = np.asarray(log_probs[tail], dtype=np.float32)


class TopKHttpServer(vLLMHttpServer):
    """Server of one replica."""

    async def run_server(self, args: Any) -> None:
        """See ``vLLMHttpServer``."""
        await super().run_server(args)
        self.engine: Any = FollowedEngine(self.engine)

    async def follow(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        topk: int,
        chunk: int,
        **kwargs: Any,
    ) -> AsyncIterator[Chunk | TokenOutput]:
        """Generate as verl's ``generate`` does, and report chunks on the way.

        What ``generate`` returns comes last.

        Args:
            prompt_ids: as in ``generate``.
            sampling_params: as in ``generate``.
            request_id: as in ``generate``; ``abort`` takes it.
            topk: K of the chunks' rows.
            chunk: see ``Following``.
            **kwargs: as in ``generate``.

        Raises:
            ValueError: the engine reports processed log-probs, or fewer than ``topk``.
        """
        if self.config.logprobs_mode != RAW:
            raise ValueError(
                f"rollout.logprobs_mode: got {self.config.logprobs_mode!r}, allowed to follow:"
                f" {RAW!r}"
            )
        following = Following(len(prompt_ids), topk, chunk)
        self.engine.followed[request_id] = following
        generation = self.generate(prompt_ids, sampling_params, request_id, **kwargs)
        try:
            # Closed early, the generation is cancelled, and verl's generate then aborts it.
            async with aclosing(following.until(generation)) as items:
                async for item in items:
                    yield item
        finally:
            del self.engine.followed[request_id]

    async def abort(self, request_id: str) -> None:
        """End a followed response where it is. What it has so far is still reported."""
        await self.engine.abort(request_id)

    async def score(
        self,
        token_ids: list[int],
        start: int,
        topk: int,
        sequence_id: str,
        private: int = 0,
        at: At | None = None,
    ) -> Score:
        """Rows from token ``start`` on, and of the next token, at the cost of the uncached tail.

        vLLM computes no row for a token whose predecessor is in its prefix cache. A sequence scored
        before has only tokens before ``start`` there, its next token's row having come with the
        last answer. Where another sequence, or a question without a usable answer, has left more,
        the score is made again under a cache key of its own; ``private``, the number of that key,
        is to be passed from then on.

        Args:
            token_ids: prompt and response so far.
            start: first token whose row is wanted, >= 1.
            topk: K.
            sequence_id: the same for all calls about one sequence.
            private: as in the last answer about this sequence.
            at: ids to look up in a wider top k, a row for each token from ``start`` on: vLLM scores
                no chosen ids of a prompt. The wide rows stay here but for the next token's.

        Raises:
            ValueError: the sequence is too long, or ``at`` has not a row for each token.
            DeadServer: the engine is gone, and will not come back.
        """
        check_room(token_ids, self.config.max_model_len - 1)
        wide, computed = at.wide if at else topk, 0
        while True:
            cache_salt = f"{sequence_id}/{private}" if private else None
            tail, ahead, cached = await self._tail(token_ids, start, wide, cache_salt)
            computed += len(token_ids) - cached
            if cached < start:
                rows = tail.rows.narrowed(topk, at) if at else tail.rows
                return Score(rows, tail.sampled, computed, ahead, private)
            private += 1

    async def _tail(
        self, token_ids: list[int], start: int, topk: int, cache_salt: str | None
    ) -> tuple[TailLogprobs, TopKRows, int]:
        """Rows, the next token's row, and the number of cached tokens: up to it no row is valid."""
        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=topk,
            logprobs=topk,  # of the token generated here: the next token's row
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=False,
        )
        prompt = TokensPrompt(prompt_token_ids=token_ids)
        if cache_salt is not None:
            prompt["cache_salt"] = cache_salt
        try:
            output, tail = await self._read(prompt, params, len(token_ids) - start)
        except EngineDeadError as error:
            raise DeadServer(
                f"the engine of {self._server_address}:{self._server_port} is dead"
            ) from error
        ids, log_probs = _flat_rows(output.outputs[0].logprobs, 0, 1, topk)
        return tail, TopKRows(ids[:, 1:], log_probs[:, 1:]), output.num_cached_tokens or 0

    async def _read(
        self, prompt: TokensPrompt, params: SamplingParams, wanted: int
    ) -> tuple[RequestOutput, TailLogprobs]:
        queue = await self.engine.add_request(uuid4().hex, prompt, params)
        state = self.engine.output_processor.request_states[queue.request_id]
        tail = TailLogprobs(**vars(state.logprobs_processor), wanted=wanted, topk=params.logprobs)
        state.logprobs_processor = tail
        try:
            while not (output := await queue.get()).finished:
                pass
        except asyncio.CancelledError:  # the asker went away
            await self.engine.abort(queue.request_id, internal=True)
            raise
        return output, tail


class TopKReplica(vLLMReplica):
    """Replica of verl's whose servers are ours."""

    def __init__(self, *args: Any, **kwargs: Any):
        compat.check("vllm")
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(TopKHttpServer)
