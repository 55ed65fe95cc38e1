"""The budget's limit on its way to the rollout server: an agent loop that caps ``max_tokens`` and turns the gate on."""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from recipe.prune_opd.grading import TOKENS, TRUNCATED
from recipe.prune_opd.inflight import GatedClient

LIMIT = "prune_opd_limit"
"""Batch field, int: the most tokens a response may have. Training prompts carry it, validation prompts do not."""


@register("prune_opd")
class LimitedAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop under the current response limit."""

    server_manager: Any

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See ``SingleTurnAgentLoop``."""
        limit = kwargs.pop(LIMIT, None)
        if limit is not None:
            # One dict is shared by all samples of a prompt: copied, not changed.
            sampling_params = {**sampling_params, "max_tokens": int(limit)}
            if isinstance(self.server_manager, GatedClient):
                self.server_manager = self.server_manager.gated()
        output = await super().run(sampling_params, **kwargs)
        if limit is None:
            # verl hands these to the reward function as part of extra_info; its dumps hold the decoded text alone.
            tokens = len(output.response_ids)
            output.extra_fields.update({TOKENS: tokens, TRUNCATED: tokens >= self.response_length})
        return output
