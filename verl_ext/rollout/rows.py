"""Rows that a server gives of tokens: the k most likely ids and their log-probs.

Shapes: N tokens, K candidates. Row of token t: the distribution that token t was, or would be,
drawn from.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RAW = "raw_logprobs"
"""Mode (``rollout.logprobs_mode``) in which top-p and temperature leave log-probs alone."""

RESERVED = {"vllm": 1, "sglang": 7}
"""Tokens of an engine's context that a sequence to score must leave free. One is generated to no
purpose; SGLang keeps some more (``max_req_input_len`` in its tp_worker.py)."""
MOST_MASS = 1.01
"""Sum of K probabilities with rounding, at most; logits, reported in their place, exceed it."""
LEAST, MOST = -1e4, 1e-3
"""Bounds of a log-prob: below, it is a stand-in for a probability of 0; above 0 is rounding."""


@dataclass(frozen=True)
class TopKRows:
    """K candidates of each token by falling probability, the token itself among them or not."""

    ids: NDArray[np.int32]
    """Token ids (N, K)."""
    log_probs: NDArray[np.float32]
    """Log-softmax (N, K) over the full vocabulary at temperature 1 and without top-p."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "TopKRows":
        return TopKRows(self.ids[part], self.log_probs[part])

    @staticmethod
    def join(*parts: "TopKRows") -> "TopKRows":
        """Join the rows of all ``parts``, in order."""
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
    """Log-probs (N,) of the tokens themselves."""


@dataclass(frozen=True)
class Score:
    """Answer of a teacher about the tail of a sequence."""

    rows: TopKRows
    """Rows (N, K) of the tokens ``start`` to the end of the sequence."""
    sampled: NDArray[np.float32]
    """Log-probs (N,) of these tokens themselves."""
    computed: int
    """Tokens that the engine ran through its model for this answer."""
    ahead: TopKRows | None = None
    """Row (1, K) of the token that would come next; None from a teacher of whole sequences."""
    private: int = 0
    """Number of the sequence's own prefix cache, 0 for none, see ``TopKHttpServer.score``."""


class DeadServer(RuntimeError):
    """Server that answers, but whose engine is gone."""


class NoServer(RuntimeError):
    """Lack of any teacher that could be asked."""


class BadQuestion(ValueError):
    """Question that no server could answer, which is not their fault."""


class BadScore(ValueError):
    """Answer of a teacher that must not be used."""


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
    """Judge rows, (N,) bool: distinct ids of the vocabulary, by falling log-prob, and log-probs of
    one distribution."""
    known = (rows.ids >= 0) & (rows.ids < vocab_size) & good_log_probs(rows.log_probs)
    log_probs = np.where(known, rows.log_probs, 0)
    mass = np.exp(log_probs, dtype=np.float64).sum(-1)
    falling = (np.diff(log_probs, axis=-1) <= 0).all(-1)
    distinct = (np.diff(np.sort(rows.ids, axis=-1), axis=-1) != 0).all(-1)
    return known.all(-1) & falling & distinct & (mass < MOST_MASS)


def good_log_probs(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Judge numbers, (...) bool: finite, and a log-prob but for rounding."""
    return (values >= LEAST) & (values <= MOST)  # NaN is neither


def check_score(score: Score, tokens: int, topk: int, vocab_size: int) -> TopKRows:
    """Refuse an answer about a growing sequence that is short, not finite or of unknown ids.

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
            f"ids from {rows.ids.min()} to {rows.ids.max()}, expected 0 to {vocab_size - 1}, each"
            f" once in a row, and log-probs from {rows.log_probs.min():.3g} to"
            f" {rows.log_probs.max():.3g}, expected those of one distribution, falling"
        )
    return rows
