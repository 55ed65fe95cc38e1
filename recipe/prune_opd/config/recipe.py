"""All keys of ``prune_opd``, and the rules of the method that they make."""

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from recipe.prune_opd.config.base import (
    Keys,
    Nats,
    Natural,
    Positive,
    Seconds,
    recipe,
    require,
)
from recipe.prune_opd.config.rules import BudgetConfig, DriftConfig, GateConfig
from recipe.prune_opd.config.semi import SemiConfig
from recipe.prune_opd.config.task_reward import TaskRewardConfig
from recipe.prune_opd.config.teacher import TeacherConfig
from recipe.prune_opd.method.budget import BUDGETS
from recipe.prune_opd.method.gates import Gate, GateRule
from recipe.prune_opd.method.pruning import Rules
from recipe.prune_opd.method.reward import STRATEGIES, WEIGHTINGS


class RecordsConfig(Keys):
    """Records that a run writes down beside verl's logs, for ``python -m recipe.prune_opd
    report``."""

    dir: str | None = recipe(None, "${trainer.default_local_dir}/records")
    """Folder, where a resumed run finds it again; null: no records."""
    every: Natural = 20
    """Steps from one look at single tokens to the next; the first step has one too. 0: none."""
    samples: Positive = 4
    """Responses that are kept token by token each time, from the least reliable to the most."""
    topk: Positive = 5
    """Candidates of each model kept per token, at most ``topk`` of the run."""

    def samples_at(self, step: int) -> bool:
        """Tell whether tokens of this step, counted from 1, are kept."""
        return self.every > 0 and (step == 1 or step % self.every == 0)


MODES = ("sync", "colocate_async", "separate_async")
"""verl's own trainers, by its names."""


class PruneOPDConfig(Keys):
    """All of ``prune_opd.*``."""

    trainer_mode: str = "sync"
    """Trainer that the method is put over: verl's ``sync``, ``colocate_async``, ``separate_async``,
    one of your own that is registered with verl, or ``package.module:Name`` of one. A
    ``trainer.v1.trainer_mode`` on the command line is taken for it."""
    resume: Literal["strict", "any"] = "strict"
    """Checkpoints to go on from. ``strict``: of the same teachers, k, γ, drift metric and strategy.
    ``any``: of others, too."""
    deadline: Seconds | None = 1800.0
    """Seconds without the end of a step after which a run that has lost one of its processes (a
    trainer's worker, a rollout server, an agent-loop worker) is ended; null: verl waits for ever.
    Longer than a step and a validation take."""
    teacher: TeacherConfig
    student: Literal["trainer", "rollout"] = "trainer"
    """Who tells the student's candidates with their log-probs, and the old log-probs: a pass of the
    ``trainer``, or the ``rollout``'s servers while they generate, which saves that pass, as verl's
    ``bypass_mode`` does. The latter with ``gate.enable`` or a teacher on servers."""
    topk: Positive = 16
    """k: candidates per position of each model; at most the smaller vocabulary."""
    strategy: str = "only_stu"
    """Candidates that are rewarded: ``only_stu``, ``only_tch``, ``intersection``, ``union``,
    ``union_intersection``, ``sampled``."""
    strategy_args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of a strategy of your own."""
    weighting: str = "student_p"
    """Weight of a candidate: ``student_p``, ``teacher_p``, ``none``. ``sampled`` ignores it."""
    weighting_args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of a weighting of your own."""
    reward_clip: Nats | None = None
    """Largest |log p - log q| of a candidate, nats; null: any, as in the paper. For a teacher that
    is far surer than the student: without a bound few tokens make up the gradient."""
    loss_normaliser: Literal["generated", "reliable"] = "generated"
    """Divisor of the loss: ``generated`` tokens (the paper's), or the ``reliable`` ones
    among them (R > 0), whose number does not change when a response is stopped at R = 0."""
    dump_dir: str | None = None
    """Folder for the tensors behind every step (ids, log-probs, weights, advantages), one file per
    data-parallel rank, which all ranks of a sequence-parallel group share, and update. Large."""
    task_reward: TaskRewardConfig = TaskRewardConfig()
    drift: DriftConfig = DriftConfig()
    budget: BudgetConfig = BudgetConfig()
    gate: GateConfig = GateConfig()
    semi: SemiConfig = SemiConfig()
    records: RecordsConfig = RecordsConfig()

    @model_validator(mode="after")
    def _buildable(self) -> "PruneOPDConfig":
        BUDGETS.find(self.budget.rule)  # built once its lengths are known
        rules, _ = self.rules, self.gate_rule
        self.semi.check(self.gate.enable, list(self.teacher.models))
        if self.gate.enable:
            known = rules.metric.ranks_only or self.teacher.temperature == 1
            servers = "servers report probabilities at temperature 1"
            allowed = f"1 with gate.enable and drift.metric={self.drift.metric}: {servers}"
            require(known, "teacher.temperature", self.teacher.temperature, allowed)
            allowed = f"a metric of both top k alone with gate.enable, not of {rules.metric.needs}"
            require(not rules.metric.needs, "drift.metric", self.drift.metric, allowed)
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out the rules: wherever this is sent they are resolved anew, by their names."""
        return {**super().__getstate__(), "__dict__": self.own()}

    @cached_property
    def rules(self) -> Rules:
        """Rules that ``prune`` goes by."""
        drift, key = self.drift, "prune_opd.weighting_args"
        weighting = WEIGHTINGS.build(self.weighting, self.weighting_args, key, {})
        key = "prune_opd.strategy_args"
        strategy = STRATEGIES.build(self.strategy, self.strategy_args, key, {})
        return Rules(
            metric=drift.build(),
            w_drop=drift.w_drop,
            w_base=drift.w_base,
            applied=drift.enable,
            strategy=strategy,
            weighting=weighting,
            weights=drift.build_weights(),
            reward_clip=math.inf if self.reward_clip is None else self.reward_clip,
            by_turn=drift.scope == "turn",
        )

    @cached_property
    def gate_rule(self) -> GateRule:
        """Rule that stops a response."""
        return self.gate.build(self.drift.w_drop)

    def new_gate(self, before: Iterable[bool] = ()) -> Gate:
        """A gate for one response, or for a turn of it.

        Args:
            before: drift events of the student's tokens in earlier turns, which stopped nothing.
        """
        gate, events = Gate(self.gate_rule, self.gate.min_tokens), list(before)
        if self.drift.scope == "turn":
            return Gate(self.gate_rule, max(1, self.gate.min_tokens - len(events)))
        gate.feed(events)
        return gate
