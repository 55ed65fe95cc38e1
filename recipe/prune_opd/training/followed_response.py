"""A training response whose candidates the rollout's servers report as they generate it.

Shapes: T tokens of a response, N of them the student's, in order; K candidates.
"""

import asyncio
from collections.abc import Iterable

import numpy as np
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.teacher.answers import NOTHING, Known
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.training.response import Request, Response
from verl_ext.rollout.client import FollowedResponse
from verl_ext.rollout.rows import Chunk, TopKRows, missing_rows

ABORTED = ("abort", "aborted")
"""Stop reasons of a response that verl goes on with."""


class PlacedRows:
    """Rows of some tokens of a response."""

    def __init__(self) -> None:
        self.places: list[int] = []
        """Positions in the response, N, ascending."""
        self._rows: list[TopKRows] = []
        """(N, K) together."""

    def add(self, begin: int, rows: TopKRows) -> None:
        """Take in the rows of tokens from ``begin`` on."""
        self.places += range(begin, begin + len(rows))
        self._rows.append(rows)

    def forget(self, kept: int) -> None:
        """Forget what is known of tokens from ``kept`` on."""
        count = sum(place < kept for place in self.places)
        if count < len(self.places):
            self.places = self.places[:count]
            self._rows = [TopKRows.join(*self._rows)[:count]]

    def within(self, mask: Iterable[int]) -> np.ndarray:
        """Tell which places a mask (T,) has, (N,) bool."""
        held, places = np.array(mask, dtype=bool), np.array(self.places, dtype=int)
        own = places < len(held)
        own[own] = held[places[own]]
        return own

    def spread(self, mask: list[int], topk: int, chosen: bool = False) -> TopKRows:
        """Rows (T, K) of all tokens, missing where there are none or the mask has none.

        Args:
            mask: (T,), 1 on the student's tokens.
            topk: K.
            chosen: the rows have log-probs at chosen ids.
        """
        own = self.within(mask)
        if not own.any():
            return missing_rows(len(mask), topk, chosen)
        return TopKRows.join(*self._rows)[own].spread(np.array(self.places)[own], len(mask))


class ReportedResponse(Response):
    """A response with the student's candidates at each of its tokens.

    Args:
        client: reaches the rollout's servers.
        prompt_ids: of the first turn.
        limit: most tokens behind the prompt.
    """

    def __init__(self, client: TeachingClient, prompt_ids: list[int], limit: int):
        super().__init__(client, prompt_ids, limit)
        self.student = PlacedRows()

    def _forget(self, kept: int) -> None:
        self.student.forget(kept)

    async def _answer(self, request: Request) -> TokenOutput:
        turn = FollowedTurn(self.client, request)
        output = await turn.run(self.client.prune_opd.gate.chunk_for(self.limit))
        self._take_in(turn)
        return output

    def _take_in(self, turn: "FollowedTurn") -> None:
        """Keep the candidates of the turn's tokens, where somebody needs them."""
        if turn.student:
            rows = TopKRows.join(*turn.student)[: turn.kept]
            self.student.add(len(self.tokens), rows)

    def report_on(self, output: AgentLoopOutput) -> Known:
        """See ``Response``; what a loop has masked out is none of the student's."""
        if not self.client.keeps_student:
            return NOTHING
        return Known(student=self.student.spread(output.response_mask, self.client.prune_opd.topk))


class FollowedTurn:
    """One turn that is generated and reported in chunks.

    Args:
        client: reaches the rollout's servers.
        request: with ``max_tokens``.
    """

    def __init__(self, client: TeachingClient, request: Request):
        self.client, self.request, self.prompt_ids = client, request, request.prompt_ids
        priority = request.more.get("priority")
        self.priority = {"priority": priority} if priority else {}
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.student: list[TopKRows] = []
        self._generating: FollowedResponse | None = None

    @property
    def kept(self) -> int | None:
        """Tokens of the turn that are kept; None where it is not stopped."""
        return None

    async def run(self, chunk: int) -> TokenOutput:
        """Generate, and return what verl's ``generate`` would, cut at the stop.

        Args:
            chunk: tokens between two reports.
        """
        return self._result(await self._generate(chunk))

    async def _hear(self, part: Chunk) -> None:
        """Take in a chunk."""
        self.tokens += part.token_ids
        self.log_probs += part.sampled_log_probs.tolist()
        if self.client.keeps_student:
            self.student.append(part.rows)

    async def _generate(self, chunk: int) -> TokenOutput:
        """Generate to the end or the stop, going on after every abort by somebody else (a weight
        update)."""
        params, first = dict(self.request.sampling_params), None
        limit = params["max_tokens"]
        while True:
            params["max_tokens"] = limit - len(self.tokens)
            async with self.client.follow(
                self.request.request_id,
                self.prompt_ids + self.tokens,
                params,
                topk=self.client.prune_opd.topk,
                chunk=chunk,
                **self.priority,
            ) as self._generating:
                async for part in self._generating:
                    await self._hear(part)
            output = self._generating.output
            assert output is not None
            first = first or output
            aborted = output.stop_reason in ABORTED
            if aborted and self.kept is None and len(self.tokens) < limit:
                await asyncio.sleep(1)  # as verl's own resuming client does
                if self.kept is None:
                    continue
            return _whole(output, first)

    def _result(self, output: TokenOutput) -> TokenOutput:
        stop, experts = self.kept, output.routed_experts
        wanted = self.request.sampling_params.get("logprobs")
        if stop is not None and experts is not None:
            experts = experts[: len(self.prompt_ids) + stop]
        return TokenOutput(
            token_ids=self.tokens[:stop],
            log_probs=self.log_probs[:stop] if wanted else None,
            routed_experts=experts,
            stop_reason=output.stop_reason,
            num_preempted=output.num_preempted,
            extra_fields=output.extra_fields,
        )


def _whole(last: TokenOutput, first: TokenOutput) -> TokenOutput:
    """The last request's output, standing for all requests of the turn."""
    if last.stop_reason in ABORTED:  # at the limit, or stopped: nothing is left to go on with
        last.stop_reason = "length"
    versions = first.extra_fields.get("global_steps"), last.extra_fields.get("global_steps")
    last.extra_fields["num_cached_tokens"] = first.extra_fields.get("num_cached_tokens")
    last.extra_fields["min_global_steps"], last.extra_fields["max_global_steps"] = versions
    return last
