"""The response budget: how long the next batch may generate. (METHOD: paper section 3.4)"""

import math
import operator
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipe.prune_opd.method.numbers import require_whole
from recipe.prune_opd.method.registry import Registry
from recipe.prune_opd.method.saved_state import require_inside, saved, whole

SLACK = 1e-9
"""Rounding that a product of a share and a number is forgiven."""


class Budget(ABC):
    """Limit on the response length that may move from batch to batch. All lengths are in tokens."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """M: the most tokens a response of the next batch may have."""

    def limits(self, count: int) -> list[int]:
        """Limits of the prompts of the next batch, none above ``limit``: here the same for all.

        All responses to a prompt share its limit.

        Args:
            count: prompts.
        """
        return [self.limit] * count

    @abstractmethod
    def update(
        self, effective_lengths: Sequence[int], limits: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Take in the batch of a step and move the limit for prompts that are sent out from now on.

        Args:
            effective_lengths: E of every real sequence (padding sequences left out), any iterable
                of numbers.
            limits: limit that each of these sequences was generated under, which an asynchronous
                trainer may have sent out some steps ago. None: all under ``limit``.

        Returns:
            Metrics for the logs, among them ``prune_opd/current_max_response_length`` and
            ``prune_opd/next_max_response_length``.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State that a checkpoint must hold to go on exactly here; values that JSON has."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``'s answer.

        Raises:
            ValueError: it is no such answer, or does not fit this budget, which is then as before.
        """

    def __str__(self) -> str:
        return f"{self.limit} to start"


class ResponseBudget(Budget):
    """Batch-wise limit M on the response length, moved by how many responses stay reliable up to
    it.

    A response *hits* where its effective length reaches ``boundary = max(min, M_i - margin)``, M_i
    being the limit it was generated under: M, where the trainer is synchronous. Where the share of
    hits is ``hit_ratio`` or more the limit grows by ``step``, at most to ``max``;
    after ``patience`` batches in a row below it, the limit shrinks by ``step``, at least to
    ``min``. All lengths are in tokens.

    Args:
        init: limit of the first batch, clipped into [min, max].
        min: the limit never falls below it.
        max: the limit never rises above it.
        step: change of the limit.
        hit_ratio: share of responses that must hit, ρ.
        margin: how far before the limit a response already counts as a hit.
        patience: batches below ``hit_ratio`` until the limit shrinks.

    Raises:
        ValueError: unless 0 < min <= max, step >= 1, 0 <= hit_ratio <= 1, margin >= 0 and patience
            >= 1, lengths and patience being whole numbers.
    """

    def __init__(
        self,
        init: int,
        min: int,
        max: int,
        step: int = 100,
        hit_ratio: float = 0.1,
        margin: int = 100,
        patience: int = 3,
    ):
        require_whole(init=init, min=min, max=max, step=step, margin=margin, patience=patience)
        _require(0 < min <= max, "0 < min <= max", min=min, max=max)
        _require(step >= 1, "step >= 1", step=step)
        _require(0 <= hit_ratio <= 1, "0 <= hit_ratio <= 1", hit_ratio=hit_ratio)
        _require(margin >= 0, "margin >= 0", margin=margin)
        _require(patience >= 1, "patience >= 1", patience=patience)
        self.min, self.max, self.step = min, max, step
        self.hit_ratio, self.margin, self.patience = hit_ratio, margin, patience
        self._limit = sorted((min, init, max))[1]
        self._no_hit_steps = 0

    @property
    def limit(self) -> int:
        """M: the most tokens a response of the next batch may have."""
        return self._limit

    def update(
        self, effective_lengths: Sequence[int], limits: Sequence[int] | None = None
    ) -> dict[str, float]:
        """See ``Budget``.

        Returns:
            Metrics by the names of the paper's release.

        Raises:
            ValueError: no sequence was given.
        """
        lengths, current = whole_lengths(effective_lengths), self._limit
        own = own_limits(lengths, limits, current)
        bounds = (max(self.min, limit - self.margin) for limit in own)
        hits = sum(map(operator.ge, lengths, bounds)) / len(lengths)
        self._move(hits)
        return {
            **budget_metrics(lengths, current, self._limit),
            **limit_metrics(own),
            "prune_opd/no_hit_steps": self._no_hit_steps,
            "prune_opd/effective_response_length_hit_ratio": hits,
        }

    def _move(self, hits: float) -> None:
        if hits >= self.hit_ratio:
            self._limit = min(self._limit + self.step, self.max)
            self._no_hit_steps = 0
            return
        self._no_hit_steps += 1
        if self._no_hit_steps >= self.patience:
            self._limit = max(self._limit - self.step, self.min)
            self._no_hit_steps = 0

    def state_dict(self) -> dict[str, int]:
        """State that a checkpoint must hold to go on exactly here."""
        return {"limit": self._limit, "no_hit_steps": self._no_hit_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``'s answer.

        Raises:
            ValueError: a value is missing or of another kind, or the saved limit does not fit into
                this budget's [min, max]: resumed with other bounds. The budget is then as before.
        """
        limit, no_hit_steps = saved(state, "limit", "no_hit_steps")
        require_inside(limit, self.min, self.max)
        self._limit, self._no_hit_steps = limit, no_hit_steps

    def __str__(self) -> str:
        return f"{self.limit} to start, {self.min} to {self.max}, step {self.step}"


@dataclass
class QuantileBudget(Budget):
    """Batch-wise limit M that jumps to where most responses have lost their reliability.

    Where a share of ``hit_ratio`` or more of the responses is still reliable at its own limit,
    nobody knows how much longer they would have been: M becomes ``growth`` times the largest limit
    that was hit, but no smaller, so that responses which were sent out before the limit grew do not
    make it grow again. Otherwise a quantile of the effective lengths is known exactly, whatever was
    cut: M becomes the largest of the last ``patience`` batches' quantiles, plus ``margin``. It is
    kept in [min, max]. Not the paper's.

    With the quantile at 1 - hit_ratio a batch in three would grow by its noise alone; half way from
    there to 1 one in a hundred does (``benchmarks/budgets.py``, 256 responses).

    Raises:
        ValueError: unless 0 < min <= max, 0 <= hit_ratio <= 1, margin >= 0, patience >= 1, 1 <
            growth < inf and 1 - hit_ratio <= quantile <= 1: with a smaller one a limit that it
            sets would be hit at once and the next batch grow again.
    """

    init: int
    """Limit of the first batch, clipped into [min, max]."""
    min: int
    """The limit never falls below it."""
    max: int
    """The limit never rises above it."""
    hit_ratio: float = 0.1
    """Share of responses, reliable up to the limit, from which on it grows."""
    margin: int = 100
    """Tokens above the quantile."""
    patience: int = 3
    """Batches whose quantiles count: a limit falls once all of them are lower."""
    growth: float = 1.5
    """Factor of a limit that cuts responses alive."""
    quantile: float | None = None
    """Share of the responses whose effective length the limit holds. Default: 1 - hit_ratio / 2."""

    def __post_init__(self) -> None:
        self.quantile = 1 - self.hit_ratio / 2 if self.quantile is None else self.quantile
        require_whole(init=self.init, min=self.min, max=self.max)
        require_whole(margin=self.margin, patience=self.patience)
        _require(0 < self.min <= self.max, "0 < min <= max", min=self.min, max=self.max)
        _require(0 <= self.hit_ratio <= 1, "0 <= hit_ratio <= 1", hit_ratio=self.hit_ratio)
        _require(self.margin >= 0, "margin >= 0", margin=self.margin)
        _require(self.patience >= 1, "patience >= 1", patience=self.patience)
        _require(1 < self.growth < math.inf, "1 < growth < inf", growth=self.growth)
        least = 1 - self.hit_ratio
        allowed = f"1 - hit_ratio = {least:g} <= quantile <= 1"
        _require(least - SLACK <= self.quantile <= 1, allowed, quantile=self.quantile)
        self._limit = sorted((self.min, self.init, self.max))[1]
        self._recent: deque[int] = deque(maxlen=self.patience)

    @property
    def limit(self) -> int:
        """See ``Budget``."""
        return self._limit

    def update(
        self, effective_lengths: Sequence[int], limits: Sequence[int] | None = None
    ) -> dict[str, float]:
        """See ``Budget``; metrics by the names of the paper's release.

        Raises:
            ValueError: no sequence was given.
        """
        lengths, current = whole_lengths(effective_lengths), self._limit
        own = own_limits(lengths, limits, current)
        hit = [limit for length, limit in zip(lengths, own, strict=True) if length >= limit]
        hits = len(hit) / len(lengths)
        assert self.quantile is not None
        held = sorted(lengths)[max(0, math.ceil(self.quantile * len(lengths) - SLACK) - 1)]
        self._recent.append(held + self.margin)
        if hits >= self.hit_ratio:
            wanted = max(current, math.ceil(max(hit, default=current) * self.growth))
        else:
            wanted = max(self._recent)
        self._limit = sorted((self.min, wanted, self.max))[1]
        return {
            **budget_metrics(lengths, current, self._limit),
            **limit_metrics(own),
            "prune_opd/effective_response_length_hit_ratio": hits,
        }

    def state_dict(self) -> dict[str, Any]:
        """See ``Budget``."""
        return {"limit": self._limit, "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Budget``.

        Raises:
            ValueError: as for ``ResponseBudget``.
        """
        (limit,) = saved(state, "limit")
        recent = state.get("recent")
        if not isinstance(recent, list):
            raise ValueError(f"budget.recent: got {recent!r:.60}, allowed: a list of lengths")
        recent = [whole("recent", length) for length in recent]
        require_inside(limit, self.min, self.max)
        self._limit, self._recent = limit, deque(recent, maxlen=self.patience)

    def __str__(self) -> str:
        return f"{self.limit} to start, {self.min} to {self.max}, quantile {self.quantile:g}"


BUDGETS: Registry[Budget] = Registry(
    "prune_opd.budget.rule",
    Budget,
    hits=ResponseBudget,
    quantile=QuantileBudget,
    random="recipe.prune_opd.records.random_limits:RandomLimits",
)


def whole_lengths(effective_lengths: Sequence[int]) -> list[int]:
    """Effective lengths as whole numbers.

    Args:
        effective_lengths: as ``Budget.update`` takes them.

    Raises:
        ValueError: there is none.
    """
    lengths = [int(length) for length in effective_lengths]
    if not lengths:
        raise ValueError(
            "Budget.update: needs the effective length of at least one sequence, got none"
        )
    return lengths


def own_limits(lengths: Sequence[int], limits: Sequence[int] | None, current: int) -> Sequence[int]:
    """Limit of each response.

    Args:
        lengths: of a batch, ``whole_lengths``.
        limits: as ``Budget.update`` takes them.
        current: limit of all of them, where none are given.

    Raises:
        ValueError: as many are not given.
    """
    if limits is None:
        return [current] * len(lengths)
    if len(limits) != len(lengths):
        raise ValueError(f"Budget.update: got {len(limits)} limits of {len(lengths)} sequences")
    return limits


def limit_metrics(limits: Sequence[int]) -> dict[str, float]:
    """Metrics of the limits that the responses of a batch were generated under."""
    return {
        "prune_opd/response_limit_min": min(limits),
        "prune_opd/response_limit_max": max(limits),
    }


def budget_metrics(lengths: Sequence[int], current: int, following: int) -> dict[str, float]:
    """Metrics that every rule logs, by the names of the paper's release.

    Args:
        lengths: of a batch, ``whole_lengths``.
        current: limit it was generated under.
        following: limit of the next batch.
    """
    return {
        "prune_opd/current_max_response_length": current,
        "prune_opd/next_max_response_length": following,
        "prune_opd/effective_response_length_mean": sum(lengths) / len(lengths),
        "prune_opd/effective_response_length_max": max(lengths),
        "prune_opd/effective_response_length_min": min(lengths),
    }


def _require(condition: bool, rule: str, **given: float) -> None:
    if not condition:
        values = ", ".join(f"{name} = {value}" for name, value in given.items())
        raise ValueError(f"budget: {rule} is required, got {values}")
