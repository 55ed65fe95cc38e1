"""What a server says about tokens: the k most likely ids and their log-probs, one row per token.

Shapes: N tokens, K candidates. Row of token t: the distribution that token t was, or would be, drawn from.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TopKRows:
    """Exactly K candidates per token by falling probability, whether or not the token itself is among them."""

    ids: NDArray[np.int32]
    """(N, K)."""
    log_probs: NDArray[np.float32]
    """(N, K) log-softmax over the full vocabulary, of the unprocessed distribution (temperature 1, no top-p)."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "TopKRows":
        return TopKRows(self.ids[part], self.log_probs[part])

    @staticmethod
    def join(*parts: "TopKRows") -> "TopKRows":
        """The rows of all ``parts``, in order."""
        return TopKRows(
            np.concatenate([part.ids for part in parts]), np.concatenate([part.log_probs for part in parts])
        )


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of a response that is being generated."""

    token_ids: list[int]
    rows: TopKRows
    sampled_log_probs: NDArray[np.float32]
    """(N,) log-prob of the token itself."""


@dataclass(frozen=True)
class Score:
    """A teacher's answer about the tail of a sequence."""

    rows: TopKRows
    """Tokens ``start`` to the end of the sequence, and the token that would come next."""
    computed: int
    """Tokens the engine ran through its model for it."""
    private: int
    """Which prefix cache of its own this sequence has, 0 for the shared one, see ``TopKHttpServer.score``."""


class DeadServer(RuntimeError):
    """A server that answers, but whose engine is gone."""


class BadScore(ValueError):
    """A teacher's answer that must not be used."""


def check_score(score: Score, tokens: int, topk: int, vocab_size: int) -> None:
    """Refuse an answer that is too short, not finite or no candidate of the vocabulary.

    Args:
        score: the answer.
        tokens: rows asked for.
        topk: K.
        vocab_size: ids must be below it.

    Raises:
        BadScore: says what is wrong.
    """
    ids, log_probs = score.rows.ids, score.rows.log_probs
    if ids.shape != (tokens, topk) or log_probs.shape != (tokens, topk):
        raise BadScore(f"rows of shape {ids.shape} and {log_probs.shape}, expected {(tokens, topk)}")
    if not np.isfinite(log_probs).all():
        raise BadScore("a log-prob that is not finite")
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab_size:
        raise BadScore(f"ids from {ids.min()} to {ids.max()}, expected 0 to {vocab_size - 1}")
