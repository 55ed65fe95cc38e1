"""Task rewards beside distillation: estimators that make an advantage of them."""

from omegaconf import DictConfig

from recipe.prune_opd.checks.code import import_libraries
from recipe.prune_opd.config import PruneOPDConfig, require, shown
from recipe.prune_opd.config.task_reward import ESTIMATOR

REFUSED = {
    "gae": "it needs a critic",
    "remax": "verl's V1 trainers generate no greedy response to compare with",
    "optimal_token_baseline": "it needs a pass that sums squared probabilities",
    "tir_optimal_token_baseline": "it needs a pass that sums squared probabilities",
}
"""Estimators of verl's that cannot be had here, and why."""


def check_task_reward(config: DictConfig, prune_opd: PruneOPDConfig) -> None:
    """Check that there is an estimator for the task's reward, and that rollouts are on-policy.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it, resolved.

    Raises:
        ValueError: names the key, what was found and what is allowed.
    """
    if not prune_opd.task_reward.factor:
        return
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    name = config.algorithm.adv_estimator
    if name not in ADV_ESTIMATOR_REGISTRY:
        import_libraries(config)  # which may bring it
    known = sorted(ADV_ESTIMATOR_REGISTRY.keys() - REFUSED.keys() - {ESTIMATOR})
    if name not in known:
        why = f", because {REFUSED[name]}" if name in REFUSED else ""
        allowed = f"{ESTIMATOR} for distillation alone, or {', '.join(known)}"
        raise ValueError(f"algorithm.adv_estimator: got {shown(name)}, allowed: {allowed}{why}")
    allowed = "0 or null with semi.enable: cached rollouts are not the policy's"
    require(not prune_opd.semi.enable, "task_reward.coef", prune_opd.task_reward.coef, allowed)
