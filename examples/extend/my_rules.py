"""Three rules of one's own: a drift metric, a gate and a strategy, each a class of a few lines.

Nothing in the package knows this file. The command line names its classes; the README beside it has
the command.

Shapes: B responses, T response positions, K candidates per position.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.prune_opd.method.drift import DriftMetric, is_member
from recipe.prune_opd.method.gates import GateRule
from recipe.prune_opd.method.reward import (
    Candidates,
    Scores,
    Strategy,
    log_probs_of,
    possible,
)


@dataclass(frozen=True)
class UnlikelyToken(DriftMetric):
    """A token is an event where the teacher gives it less than a probability of ``least``.

    It reads no more than both models' top k, so the in-flight gate can use it. A token outside the
    teacher's top k counts as unlikely.
    """

    least: float = 0.05
    """Probability in [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise ValueError(f"least: got {self.least}, allowed: a number in [0, 1]")

    def events(self, scores: Scores, mask: Tensor) -> Tensor:
        """See ``DriftMetric``."""
        token = scores.responses.unsqueeze(-1)
        probability = log_probs_of(token, scores.teacher).exp().squeeze(-1)
        return (probability < self.least) & mask.bool()


@dataclass(frozen=True)
class Fading(GateRule):
    """The average of the events, in which a token counts half as much after ``half_life`` more
    tokens, is above ``rate``.

    Unlike a window it needs no minimal number of tokens: it starts from 0 and takes its time.
    """

    half_life: float
    """Tokens, > 0."""
    rate: float
    """Events per token in [0, 1); the key ``gate.rate``, as the parameter has its name."""

    def holds(self, events: Tensor) -> Tensor:
        """See ``GateRule``."""
        kept = 0.5 ** (1 / self.half_life)
        average, found = torch.zeros(events.shape[0]), []
        for event in events.float().unbind(-1):
            average = kept * average + (1 - kept) * event
            found.append(average > self.rate)
        return torch.stack(found, -1)

    @property
    def reach(self) -> float:
        """See ``GateRule``: with nothing but events."""
        return math.floor(-self.half_life * math.log2(1 - self.rate)) + 1


@dataclass(frozen=True)
class SharedHead(Strategy):
    """The ``size`` likeliest candidates of the student that the teacher's ``size`` likeliest have,
    too.

    It needs nothing beside both top k, so every home of the teacher serves it.
    """

    size: int

    def candidates(self, scores: Scores) -> Candidates:
        """See ``Strategy``."""
        student, teacher = scores.student, scores.teacher
        ids, head = student.ids[..., : self.size], teacher.ids[..., : self.size]
        log_probs = student.log_probs[..., : self.size]
        return possible(ids, log_probs, log_probs_of(ids, teacher), is_member(ids, head))
