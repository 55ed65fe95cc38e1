"""A run of an agent loop, seen from the servers: its responses, under their limit and gate."""

from contextlib import AsyncExitStack
from typing import Any

from typing_extensions import Self
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.teacher.answers import NOTHING, Known
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.training.followed_response import ReportedResponse
from recipe.prune_opd.training.gated_response import DRIFT, GatedResponse
from recipe.prune_opd.training.response import Request, Response, cut


class Trajectory:
    """Client of one run of an agent loop: the one method of ``LLMServerClient`` that loops call.

    A loop that asks about a prompt which goes on from no response so far begins another, under the
    same limit. Once the gate has stopped one, the loop gets no more tokens.

    Args:
        client: of the rollout servers, or what has its ``generate``.
        limit: most tokens of a response.
    """

    def __init__(self, client: Any, limit: int):
        self.client, self.limit = client, int(limit)
        self.loop: Any = None
        """The agent loop, which learns from its ``response_length`` where it was stopped: verl's
        would still call a tool that was named before the stop."""
        self.responses: list[Response] = []
        self._sequences = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._sequences.aclose()

    async def generate(
        self,
        request_id: str,
        *,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        **kwargs: Any,
    ) -> TokenOutput:
        """See ``LLMServerClient.generate``.

        Raises:
            ValueError: there is a gate, and the prompt has images, video or audio.
        """
        if any(response.stop is not None for response in self.responses):
            return TokenOutput(token_ids=[], stop_reason=DRIFT)
        request = Request(request_id, list(prompt_ids), sampling_params, kwargs)
        known = (one for one in reversed(self.responses) if one.goes_on(request.prompt_ids))
        response = next(known, None) or await self._open(request.prompt_ids)
        output = await response.generate(request)
        if response.stop is not None:
            self.loop.response_length = response.stop
        return output

    async def _open(self, prompt_ids: list[int]) -> Response:
        self.responses.append(await self._new(prompt_ids))
        return self.responses[-1]

    async def _new(self, prompt_ids: list[int]) -> Response:
        client = self.client
        if not isinstance(client, TeachingClient):
            return Response(client, prompt_ids, self.limit)
        if not client.prune_opd.gate.enable:
            kind = ReportedResponse if client.keeps_student else Response
            return kind(client, prompt_ids, self.limit)
        size = len(prompt_ids), client.prune_opd.topk, client.vocab_size
        # A client of a home of the user's own need know nothing of wide rows.
        opened = client.teacher.sequence(*size, **({"wide": client.wide} if client.wide else {}))
        sequence = await self._sequences.enter_async_context(opened)
        return GatedResponse(client, prompt_ids, self.limit, sequence)

    def finish(self, output: AgentLoopOutput) -> Known:
        """Cut an output of the loop to its limit, or to where it was stopped, with what was found
        out about it in its ``extra_fields``.

        Returns:
            See ``Response.report_on``.
        """
        response = next((one for one in self.responses if one.is_of(output)), None)
        stop = response.stop if response else None
        cut(output, self.limit if stop is None else stop)
        return response.report_on(output) if response else NOTHING
