"""Planned run, and settings that are compared."""

from dataclasses import dataclass

from recipe.prune_opd.commands.pair.rules import METRIC

MOST_PLAYED = 1000
"""Steps of a run that are played. A longer one is played in larger ones."""
OFF = "off"
"""Stand-in for a gate's kind: no gate."""


@dataclass(frozen=True)
class Planned:
    """Planned run, and settings to compare."""

    limit: int
    """Most tokens of a training response."""
    steps: int = 203
    batch: int = 256
    """Responses of a step."""
    topk: int = 16
    threshold: float = 0.7
    """Bound of the metric: γ of ``overlap_ratio``, top_p of ``teacher_top_p_accept``."""
    ks: tuple[int, ...] = (8, 16, 32)
    thresholds: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9)
    w_drops: tuple[float, ...] = (0.005, 0.01, 0.02)
    gates: tuple[str, ...] = (OFF,)
    seed: int = 0
    metric: str = METRIC

    @property
    def pace(self) -> int:
        """Steps of the run for each that is played, in which the limit moves as far."""
        return -(-self.steps // MOST_PLAYED)

    @property
    def played(self) -> int:
        """Steps that are played."""
        return -(-self.steps // self.pace)
