"""A training response: verl's agent loop under the budget's limit, with the gate, and scored by
teacher servers; or one out of the cache of Semi-OPD."""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.grading import TOKENS, TRUNCATED
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.training.fields import LIMIT
from recipe.prune_opd.training.gated_response import GatedGeneration
from recipe.prune_opd.training.replayed_response import PLACES, Replay


class HeardGeneration:
    """The one method of ``LLMServerClient`` that agent loops call, and why the engine ended the
    response."""

    def __init__(self, client: Any):
        self._client = client
        self.stop_reason: str | None = None

    async def generate(self, *args: Any, **kwargs: Any) -> TokenOutput:
        """See ``LLMServerClient.generate``."""
        output = await self._client.generate(*args, **kwargs)
        self.stop_reason = output.stop_reason
        return output


def is_cut(stop_reason: str | None, tokens: int, room: int) -> bool:
    """Tell whether a response was cut, as the engine says it.

    verl's SGLang server passes on ``stop`` and ``length``. Its vLLM server says ``completed`` for
    both, so there, and where nothing is said, a response counts as cut that fills its room.

    Args:
        stop_reason: of verl's ``TokenOutput``.
        tokens: of the response.
        room: most tokens that the engine could generate.
    """
    if stop_reason in ("stop", "length"):
        return stop_reason == "length"
    return tokens >= room


@register("prune_opd")
class LimitedAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop under the current response limit."""

    server_manager: Any

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See ``SingleTurnAgentLoop``."""
        limit, places = kwargs.pop(LIMIT, None), kwargs.pop(PLACES, None)
        if limit is None:
            return await self._validate(sampling_params, kwargs)
        # One dict is shared by all samples of a prompt: copied, not changed.
        sampling_params = {**sampling_params, "max_tokens": int(limit)}
        if places is not None:
            return await self._replay(sampling_params, kwargs, places)
        return await self._train(sampling_params, kwargs)

    async def _validate(
        self, sampling_params: dict[str, Any], kwargs: dict[str, Any]
    ) -> AgentLoopOutput:
        self.server_manager = generation = HeardGeneration(self.server_manager)
        output = await super().run(sampling_params, **kwargs)
        tokens, prompt = len(output.response_ids), len(output.prompt_ids)
        longest = self.rollout_config.max_model_len
        room = (
            self.response_length if longest is None else min(self.response_length, longest - prompt)
        )
        # verl hands these to the reward function as part of extra_info; its dumps hold the decoded
        # text alone.
        output.extra_fields.update(
            {TOKENS: tokens, TRUNCATED: is_cut(generation.stop_reason, tokens, room)}
        )
        return output

    async def _replay(
        self, sampling_params: dict[str, Any], kwargs: dict[str, Any], places: str
    ) -> AgentLoopOutput:
        self.server_manager = replay = Replay(places, kwargs["session_id"])
        output = await super().run(sampling_params, **kwargs)
        replay.teach(output.extra_fields)
        return output

    async def _train(
        self, sampling_params: dict[str, Any], kwargs: dict[str, Any]
    ) -> AgentLoopOutput:
        client = self.server_manager
        if not isinstance(client, TeachingClient):
            return await super().run(sampling_params, **kwargs)
        gated = GatedGeneration(client) if client.prune_opd.gate.enable else None
        self.server_manager = gated or client
        output = await super().run(sampling_params, **kwargs)
        if client.teaches:
            await client.teach(output, gated.teacher_rows if gated else None)
        return output
