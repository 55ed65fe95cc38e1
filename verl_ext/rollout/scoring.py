"""Scoring of whole responses by a teacher that serves, each as soon as it is complete.

Bounded, so that a slow teacher does not pile up work; retried, so that a failing replica does not
cost rows; and what is still missing after that is said to be missing, never made up.

Shapes: R tokens of the response, K candidates.
"""

import asyncio
import functools
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from verl_ext.rollout.rows import (
    MISSING,
    At,
    BadQuestion,
    NoServer,
    Score,
    TopKRows,
    check_shape,
    good_log_probs,
    good_rows,
    missing_rows,
)

PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a question is asked again: doubled every further time, up to the longest."""


class Teacher(Protocol):
    """Teacher that scores a sequence once."""

    async def score(
        self, token_ids: list[int], start: int, topk: int, at: At | None = None
    ) -> Score:
        """Score the tokens from ``start`` on, see ``ScoringClient.score``. ``at`` is passed only
        where ids are chosen."""


@dataclass
class ScoreReport:
    """Report on the score of a response. Plain values: it travels with the response."""

    late: int = 0
    """Answers that did not come in time."""
    failed: int = 0
    """Questions that ended in an error, or in an answer that was no use."""
    missing: int = 0
    """Tokens without a row."""
    computed: int = 0
    """Tokens the teacher ran through its model."""
    early: float = 0.0
    """Seconds in which questions about the response were open while it was growing."""
    began: float = 0.0
    """Seconds since the epoch when the response was complete."""
    ended: float = 0.0
    """Seconds since the epoch when its score was there, or was given up."""
    candidates: int = 0
    """Ids of the student's at which the teacher was asked."""
    outside: int = 0
    """Those that its wide row lacked."""
    outside_mass: float = 0.0
    """Sum over tokens of the student's probability of these."""
    error: str = ""
    """Message of the last error, "" for none."""


@dataclass
class ResponseScorer:
    """Scorer that asks a teacher about responses.

    Args:
        teacher: whom to ask.
        topk: K.
        vocab_size: of the teacher.
        concurrency: responses that are asked about at once.
        deadline: seconds for an answer.
        retries: more questions about a response after one that failed.
        needs_sampled: somebody reads the log-probs of the tokens themselves, so that a token
            without one is missing.
    """

    teacher: Teacher
    topk: int
    vocab_size: int
    concurrency: int
    deadline: float
    retries: int
    needs_sampled: bool = True

    @functools.cached_property
    def slots(self) -> asyncio.Semaphore:
        """Semaphore, made where it is used: this object is sent to other processes."""
        return asyncio.Semaphore(self.concurrency)

    async def score(
        self, prompt_ids: list[int], response_ids: list[int], at: At | None = None
    ) -> tuple[TopKRows, NDArray[np.float32], ScoreReport]:
        """Score a response, one row per token.

        Args:
            prompt_ids: at least one token.
            response_ids: R tokens; none gives no rows and asks nobody.
            at: (R, K) ids to score beside the teacher's own.

        Returns:
            (R, K) rows, (R,) log-probs of the tokens themselves, and how it went. Rows the teacher
            did not give, or that no distribution has, hold ``MISSING_ID`` and ``MISSING``.
        """
        report = ScoreReport(missing=len(response_ids))
        rows = missing_rows(len(response_ids), self.topk, at is not None)
        sampled = np.full(len(response_ids), MISSING, dtype=np.float32)
        if not response_ids:
            return rows, sampled, report
        report.began = time.time()
        async with self.slots:
            answer = await self._ask(prompt_ids + response_ids, len(prompt_ids), report, at)
        report.ended = time.time()
        if answer is not None:
            good = good_rows(answer.rows, self.vocab_size)
            if self.needs_sampled:
                good &= good_log_probs(answer.sampled)
            rows = answer.rows[good].spread(np.flatnonzero(good), len(rows))
            sampled[good] = answer.sampled[good]
            report.missing = int((~good).sum())
        return rows, sampled, report

    async def _ask(
        self, token_ids: list[int], start: int, report: ScoreReport, at: At | None
    ) -> Score | None:
        chosen = {} if at is None else {"at": at}
        for tries in range(self.retries + 1):
            if tries:
                await asyncio.sleep(min(PAUSE * 2.0 ** min(tries - 1, 64), LONGEST_PAUSE))
            try:
                answer = await asyncio.wait_for(
                    self.teacher.score(token_ids, start, self.topk, **chosen), self.deadline
                )
                report.computed += answer.computed
                check_shape(answer, len(token_ids) - start, self.topk, at is not None)
                return answer
            except asyncio.TimeoutError:
                report.late += 1
                report.error = f"no answer within {self.deadline} s"
            except Exception as error:  # whatever a server may raise
                report.failed += 1
                # Ray puts the cause last, behind a traceback of its own.
                report.error = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
                if isinstance(error, NoServer | BadQuestion):
                    break
        return None
