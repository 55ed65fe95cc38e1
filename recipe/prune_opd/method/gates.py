"""Rules over drift events for when a response that is being generated is to be stopped.

A rule looks at a token and those before it. The response is stopped at the first token t at which
it holds and before which there are ``min_tokens`` others; these t tokens are kept. ``cumulative``
is the paper's reliability at 0. (METHOD: section 8)

Shapes: B responses, T tokens of each.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.prune_opd.method.drift import SLACK, spent_at
from recipe.prune_opd.method.numbers import require_count, require_rate
from recipe.prune_opd.method.registry import Registry


class GateRule(ABC):
    """Rule that stops a response."""

    @abstractmethod
    def holds(self, events: Tensor) -> Tensor:
        """Say at which tokens the rule holds, each by its own event and those before it.

        Args:
            events: D, (B, T) bool, from the start of the responses on.

        Returns:
            (B, T) bool.
        """

    @property
    @abstractmethod
    def reach(self) -> float:
        """Tokens a response must have for the rule to hold, at the least. 0 where it is not meant
        to hold."""


@dataclass(frozen=True)
class Cumulative(GateRule):
    """Reliability R = 1 - w_drop * events has reached 0 (METHOD: section 2)."""

    w_drop: float
    """The one of ``drift``, finite and >= 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.w_drop < math.inf:
            raise ValueError(f"w_drop must be a number >= 0, got {self.w_drop!r}")

    def holds(self, events: Tensor) -> Tensor:
        """See ``GateRule``."""
        return events.cumsum(-1) >= spent_at(self.w_drop)

    @property
    def reach(self) -> float:
        """See ``GateRule``."""
        return spent_at(self.w_drop)

    def __str__(self) -> str:
        return f"cumulative, w_drop = {self.w_drop}"


@dataclass(frozen=True)
class Windowed(GateRule):
    """Share of events among the last ``window`` tokens is above ``rate``."""

    window: int
    """Tokens, >= 1."""
    rate: float
    """Events per token in [0, 1)."""

    def __post_init__(self) -> None:
        require_count(window=self.window)
        require_rate(rate=self.rate)

    def holds(self, events: Tensor) -> Tensor:
        """See ``GateRule``."""
        return _in_last(events, self.window) > self.rate * self.window + SLACK

    @property
    def reach(self) -> float:
        """See ``GateRule``."""
        return self.window

    def __str__(self) -> str:
        return f"windowed, above {self.rate} events per token over {self.window} tokens"


@dataclass(frozen=True)
class Consecutive(GateRule):
    """``run_length`` events in a row."""

    run_length: int
    """Events, >= 1."""

    def __post_init__(self) -> None:
        require_count(run_length=self.run_length)

    def holds(self, events: Tensor) -> Tensor:
        """See ``GateRule``."""
        return _in_last(events, self.run_length) == self.run_length

    @property
    def reach(self) -> float:
        """See ``GateRule``."""
        return self.run_length

    def __str__(self) -> str:
        return f"consecutive, {self.run_length} events in a row"


@dataclass(frozen=True)
class Relative(GateRule):
    """The share of events in the last ``window`` tokens is more than ``increase`` above that in the
    first ``window``.

    The two windows never share a token. An initial mismatch of the pair thus stops nothing, getting
    worse does.
    """

    window: int
    """Tokens, >= 1."""
    increase: float
    """Events per token in [0, 1)."""

    def __post_init__(self) -> None:
        require_count(window=self.window)
        require_rate(increase=self.increase)

    def holds(self, events: Tensor) -> Tensor:
        """See ``GateRule``."""
        first = events[..., : self.window].sum(-1, keepdim=True)
        risen = _in_last(events, self.window) - first > self.increase * self.window + SLACK
        return risen & (torch.arange(events.shape[-1]) + 1 >= 2 * self.window)

    @property
    def reach(self) -> float:
        """See ``GateRule``."""
        return 2 * self.window

    def __str__(self) -> str:
        more = f"{self.increase} events per token above the first {self.window} tokens"
        return f"relative, {more}"


@dataclass(frozen=True)
class Never(GateRule):
    """Stops nothing. The teacher scores responses while they grow all the same."""

    def holds(self, events: Tensor) -> Tensor:
        """See ``GateRule``."""
        return torch.zeros_like(events, dtype=torch.bool)

    @property
    def reach(self) -> float:
        """See ``GateRule``."""
        return 0

    def __str__(self) -> str:
        return "never, stops nothing"


GATES: Registry[GateRule] = Registry(
    "prune_opd.gate.kind",
    GateRule,
    cumulative=Cumulative,
    windowed=Windowed,
    consecutive=Consecutive,
    relative=Relative,
    never=Never,
)


def _in_last(events: Tensor, window: int) -> Tensor:
    """Events among the ``window`` tokens that end at each, (B, T) int64; -1 where there are fewer
    tokens."""
    count, tokens = events.long().cumsum(-1), events.shape[-1]
    # A window longer than the response is never whole, however much longer it is.
    before = torch.nn.functional.pad(count, (min(window, tokens), 0))[..., :tokens]
    whole = torch.arange(tokens) + 1 >= window
    return torch.where(whole, count - before, -1)


def stops(rule: GateRule, events: Tensor, min_tokens: int) -> Tensor:
    """Find where whole responses would be stopped.

    Args:
        rule: that stops them.
        events: D, (B, T) bool, False behind the end of a response.
        min_tokens: tokens that are kept in any case, >= 1.

    Returns:
        (B,) int64, tokens to keep; T where a response is not stopped.
    """
    late_enough = torch.arange(events.shape[-1]) >= min_tokens
    holds = rule.holds(events) & late_enough
    end = holds.new_ones(*holds.shape[:-1], 1)
    return torch.cat([holds, end], -1).long().argmax(-1)


class Gate:
    """A rule and how far it has got with one response.

    Args:
        rule: that stops it.
        min_tokens: tokens that are kept in any case, >= 1.

    Raises:
        ValueError: ``min_tokens`` is below 1.
    """

    def __init__(self, rule: GateRule, min_tokens: int = 1):
        if min_tokens < 1:
            raise ValueError(f"min_tokens: got {min_tokens}, allowed: a whole number >= 1")
        self.rule, self.min_tokens = rule, min_tokens
        self.stop: int | None = None
        """Tokens to keep, once the response is to be stopped."""
        self._events = torch.zeros(1, 0, dtype=torch.bool)

    @property
    def tokens(self) -> int:
        """Tokens that it has been fed."""
        return self._events.shape[-1]

    def feed(self, events: Iterable[bool]) -> int | None:
        """Go on with the next tokens.

        Args:
            events: whether each of them is a drift event, in order.

        Returns:
            Tokens of the response to keep, or None while it may go on.
        """
        new = torch.tensor([list(events)], dtype=torch.bool)
        self._events = torch.cat([self._events, new], -1)
        seen = self.tokens
        if self.stop is None and seen:
            stop = int(stops(self.rule, self._events, self.min_tokens))
            self.stop = stop if stop < seen else None
        return self.stop
