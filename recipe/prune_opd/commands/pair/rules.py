"""Rules of a run with few settings changed, as the trainer would make them of its keys."""

from recipe.prune_opd.config import DriftConfig, PruneOPDConfig, TeacherConfig
from recipe.prune_opd.method.pruning import Rules

THRESHOLD, W_DROP = DriftConfig().threshold, DriftConfig().w_drop
"""Defaults of the recipe."""
UNRELATED_OVERLAP = 0.3
"""Mean overlap below which a teacher has little to say about what the student writes."""


def rules_of(threshold: float = THRESHOLD, w_drop: float = W_DROP) -> Rules:
    """Rules of a run: these two settings, defaults of the recipe for all else.

    Args:
        threshold: γ, ``prune_opd.drift.threshold``.
        w_drop: ``prune_opd.drift.w_drop``.

    Raises:
        ValueError: the trainer would refuse one of them.
    """
    drift = DriftConfig(threshold=threshold, w_drop=w_drop)
    return PruneOPDConfig(teacher=TeacherConfig(path="TEACHER"), drift=drift).rules
