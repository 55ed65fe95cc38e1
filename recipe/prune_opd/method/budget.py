"""The response budget: how long the next batch may generate. (METHOD: paper section 3.4)"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from recipe.prune_opd.method.registry import Registry


class Budget(ABC):
    """Limit on the response length that may move from batch to batch. All lengths are in tokens."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """M: the most tokens a response of the next batch may have."""

    @abstractmethod
    def update(self, effective_lengths: Sequence[int]) -> dict[str, float]:
        """Take in a batch that was generated under ``limit`` and move the limit for the next one.

        Args:
            effective_lengths: E of every real sequence (padding sequences left out), any iterable
                of numbers.

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


class ResponseBudget(Budget):
    """Batch-wise limit M on the response length, moved by how many responses stay reliable up to
    it.

    A response *hits* where its effective length reaches ``boundary = max(min, M - margin)``. Where
    the share of hits is ``hit_ratio`` or more the limit grows by ``step``, at most to ``max``;
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
            >= 1.
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

    def update(self, effective_lengths: Sequence[int]) -> dict[str, float]:
        """Take in a batch that was generated under ``limit`` and move the limit for the next one.

        Args:
            effective_lengths: E of every real sequence (padding sequences left out), any iterable
                of numbers.

        Returns:
            Metrics by the names of the paper's release.

        Raises:
            ValueError: no sequence was given.
        """
        lengths = [int(length) for length in effective_lengths]
        if not lengths:
            raise ValueError(
                "ResponseBudget.update: needs the effective length of at least one sequence, got"
                " none"
            )
        current = self._limit
        boundary = max(self.min, current - self.margin)
        hits = sum(length >= boundary for length in lengths) / len(lengths)
        self._move(hits)
        return {
            "prune_opd/current_max_response_length": current,
            "prune_opd/next_max_response_length": self._limit,
            "prune_opd/no_hit_steps": self._no_hit_steps,
            "prune_opd/effective_response_length_mean": sum(lengths) / len(lengths),
            "prune_opd/effective_response_length_max": max(lengths),
            "prune_opd/effective_response_length_min": min(lengths),
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
        limit, no_hit_steps = (_saved(state, name) for name in ("limit", "no_hit_steps"))
        if not self.min <= limit <= self.max:
            raise ValueError(
                f"prune_opd.budget: the checkpoint's limit is {limit}, outside min = {self.min} and"
                f" max = {self.max}; resume with bounds that contain it"
            )
        self._limit, self._no_hit_steps = limit, no_hit_steps


BUDGETS: Registry[Budget] = Registry("prune_opd.budget.rule", Budget, hits=ResponseBudget)


def _saved(state: Any, name: str) -> int:
    if not isinstance(state, dict):
        raise ValueError(
            f"budget: got {state!r:.60}, allowed: an object with limit and no_hit_steps"
        )
    if name not in state:
        raise ValueError(f"budget.{name} is missing, found: {', '.join(state) or 'nothing'}")
    value = state[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"budget.{name}: got {value!r:.60}, allowed: a whole number >= 0")
    return value


def _require(condition: bool, rule: str, **given: float) -> None:
    if not condition:
        values = ", ".join(f"{name} = {value}" for name, value in given.items())
        raise ValueError(f"ResponseBudget: {rule} is required, got {values}")
