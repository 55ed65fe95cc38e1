"""Task rewards beside distillation: the sampled token as one more candidate of every position. (Not
of the paper)

Shapes: B sequences, T response positions, K candidates per position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """What the loss sums over, see ``topk_policy_loss``."""

    ids: Tensor
    """(B, T, K) int."""
    old_log_probs: Tensor
    """(B, T, K) float32."""
    advantages: Tensor
    """(B, T, K) float32; a candidate with 0 takes no part."""

    def with_sampled(
        self, tokens: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> "Candidates":
        """The same and, last, the sampled tokens with advantages of their own; one may be among the
        candidates already: the gradient is the sum of both.

        Args:
            tokens: (B, T) int.
            old_log_probs: (B, T) float, log π of them.
            advantages: (B, T) float, 0 where nothing is to be learned.
        """
        more = (tokens, old_log_probs, advantages)
        joined = [
            torch.cat([own, one.to(own.dtype).unsqueeze(-1)], -1)
            for own, one in zip((self.ids, self.old_log_probs, self.advantages), more, strict=True)
        ]
        return Candidates(*joined)
