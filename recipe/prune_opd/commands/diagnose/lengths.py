"""Lengths of responses: written, kept, reliable; under a gate and under a limit.

Shapes: B responses, T positions. All lengths are in tokens.

A response under a limit is the beginning of the same response without one: events, reliability and
a gate's stop look back only. So responses that were sampled once, up to the largest limit, say what
any smaller limit would have left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.prune_opd.method.gates import GateRule, stops
from recipe.prune_opd.method.pruning import Drift


@dataclass(frozen=True)
class Lengths:
    """Lengths of responses, each (B,) int64, without a limit."""

    whole: Tensor
    """Tokens the student writes where nothing stops it."""
    generated: Tensor
    """Tokens the student writes, those until a gate's stop is known included."""
    kept: Tensor
    """Tokens that are trained on."""
    effective: Tensor
    """E, what is kept with R > 0."""

    def of(self, rows: Tensor) -> "Lengths":
        """Lengths of some responses, (...) int64."""
        return Lengths(
            self.whole[rows], self.generated[rows], self.kept[rows], self.effective[rows]
        )

    def under(self, limit: int | Tensor) -> "Lengths":
        """Lengths of the same responses under a limit, or each under its own; ``whole`` stays."""
        generated, kept, effective = (
            values.clamp(max=limit) for values in (self.generated, self.kept, self.effective)
        )
        return Lengths(self.whole, generated, kept, effective)


def lengths_of(
    drift: Drift, rule: GateRule | None = None, chunk: int = 1, min_tokens: int = 1
) -> Lengths:
    """Lengths that drift leaves.

    A gate learns of an event when the chunk with it is complete, so a response that is cut at token
    s has been generated to the end of the chunk of token s. What a teacher's answer takes comes on
    top and is not counted.

    Args:
        drift: of responses without a limit.
        rule: of the gate; None: no gate.
        chunk: tokens between two questions to the teacher.
        min_tokens: tokens that the gate leaves in any case.
    """
    whole, effective = drift.mask.sum(-1), drift.reliability.effective_length
    if rule is None:
        return Lengths(whole, whole, whole, effective)
    stop = stops(rule, drift.events, min_tokens)
    kept = torch.minimum(stop, whole)
    known = torch.minimum(chunk * (stop // chunk + 1), whole)
    return Lengths(
        whole, torch.where(stop < whole, known, whole), kept, torch.minimum(effective, kept)
    )
