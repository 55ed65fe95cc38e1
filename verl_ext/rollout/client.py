"""Clients of the servers: one follows responses, one lets a teacher score growing sequences."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayError
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_ext.rollout.rotation import Rotation
from verl_ext.rollout.rows import (
    At,
    BadQuestion,
    Chunk,
    DeadServer,
    Score,
    TopKRows,
    check_score,
)

DEATHS = (ActorDiedError, NodeDiedError, OutOfMemoryError)
"""Ray's errors for a process that is gone; the last two are none of its ``RayActorError``."""

logger = logging.getLogger(__name__)


class FollowedResponse:
    """Response that is being generated: iterate over its chunks, then take its ``output``."""

    def __init__(self, server: ActorHandle, request_id: str, **arguments: Any):
        self._server, self._request_id = server, request_id
        self._stream = server.follow.options(num_returns="streaming").remote(
            request_id=request_id, **arguments
        )
        self.output: TokenOutput | None = None
        """Result that ``generate`` would have returned, once the iteration is over."""

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for reference in self._stream:
            item = await reference
            if isinstance(item, Chunk):
                yield item
            else:
                self.output = item

    async def abort(self) -> None:
        """End the response where it is; the iteration goes on to what it has."""
        try:
            await self._server.abort.remote(self._request_id)
        except RayError as error:  # what comes after the stop is dropped anyway
            logger.warning("a response could not be aborted and runs on: %s", error)

    def release(self) -> None:
        """Stop reading: a response that is still generated is ended."""
        if self.output is None:
            self._server.abort.remote(self._request_id)


class FollowingClient:
    """A client of verl's that can also follow a response.

    Args:
        client: of the rollout servers, whichever the trainer gives: one that goes on with aborted
            responses, or one of the user's own.
    """

    def __init__(self, client: LLMServerClient):
        self.client = client

    @property
    def config(self) -> Any:
        """Configuration of verl that the client was made with."""
        return self.client.config

    @property
    def tokenizer(self) -> Any:
        """What verl gives its client for the texts of a trace."""
        return self.client.tokenizer

    @tokenizer.setter
    def tokenizer(self, given: Any) -> None:
        self.client.tokenizer = given

    async def generate(self, *args: Any, **kwargs: Any) -> TokenOutput:
        """See ``LLMServerClient.generate``."""
        return await self.client.generate(*args, **kwargs)

    @asynccontextmanager
    async def follow(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        **arguments: Any,
    ) -> AsyncIterator[FollowedResponse]:
        """Follow one response, on the server that verl's load balancer chooses.

        Args:
            request_id: for sticky routing.
            prompt_ids: as in ``generate``.
            sampling_params: as in ``generate``.
            **arguments: ``topk`` and ``chunk`` of the server's ``follow``, and what its
                ``generate`` takes.
        """
        arguments |= {"prompt_ids": prompt_ids, "sampling_params": sampling_params}
        server_id, server = await self.client._acquire_server(request_id, **arguments)
        # A name of its own: under full_determinism verl gives one name to many responses.
        response = FollowedResponse(server, uuid4().hex, **arguments)
        try:
            yield response
        finally:
            response.release()
            self.client._release_server(server_id, request_id=request_id)


class ScoringClient(LLMServerClient):
    """Client of a teacher's servers, which score a sequence whole, or repeatedly as it grows.

    Args:
        config: verl's configuration.
        load_balancer_handle: verl's load balancer over the servers, for sequences that grow and
            stay with one of them.
        servers: their handles by the names that the load balancer has for them.
    """

    def __init__(
        self, config: Any, load_balancer_handle: ActorHandle, servers: dict[str, ActorHandle]
    ):
        super().__init__(config, load_balancer_handle)
        self._servers, self._rotation = servers, Rotation(list(servers), self._leave_balancer)

    def _leave_balancer(self, name: str) -> None:
        self._load_balancer.remove_servers.remote([name])

    @asynccontextmanager
    async def sequence(
        self, prompt_length: int, topk: int, vocab_size: int, wide: int = 0
    ) -> AsyncIterator["GrowingSequence"]:
        """Open one sequence, which stays with the replica that holds its prefix.

        Args:
            prompt_length: tokens before the first that is scored, >= 1.
            topk: K.
            vocab_size: ids of the teacher's answers are below it.
            wide: W, where it is asked at chosen ids, see ``At``; else 0.
        """
        sequence = GrowingSequence(self, uuid4().hex, prompt_length, topk, vocab_size, wide)
        try:
            yield sequence
        finally:
            sequence.release()

    async def score(
        self, token_ids: list[int], start: int, topk: int, at: At | None = None
    ) -> Score:
        """Score a whole sequence once, on the replica whose turn it is.

        verl's load balancer is not asked: it knows nothing of failures, and a replica that fails
        fast is always the least busy one.

        Args:
            token_ids: prompt and response.
            start: first token whose row is wanted, >= 1.
            topk: K.
            at: ids to score beside the teacher's own, a row for each token from ``start`` on.

        Raises:
            NoServer: no replica is left.
            BadQuestion: the sequence is longer than the engine's context.
            Exception: what the server raised.
        """
        question = (token_ids, start, topk, uuid4().hex, 0)
        with self._rotation.turn() as name:
            try:
                return await self.ask((name, self._servers[name]), *question, at=at)
            except ValueError as error:
                raise BadQuestion(str(error)) from error

    async def ask(
        self, server: tuple[str, ActorHandle], *question: Any, at: At | None = None
    ) -> Score:
        """Ask one replica; a dead one is asked no more, because verl's load balancer does not look.

        Raises:
            DeadServer: it will not come back.
            Exception: what the server raised.
        """
        name, handle = server
        reference = handle.score.remote(*question, *([] if at is None else [at]))
        try:
            return await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except (*DEATHS, DeadServer) as error:
            self._rotation.drop(name)
            # Ray's account of a kill for memory has sixty lines.
            said = str(error).strip().partition("\n")[0]
            raise DeadServer(f"{type(error).__name__}: {said}") from error


@dataclass
class GrowingSequence:
    """Scores of one sequence so far, by a teacher. Every token is scored once."""

    client: ScoringClient
    sequence_id: str
    scored: int
    """Tokens, prompt included, that need no more score."""
    topk: int
    vocab_size: int
    wide: int = 0
    """W, where the teacher is asked at chosen ids; else 0."""
    computed: int = 0
    """Tokens the teacher ran through its model so far."""
    private: int = 0

    def __post_init__(self) -> None:
        # The row of the token after the scored ones, which comes with an answer.
        self._ahead: TopKRows | None = None
        self._server: tuple[str, ActorHandle] | None = None
        self._question: tuple[asyncio.Future[Score], int, At | None] | None = None

    async def score(
        self, token_ids: list[int], deadline: float, ids: NDArray[np.int32] | None = None
    ) -> TopKRows:
        """Score the tokens that were not scored yet.

        A question that is not answered in time stays open, and the next call waits for its answer
        first: asked again, the teacher would do the work twice just when it has too much.

        Args:
            token_ids: the whole sequence so far, longer than at the last call.
            deadline: seconds to wait for the answer.
            ids: (N, K) to score beside the teacher's own, of the tokens from ``scored`` on; with
                ``wide`` alone.

        Returns:
            One row per token from ``scored`` on, to the end of the sequence or to where it was when
            a late question was asked. After an error nothing has changed.

        Raises:
            TimeoutError: no answer in time.
            BadScore: the answer is no use.
            Exception: what the server raised.
        """
        if self._question is None:
            at = None if ids is None else At(ids, self.wide)
            asked = asyncio.ensure_future(self._ask(token_ids, at))
            self._question = asked, len(token_ids), at
        question, end, at = self._question
        answer = await self._wait_for(question, deadline)
        self.computed += answer.computed
        first = [] if self._ahead is None else [self._ahead.narrowed(self.topk, at and at[:1])]
        new = end - self.scored - len(first)
        rows, ahead = check_score(answer, new, self.topk, self.vocab_size, self.wide)
        self.scored, self.private, self._ahead = end, answer.private, ahead
        return TopKRows.join(*first, rows)

    async def _wait_for(self, question: asyncio.Future[Score], deadline: float) -> Score:
        """The answer, unless it is late: then the question stays open."""
        try:
            answer = await asyncio.wait_for(asyncio.shield(question), deadline)
        except asyncio.TimeoutError:
            if not question.done():
                raise TimeoutError(f"no answer within {deadline} s") from None
            self._question = None
            raise
        except Exception:
            self._question = None
            raise
        self._question = None
        return answer

    def skip_to(self, tokens: int) -> None:
        """Leave tokens out that are not to be scored, such as a tool's, or take back what has been
        changed since.

        Args:
            tokens: prompt included, behind which the next score begins.
        """
        self.scored, self._ahead = tokens, None

    async def _ask(self, token_ids: list[int], at: At | None) -> Score:
        known = 0 if self._ahead is None else 1
        if self._server is None:
            self._server = await self.client._acquire_server(self.sequence_id)
        try:
            question = (token_ids, self.scored + known, self.topk, self.sequence_id, self.private)
            return await self.client.ask(self._server, *question, at=at and at[known:])
        except DeadServer:
            self._server = None
            raise

    def release(self) -> None:
        """Withdraw an open question and tell the load balancer that this sequence is over."""
        if self._question is not None:
            self._question[0].cancel()
        if self._server is not None:
            self.client._release_server(self._server[0], request_id=self.sequence_id)
            self._server = None
