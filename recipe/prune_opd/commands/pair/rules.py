"""Rules of a run with few settings changed, as the trainer would make them of its keys."""

from typing import Any

from recipe.prune_opd.config import DriftConfig, PruneOPDConfig, TeacherConfig
from recipe.prune_opd.method.pruning import Rules

THRESHOLD, W_DROP = DriftConfig().threshold, DriftConfig().w_drop
"""Defaults of the recipe."""
METRIC, TOP_P = DriftConfig().metric, DriftConfig().top_p
"""Defaults of the recipe."""
BOUNDS = {"overlap_ratio": "threshold", "teacher_top_p_accept": "top_p"}
"""Drift metric -> the key of ``prune_opd.drift`` that says what an event is."""
SYMBOLS = {"overlap_ratio": "γ", "teacher_top_p_accept": "top_p"}
"""Drift metric -> this key's name for a reader."""
UNRELATED_OVERLAP = 0.3
"""Mean overlap below which a teacher has little to say about what the student writes."""


def rules_of(bound: float = THRESHOLD, w_drop: float = W_DROP, metric: str = METRIC) -> Rules:
    """Rules of a run: these settings, defaults of the recipe for all else.

    Args:
        bound: of the metric, γ or top_p; see ``BOUNDS``.
        w_drop: ``prune_opd.drift.w_drop``.
        metric: ``prune_opd.drift.metric``, one of ``BOUNDS``.

    Raises:
        ValueError: the trainer would refuse one of them.
    """
    given: dict[str, Any] = {"metric": metric, "w_drop": w_drop, BOUNDS[metric]: bound}
    drift = DriftConfig(**given)
    return PruneOPDConfig(teacher=TeacherConfig(path="TEACHER"), drift=drift).rules
