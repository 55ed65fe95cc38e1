"""A training response: verl's agent loop under the budget's limit, with the gate, and scored by teacher servers."""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

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
        limit, client = kwargs.pop(LIMIT, None), self.server_manager
        if limit is None:
            return await super().run(sampling_params, **kwargs)
        # One dict is shared by all samples of a prompt: copied, not changed.
        sampling_params = {**sampling_params, "max_tokens": int(limit)}
        if not isinstance(client, TeachingClient):
            return await super().run(sampling_params, **kwargs)
        gated = GatedGeneration(client) if client.prune_opd.gate.enable else None
        self.server_manager = gated or client
        output = await super().run(sampling_params, **kwargs)
        if client.prune_opd.teacher.serves:
            await client.teach(output, gated.teacher_rows if gated else None)
        return output
