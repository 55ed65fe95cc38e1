"""Advantage of Prune-OPD: the pruned reward itself, registered with verl as ``prune_opd``. (METHOD:
section 3.3)"""

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

NAME = "prune_opd"


@register_adv_est(NAME)
def prune_opd_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """A = r' on generated tokens: no baseline, no whitening, no discount; returns = A.

    Args:
        token_level_rewards: (B, T, K') float, reward per candidate token, already weighted.
        response_mask: (B, T) bool or 0/1.
        **kwargs: what verl passes to other estimators; not used.

    Returns:
        Two times (B, T, K').

    Raises:
        ValueError: the reward is per token, as a stock trainer's is.
    """
    if token_level_rewards.dim() != 3 or token_level_rewards.shape[:2] != response_mask.shape:
        raise ValueError(
            f"algorithm.adv_estimator: {NAME} needs rewards per candidate token, (B, T, K), got"
            f" shape {tuple(token_level_rewards.shape)} with mask {tuple(response_mask.shape)}; set"
            " trainer.v1.trainer_mode=prune_opd and trainer.use_v1=True, or start with"
            " +recipe=prune_opd"
        )
    advantages = token_level_rewards * response_mask.bool().unsqueeze(-1)
    return advantages, advantages
