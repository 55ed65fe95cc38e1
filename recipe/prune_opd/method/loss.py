"""Clipped policy loss over candidate tokens. (METHOD: paper section 3.3; clipping as verl's
``vanilla`` policy loss)

Shapes: B sequences, T response positions, K candidates per position.
"""

import torch
from torch import Tensor

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
        Scalar loss, 0 with zero gradient where no token counts; and detached scalars, see
        ``_terms``.
    """
    clip = clip_low, clip_high, clip_c
    terms, metrics = _terms(log_probs, old_log_probs, advantages, mask, clip)
    tokens = torch.as_tensor(mask.bool().sum() if num_tokens is None else num_tokens).to(terms)
    return terms.sum() * torch.where(tokens > 0, 1 / tokens, 0.0), metrics


def _terms(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: tuple[float, float, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Terms of the loss, (B, T, K), and what is logged of them.

    That is ``pg_clipfrac`` and ``pg_clipfrac_lower``, shares of candidates clipped, and ``ppo_kl``,
    the mean of old - new log-prob.
    """
    low, high, c = clip
    active = mask.bool().unsqueeze(-1) & (advantages != 0)
    # Masked before any arithmetic: NaN in padding would survive a later multiplication by 0, in the
    # gradient too.
    advantages = torch.where(active, advantages, 0.0)
    log_ratio = torch.where(active, log_probs - old_log_probs, 0.0)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    surrogate = torch.maximum(unclipped, clipped)
    bound = -advantages * c
    shares = {
        "pg_clipfrac": clipped > unclipped,
        "pg_clipfrac_lower": (advantages < 0) & (surrogate > bound),
        "ppo_kl": -log_ratio,
    }
    count = active.sum().clamp(min=1)
    metrics = {name: (value.sum() / count).detach() for name, value in shares.items()}
    return torch.where(advantages < 0, torch.minimum(surrogate, bound), surrogate), metrics
