"""An agent loop that knows the solution: a training response ends with its first wrong word.

The bound of what a gate can save on a task whose solution is unique, for ``savings.py``.
"""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register

from recipe.prune_opd.training.agent_loop import LIMIT, LimitedAgentLoop


@register("perfect_stop")
class PerfectStop(LimitedAgentLoop):
    """The method's loop, and a cut behind the first token that is not the ground truth's."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See ``LimitedAgentLoop``."""
        training = LIMIT in kwargs
        output = await super().run(sampling_params, **kwargs)
        if not training:
            return output
        truth = self.tokenizer.encode(
            kwargs["reward_model"]["ground_truth"], add_special_tokens=False
        )
        pairs = enumerate(zip(output.response_ids, truth, strict=False))
        keep = next((at + 1 for at, (one, other) in pairs if one != other), len(truth))
        output.response_ids = output.response_ids[:keep]
        output.response_mask = output.response_mask[:keep]
        if output.response_logprobs is not None:
            output.response_logprobs = output.response_logprobs[:keep]
        return output
