"""What is read off the logits of a model: top k, log-probs at ids, entropy, in one pass over them.

Nothing of the logits' size is made but their gradient, and that in their own memory where it may.

Shapes: N rows, K candidates, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CACHE_BYTES, PIECE_BYTES = 4 << 20, 128 << 20
"""Most bytes of a float32 piece of the logits: what a CPU's cache holds, and on other devices."""
PIECE_SHARE, LEAST_BYTES = 64, 1 << 20
"""A piece is at most this part of the logits, but of tiny logits not less than so many bytes."""
BLOCK = 128
"""Ids whose largest logit is found first: the k largest lie in the k blocks of largest maxima."""


@torch.no_grad()
def score(
    logits: Tensor,
    k: int = 0,
    vocab_size: int = 0,
    ids: Tensor | None = None,
    entropy: bool = False,
    normaliser: bool = False,
) -> dict[str, Tensor]:
    """Read all that is wanted of the logits in one pass over them, piece by piece; no gradient.

    Args:
        logits: (N, V) float of any dtype. Ranked as they are: a cast to float32 is exact, so it
            changes no order, ties included.
        k: K, number of the most likely ids to find; 0: none.
        vocab_size: these are ids below it; the normaliser always takes all V.
        ids: (N, K2) int to score; an id outside [0, V) is given -inf: this model has no row for it.
        entropy: also that of the distribution.
        normaliser: also the logarithm of what the exponentials of the logits sum to.

    Returns:
        Of what was asked: ``top_ids`` (N, K) int32 by descending logit with ``top_log_probs``
        (N, K), ``log_probs_at`` (N, K2), and ``entropy`` (N,) in nats, all float32 (float64 of
        float64), and ``normaliser`` (N,) float64, as differences of it are small. Log-probs are
        over all V.
    """
    rows = piece_rows(logits)
    parts = [slice(first, first + rows) for first in range(0, max(1, len(logits)), rows)]
    pieces = [
        _score_piece(
            logits[part], k, vocab_size, None if ids is None else ids[part], entropy, normaliser
        )
        for part in parts
    ]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _score_piece(
    rows: Tensor, k: int, vocab_size: int, ids: Tensor | None, entropy: bool, normaliser: bool
) -> dict[str, Tensor]:
    rows = _wide(rows)
    log_probs = rows.log_softmax(-1)
    found: dict[str, Tensor] = {}
    if normaliser:
        found["normaliser"] = rows.amax(-1).double() - log_probs.amax(-1)
    if k:
        top = _largest(rows[:, :vocab_size], k)
        found |= {"top_ids": top.int(), "top_log_probs": log_probs.gather(-1, top)}
    if ids is not None:
        found["log_probs_at"] = _gather(log_probs, ids)
    del rows  # where it is a copy its memory is free for what follows
    if entropy:
        # 0 times the logarithm of 0 is 0.
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
        found["entropy"] = -log_probs.exp_().mul_(finite).sum(-1)
    return found


def _largest(rows: Tensor, k: int) -> Tensor:
    """Ids (N, k) int64 of the k largest values, by descending value, as ``topk`` finds them."""
    count, width = rows.shape
    whole = width - width % BLOCK
    if whole < 4 * k * BLOCK:
        return rows.topk(k).indices
    nearest = rows[:, :whole].unflatten(-1, (-1, BLOCK)).amax(-1).topk(k).indices
    each = torch.arange(width, device=rows.device)
    inside = (nearest.unsqueeze(-1) * BLOCK + each[:BLOCK]).flatten(1)
    ids = torch.cat([inside, each[whole:].expand(count, -1)], -1)
    return ids.gather(-1, rows.gather(-1, ids).topk(k).indices)


def top_log_probs(logits: Tensor, k: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Find the k largest logits among the first ``vocab_size`` ids, and their log-probs over all V.

    Returns:
        (N, K) int32 ids by descending logit, (N, K) float32 log-probs. See ``score``.
    """
    found = score(logits, k, vocab_size)
    return found["top_ids"], found["top_log_probs"]


def log_probs_at(logits: Tensor, ids: Tensor, overwrite: bool = False) -> Tensor:
    """Full-vocabulary log-probs of chosen ids, once differentiable with respect to ``logits``.

    Args:
        logits: (N, V) float.
        ids: (N, K) int; an id outside [0, V) is given -inf and no gradient: this model has no row
            for it.
        overwrite: let the backward pass write the gradient into the logits' memory, which saves a
            second (N, V). Only where nobody reads the logits once it has begun. Where autograd does
            (an operation on them that is differentiated later, a graph that is used twice) torch
            raises a RuntimeError. A leaf is never overwritten: its owner keeps it.

    Returns:
        (N, K) float32 (float64 of float64).
    """
    return _LogProbsAt.apply(logits, ids, overwrite)


class _LogProbsAt(torch.autograd.Function):
    """Function ``log_probs_at`` by pieces: of size (N, V) it makes nothing but the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, overwrite: bool) -> Tensor:
        ctx.save_for_backward(logits, ids)
        ctx.overwrite = overwrite and may_overwrite(logits)
        return score(logits, ids=ids)["log_probs_at"]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, ids = ctx.saved_tensors
        gradient = gradient_memory(logits, ctx.overwrite)
        write_gradient(gradient, logits, ids, upstream, pull(ids, upstream, logits.shape[-1]))
        return gradient, None, None


def may_overwrite(logits: Tensor) -> bool:
    """Tell whether a gradient can be written into the memory of logits: it is no leaf's."""
    root = logits if logits._base is None else logits._base
    return not root.is_leaf and logits.is_contiguous()


def gradient_memory(logits: Tensor, overwrite: bool) -> Tensor:
    """Memory for the gradient of ``log_probs_at``: the logits' own, or other.

    Raises:
        RuntimeError: a second derivative is wanted.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "log_probs_at: got create_graph=True, allowed: False, it has a first derivative only"
        )
    # Detached, it shares memory and version counter with the logits, so torch refuses later
    # readers.
    return logits.detach() if overwrite else torch.empty_like(logits)


def pull(ids: Tensor, upstream: Tensor, vocab_size: int) -> Tensor:
    """Sum the upstream gradient (N, K) over the ids below ``vocab_size``: every logit is pulled
    down by it times the token's probability. (N, 1)."""
    return upstream.masked_fill(~_known(ids, vocab_size)[0], 0).sum(-1, keepdim=True)


def write_gradient(
    into: Tensor, logits: Tensor, ids: Tensor, upstream: Tensor, pulled: Tensor
) -> None:
    """Write the gradient of ``(log_probs_at(logits, ids) * upstream).sum()``, piece by piece.

    Args:
        into: (N, V), may be the logits' own memory.
        logits: (N, V).
        ids: (N, K) int.
        upstream: (N, K).
        pulled: (N, 1), see ``pull``.
    """
    rows = piece_rows(logits)
    split = (tensor.split(rows) for tensor in (into, logits, ids, upstream, pulled))
    for to, *piece in zip(*split, strict=True):
        to.copy_(_gradient(*piece))


def _gradient(logits: Tensor, ids: Tensor, upstream: Tensor, pulled: Tensor) -> Tensor:
    known, rows = _known(ids, logits.shape[-1])
    probs = _wide(logits).softmax(-1)
    return probs.mul_(-pulled).scatter_add_(-1, rows, upstream.masked_fill(~known, 0))


def _gather(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log-probs (N, K) at ids, -inf at those that have no row."""
    known, rows = _known(ids, log_probs.shape[-1])
    return log_probs.gather(-1, rows).masked_fill_(~known, -torch.inf)


def _known(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Tell which ids have a row, (N, K) bool; with (N, K) int64 ids that all have one."""
    known = (ids >= 0) & (ids < vocab_size)
    return known, torch.where(known, ids, 0).long()


def _wide(logits: Tensor) -> Tensor:
    """Logits as float32; float64 stay."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def piece_rows(logits: Tensor) -> int:
    """Rows of (N, V) logits that are worked on at once."""
    size = piece_bytes(logits.nbytes, logits.device.type)
    return max(1, size // (4 * logits.shape[-1]))


def piece_bytes(logits_bytes: float, device: str) -> int:
    """Most bytes of a float32 piece of logits, of which two or three exist at a time.

    Args:
        logits_bytes: size of all logits.
        device: "cpu", or what torch calls another.
    """
    most = CACHE_BYTES if device == "cpu" else PIECE_BYTES
    return min(most, max(LEAST_BYTES, int(logits_bytes) // PIECE_SHARE))
