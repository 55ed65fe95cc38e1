"""Rotation among several servers: whom to ask next. Knows nothing of what they are asked."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from verl_ext.rollout.rows import BadQuestion, NoServer

logger = logging.getLogger(__name__)

REST = 30.0
"""Seconds for which a server that failed is not asked while others are left."""
PATIENCE = 3
"""Times in a row that a server may leave a question unanswered until its deadline."""


class Rotation:
    """Servers that share questions: the least busy is asked, at random among equals.

    One that fails rests for ``REST`` seconds, in which it is asked only if all rest. One that is
    not heard of until the deadline ``PATIENCE`` times in a row is out for good, like one that is
    known to be dead.

    Args:
        names: of the servers.
        on_drop: called with the name of one that goes out.
    """

    def __init__(self, names: list[str], on_drop: Callable[[str], None] | None = None):
        self.names, self._on_drop = list(names), on_drop
        self._busy: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._rests_until: dict[str, float] = {}

    @contextmanager
    def turn(self) -> Iterator[str]:
        """Lend the server to ask, and see how it does: a deadline ends the block by cancelling.

        Raises:
            NoServer: none is left.
        """
        if not self.names:
            raise NoServer("no teacher server is left")
        name = min(
            self.names, key=lambda name: (self._rest(name), self._busy[name], random.random())
        )
        self._busy[name] += 1
        try:
            yield name
            self._late[name] = 0
            self._rests_until.pop(name, None)
        except BadQuestion:
            raise
        except asyncio.CancelledError:
            self._late[name] += 1
            if self._late[name] >= PATIENCE:
                self.drop(name)
            self._rests_until[name] = time.monotonic() + REST
            raise
        except Exception:
            self._rests_until[name] = time.monotonic() + REST
            raise
        finally:
            self._busy[name] -= 1

    def _rest(self, name: str) -> float:
        """Seconds left of a server's rest."""
        return max(0.0, self._rests_until.get(name, 0.0) - time.monotonic())

    def drop(self, name: str) -> None:
        """Drop a server: it is asked no more."""
        if name in self.names:
            self.names.remove(name)
            if self._on_drop is not None:
                self._on_drop(name)
            logger.warning("the teacher server %s does not answer and gets no more questions", name)
