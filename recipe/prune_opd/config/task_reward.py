"""Keys of ``prune_opd.task_reward``: the task's own reward beside distillation."""

from typing import Literal

from recipe.prune_opd.config.base import Keys, Weight, require

ESTIMATOR = "prune_opd"
"""Name of our advantage in verl's registry of estimators: distillation alone."""


class TaskRewardConfig(Keys):
    """Policy gradient of the task's reward, beside distillation."""

    coef: Weight | None = None
    """Factor of the advantages that ``algorithm.adv_estimator`` makes of task rewards. null: 1
    where that is an estimator of verl's or of your own, 0 where it is ``prune_opd``, distillation
    alone."""
    responses: Literal["all", "ended"] = "all"
    """Responses whose task reward is trained on. ``ended``: those that ended by themselves, as what
    limit or gate cut is graded as it stands. They stay in the estimator's groups."""

    @property
    def factor(self) -> float:
        """``coef``, once resolved; above 0 where task rewards are trained on."""
        return self.coef or 0.0

    def resolved(self, estimator: str) -> "TaskRewardConfig":
        """The same with its factor.

        Args:
            estimator: ``algorithm.adv_estimator``.

        Raises:
            ValueError: factor and estimator do not go together.
        """
        alone = estimator == ESTIMATOR
        if self.coef is None:
            return self.changed(coef=0.0 if alone else 1.0)
        if alone:
            allowed = (
                f"0 or null with algorithm.adv_estimator={ESTIMATOR}, others with grpo or such"
            )
            require(self.coef == 0, "task_reward.coef", self.coef, allowed)
        elif self.coef == 0:
            raise ValueError(
                f"algorithm.adv_estimator: got {estimator!r}, allowed with"
                f" prune_opd.task_reward.coef=0: {ESTIMATOR}, because task rewards are not trained"
                " on"
            )
        return self
