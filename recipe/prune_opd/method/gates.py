"""When is a response that is being generated to be stopped? Rules over its drift events, fed as
they come.

A rule looks at token t and those before it. The response is stopped at the first t for which it
holds and for which ``min_tokens`` tokens come before; these t tokens are kept. ``cumulative`` is
the paper's reliability at 0.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable

from recipe.prune_opd.method.drift import SLACK, spent_at


class Gate(ABC):
    """A rule and how far it has got with one response.

    Args:
        min_tokens: tokens that are kept in any case, >= 1.

    Raises:
        ValueError: ``min_tokens`` is below 1.
    """

    def __init__(self, min_tokens: int = 1):
        if min_tokens < 1:
            raise ValueError(f"min_tokens: got {min_tokens}, allowed: a whole number >= 1")
        self.min_tokens = min_tokens
        self.seen = 0
        self.stop: int | None = None
        """Tokens to keep, once the response is to be stopped."""

    def feed(self, events: Iterable[bool]) -> int | None:
        """Go on with the next tokens.

        Args:
            events: whether each of them is a drift event, in order.

        Returns:
            Tokens of the response to keep, or None while it may go on.
        """
        for event in events:
            if self.stop is None and self._holds(bool(event)) and self.seen >= self.min_tokens:
                self.stop = self.seen
            self.seen += 1
        return self.stop

    @abstractmethod
    def _holds(self, event: bool) -> bool:
        """Whether the rule holds at the token that has ``seen`` others before it."""


class Cumulative(Gate):
    """Reliability R = 1 - w_drop * events has reached 0 (METHOD: paper section 3.2)."""

    def __init__(self, w_drop: float, min_tokens: int = 1):
        super().__init__(min_tokens)
        self.left = spent_at(w_drop)

    def _holds(self, event: bool) -> bool:
        self.left -= event
        return self.left <= 0


class Windowed(Gate):
    """Of the last ``window`` tokens a share above ``rate`` are events."""

    def __init__(self, window: int, rate: float, min_tokens: int = 1):
        super().__init__(min_tokens)
        self.last, self.most = _Window(window), rate * window + SLACK

    def _holds(self, event: bool) -> bool:
        self.last.add(event)
        return self.seen + 1 >= self.last.size and self.last.events > self.most


class Consecutive(Gate):
    """``run_length`` events in a row."""

    def __init__(self, run_length: int, min_tokens: int = 1):
        super().__init__(min_tokens)
        self.run_length, self.run = run_length, 0

    def _holds(self, event: bool) -> bool:
        self.run = self.run + 1 if event else 0
        return self.run >= self.run_length


class Relative(Gate):
    """The share of events in the last ``window`` tokens is more than ``increase`` above that in the
    first ``window``.

    The two windows never share a token. An initial mismatch of the pair thus stops nothing, getting
    worse does.
    """

    def __init__(self, window: int, increase: float, min_tokens: int = 1):
        super().__init__(min_tokens)
        self.first, self.last, self.most = 0, _Window(window), increase * window + SLACK

    def _holds(self, event: bool) -> bool:
        self.last.add(event)
        if self.seen < self.last.size:
            self.first += event
        return self.seen + 1 >= 2 * self.last.size and self.last.events - self.first > self.most


class Never(Gate):
    """Stops nothing. The teacher scores responses while they grow all the same."""

    def _holds(self, event: bool) -> bool:
        return False


class _Window:
    """Number of events among the last ``size`` tokens."""

    def __init__(self, size: int):
        self.size, self.events = size, 0
        self._flags: deque[bool] = deque([False] * size, maxlen=size)

    def add(self, event: bool) -> None:
        self.events += event - self._flags[0]
        self._flags.append(event)
