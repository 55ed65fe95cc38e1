"""verl's replay buffer for steps of a few seconds: it looks for finished responses more often."""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_SECONDS = 0.2
"""verl's own is 2, as long as a whole rollout here."""


class QuickReplayBuffer(ReplayBuffer):
    """verl's synchronous replay buffer with a shorter wait between two looks.

    Args:
        **kwargs: what verl gives a custom sampler. Filtering of groups is none of that.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, poll_interval=POLL_SECONDS)
