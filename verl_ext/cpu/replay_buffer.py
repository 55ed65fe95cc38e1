"""verl's replay buffers for steps of a few seconds: they look for finished responses more often."""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

POLL_SECONDS = 0.2
"""verl's own is 2, as long as a whole rollout here."""


def quick_replay_buffer(trainer_mode: str, **given: Any) -> ReplayBuffer:
    """The replay buffer of a trainer mode with a shorter wait between two looks.

    Args:
        trainer_mode: verl's name.
        **given: what else verl gives a custom sampler. Filtering of groups is none of that.
    """
    kind = ReplayBuffer if trainer_mode == "sync" else ReplayBufferAsync
    return kind(trainer_mode=trainer_mode, **given, poll_interval=POLL_SECONDS)
