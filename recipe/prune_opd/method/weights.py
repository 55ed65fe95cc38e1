"""Weight of a token in the loss: the paper's reliability, or a baseline's. (METHOD: paper section
3.2)

Drift events, R and E are the same whatever weighs: they decide where responses are stopped and how
long the next ones may be.

Shapes: B sequences, T response positions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from recipe.prune_opd.method.drift import MOST_WEIGHT, Reliability
from recipe.prune_opd.method.registry import Registry

if TYPE_CHECKING:
    from recipe.prune_opd.method.reward import Scores

LARGEST, SMALLEST = 1e30, 1e-8
"""Discrepancy in nats that stands for an infinite one, and the least that a sum is divided by."""


class TokenWeight(ABC):
    """Rule for what a token weighs in the loss."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Optional parts of ``Scores`` it reads. Which homes of the teacher serve it follows."""

    @abstractmethod
    def weigh(self, reliability: Reliability, scores: "Scores", mask: Tensor) -> Tensor:
        """Weigh the tokens of a batch.

        Args:
            reliability: R and E of the batch, and the paper's L.
            scores: of both models, with all that the rule ``needs``.
            mask: (B, T) bool, tokens that count.

        Returns:
            L, (B, T) float32; 0 outside of ``mask``.
        """


class ReliabilityWeight(TokenWeight):
    """Weights ``reliability``, the paper's: L = R + w_base."""

    def weigh(self, reliability: Reliability, scores: "Scores", mask: Tensor) -> Tensor:
        """See ``TokenWeight``."""
        return reliability.loss_weight


@dataclass(frozen=True)
class ImportanceWeight(TokenWeight):
    """Weights ``importance``, those of IW-OPD ("On the Position Bias of On-Policy Distillation",
    arXiv:2606.22600, Algorithm 1).

    With A_t = log q(y_t) - log p(y_t) at the sampled token, over the tokens of one response:

        L_t = 1 + γ (1 - Σ_{i<t} |A_i| / Σ_i |A_i|)

    It falls from 1 + γ at the first token to at least 1 at the last, by each token's share of the
    whole discrepancy, however large that is. A response on which the models agree exactly weighs
    1 + γ throughout. R plays no part.
    """

    needs = ("sampled",)
    gamma: float = 0.5
    """γ, 0 to ``MOST_WEIGHT``: added to the weight of the first token. Default: the paper's, whose
    released script has a largest weight of 1.5."""

    def __post_init__(self) -> None:
        if isinstance(self.gamma, bool) or not 0 <= self.gamma <= MOST_WEIGHT:
            raise ValueError(f"gamma must be a number from 0 to {MOST_WEIGHT}")

    def __str__(self) -> str:
        return f"importance, γ = {self.gamma}"

    def weigh(self, reliability: Reliability, scores: "Scores", mask: Tensor) -> Tensor:
        """See ``TokenWeight``."""
        assert scores.sampled is not None
        student, teacher = scores.sampled.student.double(), scores.sampled.teacher.double()
        # Two infinite ones are alike, and their difference would be NaN.
        gaps = torch.where(student == teacher, 0.0, (teacher - student).abs())
        # Where a model gives the token probability 0, finite numbers still tell before from after.
        gaps = torch.where(mask, gaps.clamp(max=LARGEST), 0.0)
        before, whole = gaps.cumsum(-1) - gaps, gaps.sum(-1, keepdim=True).clamp(min=SMALLEST)
        weight = 1 + self.gamma * (1 - (before / whole).clamp(0, 1))
        return torch.where(mask, weight, 0.0).float()


@dataclass(frozen=True)
class FirstTokens(TokenWeight):
    """Weights ``first``: 1 on the first ``tokens`` of a response, 0 behind them.

    The loss of responses that were truncated there, as in distillation of short prefixes, while
    what is generated, logged and validated stays as it is.
    """

    tokens: int
    """Response positions that count, >= 1."""

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or self.tokens < 1:
            raise ValueError("tokens must be a whole number >= 1")

    def __str__(self) -> str:
        return f"first {self.tokens} tokens alone"

    def weigh(self, reliability: Reliability, scores: "Scores", mask: Tensor) -> Tensor:
        """See ``TokenWeight``."""
        return (mask & (torch.arange(mask.shape[-1], device=mask.device) < self.tokens)).float()


WEIGHTS: Registry[TokenWeight] = Registry(
    "prune_opd.drift.weights",
    TokenWeight,
    reliability=ReliabilityWeight,
    importance=ImportanceWeight,
    first=FirstTokens,
)
