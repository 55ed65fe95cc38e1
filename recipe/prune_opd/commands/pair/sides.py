"""Two sides of a response: before its first token that the teacher would not accept, and after it.

What a drift metric is worth shows there: it should have fewer events on the tokens before.

Shapes: B responses, T positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.prune_opd.method.drift import TeacherTopPAccept
from recipe.prune_opd.method.reward import Scores

NUCLEUS = "teacher_top_p_accept"
"""Name of the drift metric that looks at the sampled token alone."""
SAME_RATIO = 1.25
"""Events per token after, as a multiple of those before, up to which a metric separates nothing.
The overlap of small models had .69 before an error and .72 after it, a ratio of 1.04, where the
nucleus had .03 and .20."""
FEW_TOKENS = 20
"""Tokens of a side below which it says nothing."""


@dataclass(frozen=True)
class Sides:
    """Tokens of responses by side, each (B, T) bool."""

    before: Tensor
    """Before the first rejected token, or all tokens where none is rejected."""
    first: Tensor
    """The first rejected token."""
    after: Tensor
    """After it."""

    @property
    def until(self) -> Tensor:
        """Tokens up to and including the first rejected one: rates of rejection count it."""
        return self.before | self.first


def sides_of(events: Tensor, mask: Tensor) -> Sides:
    """Part responses at their first event.

    Args:
        events: (B, T) bool.
        mask: (B, T) bool, tokens that count.
    """
    rejected = events & mask
    count = rejected.long().cumsum(-1)
    first = rejected & (count == 1)
    return Sides(mask & (count == 0), first, mask & (count > 0) & ~first)


def rejections(scores: Scores, mask: Tensor, top_p: float) -> Tensor:
    """Sampled tokens that the teacher would not accept, (B, T) bool.

    Args:
        scores: of both models.
        mask: (B, T) bool.
        top_p: probability of the teacher's nucleus.
    """
    return TeacherTopPAccept(top_p).events(scores, mask)


@dataclass(frozen=True)
class Separation:
    """Events per token of a metric on both sides of the first rejected token."""

    before: float
    after: float
    tokens: tuple[int, int]
    """Of each side."""

    @property
    def known(self) -> bool:
        """Both sides have tokens enough."""
        return min(self.tokens) >= FEW_TOKENS

    @property
    def none(self) -> bool:
        """The metric has about as many events before as after."""
        return self.known and self.before > 0 and self.after <= SAME_RATIO * self.before

    def __str__(self) -> str:
        return f"{self.before:.2f} events per token before, {self.after:.2f} after"


def separation(events: Tensor, sides: Sides) -> Separation:
    """Compare a metric's events on both sides.

    Args:
        events: (B, T) bool.
        sides: of the same responses.
    """
    return _separation(events, sides.before, sides.after)


def rejection_rates(rejected: Tensor, sides: Sides) -> Separation:
    """Compare rejections on both sides; before the first there is none, so it counts there.

    Args:
        rejected: (B, T) bool.
        sides: made of them.
    """
    return _separation(rejected, sides.until, sides.after)


def _separation(events: Tensor, before: Tensor, after: Tensor) -> Separation:
    tokens = int(before.sum()), int(after.sum())
    return Separation(_rate(events, before), _rate(events, after), tokens)


def _rate(events: Tensor, side: Tensor) -> float:
    return torch.where(side, events, False).sum().item() / max(1, int(side.sum()))
