"""A reward that responses of an untrained student differ in."""

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: Any, **given: Any) -> float:
    """A fifth for each character beyond the last five."""
    return len(solution_str) % 5 / 5
