"""Answers about a pair: what was seen, how bad it is, and what to change."""

from dataclasses import dataclass

OK, SKIPPED, WARNING, ERROR = "ok", "skipped", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """Answer to one question."""

    name: str
    status: str
    """``ok``, ``warning``, ``error``, or ``skipped`` for what was not looked at."""
    evidence: str
    change: str = ""
    """Advice what to do about it; empty where there is nothing."""
