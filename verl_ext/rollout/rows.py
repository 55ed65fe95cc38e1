"""Rows that a server gives of tokens: the k most likely ids and their log-probs, and log-probs at
ids that the asker has chosen.

Shapes: N tokens, K candidates, W of a wide row, in which chosen ids are looked up. Row of token t:
the distribution that token t was, or would be, drawn from.
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


MISSING_ID, MISSING = -1, -np.inf
"""Content of a row that nobody gave: no token, of probability 0."""


@dataclass(frozen=True)
class At:
    """Ids to be scored beside a teacher's own candidates."""

    ids: NDArray[np.int32]
    """Token ids (N, K); ``MISSING_ID`` for none."""
    wide: int
    """W, number of most likely ids among which they are looked up."""

    def __getitem__(self, part: slice) -> "At":
        return At(self.ids[part], self.wide)


@dataclass(frozen=True)
class Chosen:
    """Log-probs at ids that the asker has chosen."""

    log_probs: NDArray[np.float32]
    """(N, K). At an id outside of the wide row the smallest log-prob in it, which bounds the id's
    own from above; ``MISSING`` at ``MISSING_ID``."""
    outside: NDArray[np.bool_]
    """(N, K), ids that the wide row lacks."""

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> "Chosen":
        return Chosen(self.log_probs[part], self.outside[part])

    @staticmethod
    def join(*parts: "Chosen") -> "Chosen":
        """Join all ``parts``, in order."""
        return Chosen(
            np.concatenate([part.log_probs for part in parts]),
            np.concatenate([part.outside for part in parts]),
        )


@dataclass(frozen=True)
class TopKRows:
    """K candidates of each token by falling probability, the token itself among them or not."""

    ids: NDArray[np.int32]
    """Token ids (N, K)."""
    log_probs: NDArray[np.float32]
    """Log-softmax (N, K) over the full vocabulary at temperature 1 and without top-p."""
    chosen: Chosen | None = None
    """At ids of the asker's, in teachers' answers about such."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> "TopKRows":
        chosen = None if self.chosen is None else self.chosen[part]
        return TopKRows(self.ids[part], self.log_probs[part], chosen)

    @staticmethod
    def join(*parts: "TopKRows") -> "TopKRows":
        """Join the rows of all ``parts``, in order; all have chosen ids, or none has."""
        chosen = [part.chosen for part in parts if part.chosen is not None]
        return TopKRows(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.log_probs for part in parts]),
            Chosen.join(*chosen) if chosen else None,
        )

    def narrowed(self, topk: int, at: At | None = None) -> "TopKRows":
        """The first ``topk`` candidates, and what all of them say of chosen ids.

        Args:
            topk: K.
            at: as many rows of ids.

        Raises:
            ValueError: it has another number of rows.
        """
        chosen = None if at is None else _look_up(at.ids, self)
        return TopKRows(self.ids[:, :topk], self.log_probs[:, :topk], chosen)

    def spread(self, places: NDArray[np.int_], count: int) -> "TopKRows":
        """The rows at their ``places`` among ``count``, the others missing."""
        rows = missing_rows(count, self.ids.shape[1], self.chosen is not None)
        rows.ids[places], rows.log_probs[places] = self.ids, self.log_probs
        if self.chosen is not None and rows.chosen is not None:
            rows.chosen.log_probs[places] = self.chosen.log_probs
            rows.chosen.outside[places] = self.chosen.outside
        return rows


def missing_rows(count: int, topk: int, chosen: bool = False) -> TopKRows:
    """Rows that nobody gave, (count, topk), with as many chosen ids or none."""
    shape = (count, topk)
    return TopKRows(
        np.full(shape, MISSING_ID, dtype=np.int32),
        np.full(shape, MISSING, dtype=np.float32),
        Chosen(np.full(shape, MISSING, dtype=np.float32), np.zeros(shape, dtype=np.bool_))
        if chosen
        else None,
    )


def _look_up(ids: NDArray[np.int32], wide: TopKRows) -> Chosen:
    """Log-probs at ids (N, K) out of rows (N, W)."""
    if len(ids) != len(wide):
        raise ValueError(f"chosen ids: got {len(ids)} rows, allowed: {len(wide)}, one per token")
    order = np.argsort(wide.ids, axis=-1)
    # All rows in one ascending sequence: a row's number is in front of its ids.
    row = np.arange(len(ids), dtype=np.int64)[:, None] << 32
    known = (row + np.take_along_axis(wide.ids, order, -1)).ravel()
    places = np.searchsorted(known, row + ids).clip(max=len(known) - 1)
    found, real = known[places] == row + ids, ids != MISSING_ID
    log_probs = np.take_along_axis(wide.log_probs, order, -1).ravel()[places]
    bounded = np.where(found, log_probs, wide.log_probs[:, -1:])
    return Chosen(np.where(real, bounded, np.float32(MISSING)), ~found & real)


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
    """Row of the token that would come next, (1, K) or, where ids were chosen, (1, W): those of the
    next token are not known yet. None from a teacher of whole sequences."""
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


def check_room(token_ids: list[int], most: int) -> None:
    """Refuse a sequence that is longer than an engine can score.

    Raises:
        ValueError: says how long it is, and may be.
    """
    if len(token_ids) > most:
        raise ValueError(
            f"score: a sequence of {len(token_ids)} tokens, the engine's context allows {most}"
        )


def check_shape(score: Score, tokens: int, topk: int, chosen: bool = False) -> None:
    """Refuse an answer of another size.

    Args:
        score: the answer.
        tokens: N, tokens asked about.
        topk: K.
        chosen: log-probs at (N, K) ids were asked for.

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
    given = score.rows.chosen
    shapes = None if given is None else (given.log_probs.shape, given.outside.shape)
    if shapes != ((expected, expected) if chosen else None):
        asked = expected if chosen else "none"
        raise BadScore(f"log-probs at chosen ids of shapes {shapes}, expected {asked}")


def good_rows(rows: TopKRows, vocab_size: int) -> NDArray[np.bool_]:
    """Judge rows, (N,) bool: distinct ids of the vocabulary, by falling log-prob, and log-probs of
    one distribution; at chosen ids, which may be impossible, none above 0."""
    known = (rows.ids >= 0) & (rows.ids < vocab_size) & good_log_probs(rows.log_probs)
    log_probs = np.where(known, rows.log_probs, 0)
    mass = np.exp(log_probs, dtype=np.float64).sum(-1)
    falling = (np.diff(log_probs, axis=-1) <= 0).all(-1)
    distinct = (np.diff(np.sort(rows.ids, axis=-1), axis=-1) != 0).all(-1)
    good = known.all(-1) & falling & distinct & (mass < MOST_MASS)
    return good if rows.chosen is None else good & (rows.chosen.log_probs <= MOST).all(-1)


def good_log_probs(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Judge numbers, (...) bool: finite, and a log-prob but for rounding."""
    return (values >= LEAST) & (values <= MOST)  # NaN is neither


def check_score(
    score: Score, tokens: int, topk: int, vocab_size: int, wide: int = 0
) -> tuple[TopKRows, TopKRows]:
    """Refuse an answer about a growing sequence that is short, not finite or of unknown ids.

    Args:
        score: the answer.
        tokens: N, as in ``check_shape``.
        topk: K.
        vocab_size: ids must be below it.
        wide: W, where ids were chosen; else 0.

    Returns:
        (N, K), and the row of the next token, (1, K or W).

    Raises:
        BadScore: says what is wrong.
    """
    check_shape(score, tokens, topk, bool(wide))
    ahead, shape = score.ahead, (1, wide or topk)
    if ahead is None or ahead.ids.shape != shape or ahead.log_probs.shape != shape:
        raise BadScore("no row of the token that would come next")
    first = TopKRows(ahead.ids[:, :topk], ahead.log_probs[:, :topk])
    rows = TopKRows.join(TopKRows(score.rows.ids, score.rows.log_probs), first)
    if not np.isfinite(rows.log_probs).all():
        raise BadScore("a log-prob that is not finite")
    # The rest of a wide row may be impossible, as the rows of an embedding are that have no token.
    at = [] if score.rows.chosen is None else [score.rows.chosen.log_probs]
    bounded = all((values <= MOST).all() for values in (*at, ahead.log_probs))
    if not (bounded and good_rows(rows, vocab_size).all()):
        raise BadScore(
            f"ids from {rows.ids.min()} to {rows.ids.max()}, expected 0 to {vocab_size - 1}, each"
            f" once in a row, and log-probs from {rows.log_probs.min():.3g} to"
            f" {rows.log_probs.max():.3g}, expected those of one distribution, falling"
        )
    return score.rows, ahead
