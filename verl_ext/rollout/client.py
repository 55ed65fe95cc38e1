"""Clients of the servers: one follows responses, one lets a teacher score sequences while they grow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_ext.rollout.rows import Chunk, Score, TopKRows, check_score


class FollowedResponse:
    """A response that is being generated: iterate over its chunks, ``abort`` it, take its ``output`` in the end."""

    def __init__(self, server: ActorHandle, request_id: str, **arguments: Any):
        self._server, self._request_id = server, request_id
        self._stream = server.follow.options(num_returns="streaming").remote(request_id=request_id, **arguments)
        self.output: TokenOutput | None = None
        """What ``generate`` would have returned, once the iteration is over."""

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for reference in self._stream:
            item = await reference
            if isinstance(item, Chunk):
                yield item
            else:
                self.output = item

    async def abort(self) -> None:
        """End it where it is; the iteration goes on to what it has."""
        await self._server.abort.remote(self._request_id)


class FollowingClient(LLMServerClient):
    """verl's client of the rollout servers, which can also follow a response."""

    @asynccontextmanager
    async def follow(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **arguments: Any
    ) -> AsyncIterator[FollowedResponse]:
        """One response, on the server that verl's load balancer chooses.

        Args:
            request_id: for sticky routing.
            prompt_ids: as in ``generate``.
            sampling_params: as in ``generate``.
            **arguments: ``topk`` and ``chunk`` of the server's ``follow``, and what its ``generate`` takes.
        """
        arguments |= {"prompt_ids": prompt_ids, "sampling_params": sampling_params}
        server_id, server = await self._acquire_server(request_id, **arguments)
        try:
            yield FollowedResponse(server, self._vllm_request_id(request_id), **arguments)
        finally:
            self._release_server(server_id, request_id=request_id)


class ScoringClient(LLMServerClient):
    """verl's client of a teacher's servers, which can also score a sequence again and again while it grows."""

    @asynccontextmanager
    async def sequence(self, prompt_length: int, topk: int, vocab_size: int) -> AsyncIterator["GrowingSequence"]:
        """One sequence: it stays with the replica that holds its prefix.

        Args:
            prompt_length: tokens before the first that is scored, >= 1.
            topk: K.
            vocab_size: ids of the teacher's answers are below it.
        """
        sequence = GrowingSequence(self, uuid4().hex, prompt_length, topk, vocab_size)
        try:
            yield sequence
        finally:
            sequence.release()

    async def drop(self, server_id: str) -> None:
        """Take a dead replica out of the rotation: verl's load balancer does not look."""
        await self._load_balancer.remove_servers.remote([server_id])


@dataclass
class GrowingSequence:
    """What a teacher has said so far about one sequence. Every token is scored once."""

    client: ScoringClient
    sequence_id: str
    scored: int
    """Tokens, prompt included, that need no more score."""
    topk: int
    vocab_size: int
    computed: int = 0
    """Tokens the teacher ran through its model so far."""
    private: int = 0

    def __post_init__(self) -> None:
        self._ahead: TopKRows | None = None  # the row of the token after the scored ones, which comes with an answer
        self._server: tuple[str, ActorHandle] | None = None

    async def score(self, token_ids: list[int], deadline: float) -> TopKRows:
        """The teacher's rows of the tokens that were not scored yet.

        Args:
            token_ids: the whole sequence so far, longer than at the last call.
            deadline: seconds to wait for the answer.

        Returns:
            One row per token from ``scored`` on. After an error nothing has changed: the next call covers it.

        Raises:
            TimeoutError: no answer in time.
            BadScore: the answer is no use.
            Exception: what the server raised.
        """
        ahead = 0 if self._ahead is None else 1
        answer = await self._ask(token_ids, self.scored + ahead, deadline)
        new = len(token_ids) - self.scored
        check_score(answer, new + 1 - ahead, self.topk, self.vocab_size)
        rows = answer.rows if self._ahead is None else TopKRows.join(self._ahead, answer.rows)
        self.scored, self.private, self._ahead = len(token_ids), answer.private, rows[new:]
        return rows[:new]

    async def _ask(self, token_ids: list[int], start: int, deadline: float) -> Score:
        try:
            answer = await asyncio.wait_for(self._ask_server(token_ids, start), deadline)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no answer within {deadline} s") from None
        self.computed += answer.computed
        return answer

    async def _ask_server(self, token_ids: list[int], start: int) -> Score:
        if self._server is None:
            self._server = await self.client._acquire_server(self.sequence_id)
        server_id, server = self._server
        reference = server.score.remote(token_ids, start, self.topk, self.sequence_id, self.private)
        try:
            return await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except ActorDiedError:
            self._server = None
            await self.client.drop(server_id)
            raise

    def release(self) -> None:
        """Tell the load balancer that this sequence is over."""
        if self._server is not None:
            self.client._release_server(self._server[0], request_id=self.sequence_id)
            self._server = None
