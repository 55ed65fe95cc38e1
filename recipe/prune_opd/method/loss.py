"""Clipped policy loss over candidate tokens. (METHOD: paper section 3.3; clipping as verl's
``vanilla`` policy loss)

Shapes: B sequences, T response positions, K candidates per position.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recipe.prune_opd.method.pieces import pieces

MAX_LOG_RATIO = 20.0


def topk_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_c: float = 3.0,
    num_tokens: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the dual-clipped PPO terms of the candidates, averaged over generated tokens.

    With one update per batch the ratio is 1 and the gradient is that of stop-gradient top-k reverse
    KL, Σ_t L_t Σ_v sg[w(v) (S(v) - T(v))] ∇ log π(v) / num_tokens.

    Args:
        log_probs: (B, T, K) float with gradient, log π(v) under the current policy.
        old_log_probs: (B, T, K) float, log π(v) when the reward was computed.
        advantages: (B, T, K) float, weighted; a candidate with 0 takes no part.
        mask: (B, T) bool or 0/1, tokens to count.
        clip_low: the ratio is clipped at 1 - clip_low.
        clip_high: the ratio is clipped at 1 + clip_high.
        clip_c: bound of the ratio for negative advantages (dual clip), > 1.
        num_tokens: denominator; the mask's sum by default. A global count makes the loss
            independent of how a mini-batch is cut into micro-batches.

    Returns:
        Scalar loss, 0 with zero gradient where no token counts, once differentiable; and the
        scalars ``LOGGED``.
    """
    clip = clip_low, clip_high, clip_c
    total, *sums = _Sum.apply(log_probs, old_log_probs, advantages, mask.bool(), clip)
    active, *logged = sums
    tokens = torch.as_tensor(mask.bool().sum() if num_tokens is None else num_tokens).to(total)
    metrics = dict(zip(LOGGED, (value / active.clamp(min=1) for value in logged), strict=True))
    return total * torch.where(tokens > 0, 1 / tokens, 0.0), metrics


LOGGED = ("pg_clipfrac", "pg_clipfrac_lower", "ppo_kl")
"""Means over the candidates that take part: shares clipped, and old - new log-prob."""


class _Sum(torch.autograd.Function):
    """Sum of the loss's terms and of what is logged, by pieces, with the gradient made at once.

    Autograd differentiates each piece while it is in cache; of a whole batch it would keep ten
    tensors of its size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        clip: tuple[float, float, float],
    ) -> tuple[Tensor, ...]:
        wanted: bool = ctx.needs_input_grad[0]
        sums: list[Tensor] = []
        gradients: list[Tensor] = []
        for new, old, gain, here in pieces(mask.shape, log_probs, old_log_probs, advantages, mask):
            piece = new.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                total, *logged = _sums(piece, old, gain, here, clip)
            sums.append(torch.stack([value.detach().double() for value in (total, *logged)]))
            if wanted:
                gradients.extend(torch.autograd.grad(total, piece))
        if wanted:
            ctx.save_for_backward(torch.cat(gradients).reshape(log_probs.shape))
        found = torch.stack(sums).sum(0).to(total.dtype).unbind()
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None


def _sums(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: tuple[float, float, float],
) -> tuple[Tensor, ...]:
    """Sums over the terms (N, K) of the loss, the candidates that take part, and ``LOGGED``."""
    low, high, c = clip
    active = mask.unsqueeze(-1) & (advantages != 0)
    # Masked before any arithmetic: NaN in padding would survive a later multiplication by 0, in the
    # gradient too.
    advantages = torch.where(active, advantages, 0.0)
    log_ratio = torch.where(active, log_probs - old_log_probs, 0.0)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    surrogate = torch.maximum(unclipped, clipped)
    bound = -advantages * c
    terms = torch.where(advantages < 0, torch.minimum(surrogate, bound), surrogate)
    cut = (advantages < 0) & (surrogate > bound)
    return terms.sum(), active.sum(), (clipped > unclipped).sum(), cut.sum(), -log_ratio.sum()
