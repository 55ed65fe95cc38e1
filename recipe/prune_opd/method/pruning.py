"""Prune-OPD in one function: from what both models say of a batch to the advantages of its update.

Training calls ``prune``; the in-flight gate and the records ask the same rules. (METHOD: paper
section 3)

Shapes: B sequences, T response positions, K' candidates of the reward.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from recipe.prune_opd.method.drift import DriftMetric, Reliability, reliability, turn_starts
from recipe.prune_opd.method.reward import Scores, Strategy, TopKReward, Weighting, topk_reward
from recipe.prune_opd.method.weights import TokenWeight


@dataclass(frozen=True)
class Rules:
    """Choices of a configuration about a batch."""

    metric: DriftMetric
    w_drop: float
    w_base: float
    applied: bool
    """False: events are measured and every token weighs 1, as in plain OPD."""
    strategy: Strategy
    weighting: Weighting
    weights: TokenWeight
    reward_clip: float = math.inf
    """Largest |log p - log q| of a candidate, nats."""
    by_turn: bool = False
    """Events are counted anew in every turn of the student, not over the whole response."""

    @property
    def drift_needs(self) -> tuple[str, ...]:
        """Optional parts of ``Scores`` that ``find_drift`` reads, each once."""
        weights = self.weights.needs if self.applied else ()
        return tuple(dict.fromkeys((*self.metric.needs, *weights)))

    @property
    def needs(self) -> tuple[str, ...]:
        """Optional parts of ``Scores`` that the rules read, each once."""
        return tuple(dict.fromkeys((*self.strategy.needs, *self.drift_needs)))


@dataclass(frozen=True)
class Drift:
    """Places where responses have drifted, and what that leaves of their weight."""

    mask: Tensor
    """(B, T) bool, tokens that count."""
    overlap: Tensor
    """O, (B, T) float32, whatever the metric."""
    events: Tensor
    """D, (B, T) bool."""
    reliability: Reliability
    """R, L and E. Its ``loss_weight`` is what the loss applies."""


@dataclass(frozen=True)
class Pruned(Drift):
    """A batch ready for its update."""

    reward: TopKReward
    """r, before it is weighted."""
    advantages: Tensor
    """A = L r on tokens that count, (B, T, K') float32."""


def prune(scores: Scores, mask: Tensor, rules: Rules, generated: Tensor | None = None) -> Pruned:
    """Weigh every candidate's reward by how far its response has drifted.

    Args:
        scores: of both models on the responses.
        mask: (B, T) bool, tokens that the student generated and the teacher scored.
        rules: of the configuration.
        generated: see ``find_drift``.

    Raises:
        ValueError: ``scores`` lacks what the strategy needs.
    """
    drift = find_drift(scores, mask, rules, generated)
    reward = topk_reward(scores, rules.strategy, rules.weighting, rules.reward_clip)
    weighted = reward.reward * drift.reliability.loss_weight.unsqueeze(-1)
    # Not by a product: what does not count may hold NaN.
    advantages = weighted.masked_fill_(~mask.unsqueeze(-1), 0.0)
    return Pruned(**vars(drift), reward=reward, advantages=advantages)


def find_drift(
    scores: Scores, mask: Tensor, rules: Rules, generated: Tensor | None = None
) -> Drift:
    """Find where responses have drifted: the first half of ``prune``.

    Args:
        scores: as for ``prune``.
        mask: as for ``prune``.
        rules: of the configuration.
        generated: (B, T) bool, tokens that the student generated, scored or not: they say where
            turns begin. None: those of ``mask``.
    """
    events = rules.metric.events(scores, mask)
    starts = turn_starts(mask if generated is None else generated) if rules.by_turn else None
    found = reliability(events, mask, rules.w_drop, rules.w_base, starts)
    weight = rules.weights.weigh(found, scores, mask) if rules.applied else mask.float()
    return Drift(mask, scores.overlap, events, replace(found, loss_weight=weight))
