"""An agent loop that knows the solution: a training response ends with its first wrong word.

The bound of what a gate can save on a task whose solution is unique, for ``savings.py``.
"""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from recipe.prune_opd.training.response import cut
from recipe.prune_opd.training.trajectory import Trajectory


@register("perfect_stop")
class PerfectStop(SingleTurnAgentLoop):
    """verl's loop, and a cut behind the first token that is not the ground truth's."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See ``SingleTurnAgentLoop``."""
        output = await super().run(sampling_params, **kwargs)
        if not isinstance(self.server_manager, Trajectory):  # in validation
            return output
        truth = self.tokenizer.encode(
            kwargs["reward_model"]["ground_truth"], add_special_tokens=False
        )
        pairs = enumerate(zip(output.response_ids, truth, strict=False))
        cut(output, next((at + 1 for at, (one, other) in pairs if one != other), len(truth)))
        return output
