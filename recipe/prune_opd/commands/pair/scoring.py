"""Scores of a model on responses: its own most likely tokens, and log-probs of given ones.

Shapes: B responses, T tokens of a response, K candidates, V vocabulary, N rows of a chunk.
A response token is scored by the logits of the position before it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recipe.prune_opd.commands.pair.sampling import Rollout
from recipe.prune_opd.method.reward import Scores, TopK
from verl_ext.logits import log_probs_at, top_log_probs

SPREAD_ROWS = 32
"""Rows of logits whose whole distribution is in memory at once, beside the logits."""


@dataclass(frozen=True)
class Scored:
    """Scores of one model on one response."""

    ids: Tensor
    """(T, K) int32, its own most likely, by descending logit."""
    log_probs: Tensor
    """(T, K) float32."""
    entropy: Tensor
    """(T,) float32, of the whole distribution, in nats."""
    certainty: Tensor
    """(T,) float32, Σ p²: the probability that two samples of the distribution are the same."""
    at: Tensor | None = None
    """(T, k) float32, log-probs of the ids that were asked for."""


def logits_of(model: Any, rollout: Rollout, chunk: int | None = None) -> Iterator[Tensor]:
    """Logits that score a response, which goes through the model by itself.

    In chunks with its key-value cache kept, so that no more than (chunk, V) logits exist at once.

    Args:
        model: in evaluation mode.
        rollout: prompt and response.
        chunk: tokens that go through the model at once; None: all.

    Yields:
        (N, V) float32, T rows in all.
    """
    ids, first = torch.tensor(rollout.ids, device=model.device), len(rollout.prompt_ids)
    last, cache = len(ids) - 1, None
    chunk = chunk or last
    for start in range(0, last, chunk):
        piece = ids[start : min(start + chunk, last)]
        output = model(input_ids=piece.unsqueeze(0), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows = output.logits[0, max(first - 1 - start, 0) :]
        if len(rows):
            yield rows.float()


def logits_together(model: Any, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Logits that score responses, which go through the model as one batch, padded at the end.

    Args:
        model: in evaluation mode.
        rollouts: prompts and responses.

    Returns:
        (T, V) float32 of each response.
    """
    whole = [torch.tensor(rollout.ids, device=model.device) for rollout in rollouts]
    ids = pad_sequence(whole, batch_first=True)
    lengths = torch.tensor([len(one) for one in whole], device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    logits = model(input_ids=ids, attention_mask=mask.long()).logits.float()
    return [
        rows[len(rollout.prompt_ids) - 1 : len(rollout.ids) - 1]
        for rows, rollout in zip(logits, rollouts, strict=True)
    ]


def score(
    logits: Iterable[Tensor],
    k: int,
    vocabulary: int,
    at: Tensor | None = None,
    temperature: float = 1.0,
) -> Scored:
    """Score a response, ranked and normalised in float32 as in training.

    Args:
        logits: (N, V) float32 pieces, T rows in all.
        k: K.
        vocabulary: candidates are ids below it.
        at: (T, k) int, ids whose log-probs are wanted.
        temperature: divides the logits.

    Returns:
        Tensors on the CPU. What is not finite is not hidden.
    """
    tops, asked, done = [], [], 0
    for piece in logits:
        rows = piece / temperature
        tops.append((*top_log_probs(rows, k, vocabulary), *_spread(rows)))
        if at is not None:
            asked.append(log_probs_at(rows, at[done : done + len(rows)].to(rows.device)))
        done += len(rows)
    ids, log_probs, entropy, certainty = (
        torch.cat(pieces).cpu() for pieces in zip(*tops, strict=True)
    )
    return Scored(ids, log_probs, entropy, certainty, torch.cat(asked).cpu() if asked else None)


def _spread(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy and Σ p² of distributions, (N, V) logits -> (N,) float32 each."""
    found = []
    for piece in rows.split(SPREAD_ROWS):
        log_probs = piece.log_softmax(-1)
        probs = log_probs.exp()
        # An id of probability 0 has the log-prob -inf, and takes no part.
        entropy = -(probs * log_probs.clamp(min=torch.finfo(rows.dtype).min)).sum(-1)
        found.append((entropy, probs.square().sum(-1)))
    entropies, certainties = zip(*found, strict=True)
    return torch.cat(entropies), torch.cat(certainties)


def sampled_log_probs(model: Any, rollout: Rollout) -> Tensor:
    """Log-probs of the tokens of a response, (T,) float32 on the CPU.

    Args:
        model: in evaluation mode.
        rollout: prompt and response.
    """
    sampled = torch.tensor(rollout.response_ids, device=model.device).unsqueeze(-1)
    (rows,) = logits_of(model, rollout)
    return log_probs_at(rows, sampled).squeeze(-1).cpu()


def scores_of(
    rollouts: Sequence[Rollout], student: Sequence[Scored], teacher: Sequence[Scored]
) -> tuple[Scores, Tensor]:
    """Scores of both models in the method's words.

    Args:
        rollouts: the responses.
        student: on each of them.
        teacher: on each, with its log-probs ``at`` the student's ids.

    Returns:
        Scores padded at the end; mask (B, T) bool, True on tokens.
    """
    responses = _stack([torch.tensor(rollout.response_ids) for rollout in rollouts])
    lengths = torch.tensor([[len(rollout.response_ids)] for rollout in rollouts])
    on_student = _stack([scored.at for scored in teacher if scored.at is not None])
    scores = Scores(responses, _topk(student), _topk(teacher), on_student)
    return scores, torch.arange(responses.shape[1]) < lengths


def _topk(scored: Sequence[Scored]) -> TopK:
    """Pad each response's (T, K) to (B, T, K)."""
    return TopK(_stack([one.ids for one in scored]), _stack([one.log_probs for one in scored]))


def _stack(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)
