"""What a server says about tokens: the k most likely ids and their log-probs, one row per token.

Shapes: N tokens, K candidates. Row of token t: the distribution that token t was, or would be,
drawn from.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RAW = "raw_logprobs"
"""``rollout.logprobs_mode`` under which top-p and temperature leave the reported distribution
alone."""

RESERVED = {"vllm": 1, "sglang": 7}
"""Tokens of an engine's context that a sequence to score must leave free. One is generated to no
purpose; SGLang keeps some more (``max_req_input_len`` in its tp_worker.py)."""
MOST_MASS = 1.01
"""Sum of the probabilities of K candidates; rounding alone stays below it. Logits, which servers
can be started to report, do not."""


@dataclass(frozen=True)
class TopKRows:
    """Exactly K candidates per token by falling probability, whether or not the token itself is
    among them."""

    ids: NDArray[np.int32]
    """(N, K)."""
    log_probs: NDArray[np.float32]
    """(N, K) log-softmax over the full vocabulary, of the unprocessed distribution (temperature 1,
    no top-p)."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "TopKRows":
        return TopKRows(self.ids[part], self.log_probs[part])

    @staticmethod
    def join(*parts: "TopKRows") -> "TopKRows":
        """The rows of all ``parts``, in order."""
        return TopKRows(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.log_probs for part in parts]),
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
    """(N, K), tokens ``start`` to the end of the sequence."""
    sampled: NDArray[np.float32]
    """(N,) log-probs of these tokens themselves."""
    computed: int
    """Tokens the engine ran through its model for it."""
    ahead: TopKRows | None = None
    """(1, K), the token that would come next; None from a teacher that scores finished sequences
    only."""
    private: int = 0
    """Which prefix cache of its own this sequence has, 0 for the shared one, see
    ``TopKHttpServer.score``."""


class DeadServer(RuntimeError):
    """A server that answers, but whose engine is gone."""


class NoServer(RuntimeError):
    """No teacher is left to ask."""


class BadQuestion(ValueError):
    """No server could answer this; the servers are not at fault."""


class BadScore(ValueError):
    """A teacher's answer that must not be used."""


def check_shape(score: Score, tokens: int, topk: int) -> None:
    """Refuse an answer of another size.

    Args:
        score: the answer.
        tokens: N, tokens asked about.
        topk: K.

    Raises:
        BadScore: says what is wrong.
    """
    ids, log_probs, expected = score.rows.ids, score.rows.log_probs, (tokens, topk)
    if ids.shape != expected or log_probs.shape != expected:
        raise BadScore(f"rows of shape {ids.shape} and {log_probs.shape}, expected {expected}")
    if score.sampled.shape != (tokens,):
        raise BadScore(
            f"log-probs of the tokens themselves of shape {score.sampled.shape}, expected"
            f" {(tokens,)}"
        )


def good_rows(rows: TopKRows, vocab_size: int) -> NDArray[np.bool_]:
    """(N,) whether a row holds ids of the vocabulary and log-probs of one distribution."""
    known = (rows.ids >= 0) & (rows.ids < vocab_size)
    with np.errstate(over="ignore"):  # of what is no log-prob
        mass = np.exp(rows.log_probs).sum(-1)
    return (known & np.isfinite(rows.log_probs)).all(-1) & (mass < MOST_MASS)


def check_score(score: Score, tokens: int, topk: int, vocab_size: int) -> TopKRows:
    """Refuse an answer about a growing sequence that is too short, not finite or no candidate of
    the vocabulary.

    Args:
        score: the answer.
        tokens: N, as in ``check_shape``.
        topk: K.
        vocab_size: ids must be below it.

    Returns:
        (N + 1, K), the row of the next token included.

    Raises:
        BadScore: says what is wrong.
    """
    check_shape(score, tokens, topk)
    if (
        score.ahead is None
        or score.ahead.ids.shape != (1, topk)
        or score.ahead.log_probs.shape != (1, topk)
    ):
        raise BadScore("no row of the token that would come next")
    rows = TopKRows.join(score.rows, score.ahead)
    if not np.isfinite(rows.log_probs).all():
        raise BadScore("a log-prob that is not finite")
    if not good_rows(rows, vocab_size).all():
        raise BadScore(
            f"ids from {rows.ids.min()} to {rows.ids.max()}, expected 0 to {vocab_size - 1}, and"
            f" log-probs up to {rows.log_probs.max():.3g}, expected those of one distribution"
        )
    return rows
