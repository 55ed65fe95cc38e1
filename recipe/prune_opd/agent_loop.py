"""A training response: verl's agent loop under the budget's limit, with the gate, and scored by teacher servers."""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from recipe.prune_opd.grading import TOKENS, TRUNCATED
from recipe.prune_opd.inflight import GatedGeneration
from recipe.prune_opd.teaching import TeachingClient

LIMIT = "prune_opd_limit"
"""Batch field, int: the most tokens a response may have. Training prompts carry it, validation prompts do not."""


@register("prune_opd")
class LimitedAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop under the current response limit."""

    server_manager: Any

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See ``SingleTurnAgentLoop``."""
        limit = kwargs.pop(LIMIT, None)
        if limit is None:
            return await self._validate(sampling_params, kwargs)
        # One dict is shared by all samples of a prompt: copied, not changed.
        return await self._train({**sampling_params, "max_tokens": int(limit)}, kwargs)

    async def _validate(self, sampling_params: dict[str, Any], kwargs: dict[str, Any]) -> AgentLoopOutput:
        output = await super().run(sampling_params, **kwargs)
        # verl hands these to the reward function as part of extra_info; its dumps hold the decoded text alone.
        tokens = len(output.response_ids)
        output.extra_fields.update({TOKENS: tokens, TRUNCATED: tokens >= self.response_length})
        return output

    async def _train(self, sampling_params: dict[str, Any], kwargs: dict[str, Any]) -> AgentLoopOutput:
        client = self.server_manager
        if not isinstance(client, TeachingClient):
            return await super().run(sampling_params, **kwargs)
        gated = GatedGeneration(client) if client.prune_opd.gate.enable else None
        self.server_manager = gated or client
        output = await super().run(sampling_params, **kwargs)
        if client.prune_opd.teacher.serves:
            await client.teach(output, gated.teacher_rows if gated else None)
        return output
