"""Verdict and settings out of what was measured: the paper's values, scaled, each with a reason.

Where a number comes from and what it rests on: docs/diagnose.md.
"""

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from recipe.prune_opd.commands.diagnose.plan import Planned
from recipe.prune_opd.commands.pair.rules import BOUNDS, METRIC, SYMBOLS, UNRELATED_OVERLAP
from recipe.prune_opd.config import (
    PAPER_MAX,
    PAPER_MIN,
    BudgetConfig,
    GateConfig,
    PruneOPDConfig,
    load_config,
)
from recipe.prune_opd.method.drift import spent_at

CLOSE, DRIFTING, UNRELATED = "close", "drifting", "unrelated"
PAPER_EVENTS, PAPER_STEP, PAPER_STEPS = 100, 100, 203
"""Events that use up the reliability with w_drop = 0.01; change of the limit; steps of the paper's
runs."""
CLOSE_RATE = PAPER_EVENTS / PAPER_MIN
"""Events per token up to which a response is reliable for the whole of the paper's smallest
limit."""
JUDGED_K, JUDGED_THRESHOLD = 16, 0.7
"""k and γ of the bounds: events at another k or γ say nothing against them."""
WORSE = 0.05
"""Events per token more in the last quarter than in the first: the pair parts along the
response."""


@dataclass(frozen=True)
class Verdict:
    """Judgement of how the pair fits."""

    name: str
    """``close``, ``drifting`` or ``unrelated``."""
    reason: str


def judge(overlap: list[float], rate: list[float]) -> Verdict:
    """Judge a pair.

    Args:
        overlap: mean overlap by quarter of the response, at ``JUDGED_K``; see ``basis`` for another
            k.
        rate: events per token by quarter, at that k and ``JUDGED_THRESHOLD``.
    """
    known = [value for value in rate if not math.isnan(value)]
    first = next(value for value in overlap if not math.isnan(value))
    if first < UNRELATED_OVERLAP:
        return Verdict(
            UNRELATED,
            f"the two share {first:.2f} of their top candidates at the start of a response, less"
            f" than {UNRELATED_OVERLAP:g}: nothing to drift from; check that it is the right"
            " teacher",
        )
    if max(known) <= CLOSE_RATE:
        return Verdict(
            CLOSE,
            f"at most {max(known):.3f} drift events per token in every quarter of a response, no"
            f" more than {CLOSE_RATE:.3f}: reliable beyond the paper's smallest limit of"
            f" {PAPER_MIN:,} tokens, so the limit can grow from the first batch on, and there is"
            " little to prune",
        )
    course = (
        f"{known[0]:.2f} drift events per token in the first quarter of a response,"
        f" {known[-1]:.2f} in the last"
    )
    if known[-1] - known[0] > WORSE:
        return Verdict(
            DRIFTING, f"{course}: the two part along the response, which is what pruning is for"
        )
    return Verdict(
        DRIFTING,
        f"{course}: an initial mismatch that does not get worse; reliability runs out all the same,"
        " and training lowers the rate if the student can learn from this teacher",
    )


def basis(k: int, topk: int, threshold: float) -> str:
    """Note on the k and γ of a verdict; empty where they are the planned ones.

    Args:
        k: of the overlap that was judged.
        topk: the planned k.
        threshold: the planned γ.
    """
    if k != JUDGED_K:
        return (
            f"; judged at k = {k}, for which the bounds are not calibrated: they are of k ="
            f" {JUDGED_K}"
        )
    if (topk, threshold) != (JUDGED_K, JUDGED_THRESHOLD):
        return (
            f"; judged at k = {k} and γ = {JUDGED_THRESHOLD:g}, of which the bounds are, whatever"
            " is planned"
        )
    return ""


# ----------------------------------------------------------------------------------------- settings


def w_drop_for(limit: int) -> float:
    """Weight lost per event: the paper's 0.01 from 1,024 tokens on, below as many events per token.

    Rounded up to four decimals, which leaves the number of events that use up the reliability as it
    is.

    Args:
        limit: most tokens of a response.
    """
    events = min(PAPER_EVENTS, math.ceil(limit * CLOSE_RATE))
    return math.ceil(1e4 / events - 1e-9) / 1e4


def budget_for(effective: Tensor, w_drop: float, limit: int, steps: int) -> BudgetConfig:
    """Budget of the paper, scaled to limit and steps, started where this student keeps it.

    Args:
        effective: (B,) int64, effective lengths without a limit.
        w_drop: weight lost per event.
        limit: most tokens of a response.
        steps: of the planned run.
    """
    least = min(
        limit, max(math.ceil(limit * PAPER_MIN / PAPER_MAX), int(min(spent_at(w_drop), limit)))
    )
    step = max(1, round(limit * PAPER_STEP / PAPER_MAX * PAPER_STEPS / steps))
    # So many responses keep the limit where it is.
    hits = max(1, math.ceil(BudgetConfig().hit_ratio * len(effective) - 1e-9))
    reached = int(effective.sort(descending=True).values[hits - 1])
    first = sorted((least, reached + step, limit))[1]
    return BudgetConfig(init=first, min=least, max=limit, step=step, margin=step)


def gate_for(kind: str, limit: int) -> GateConfig:
    """Gate of one kind with the defaults, its window no more than a quarter of the limit."""
    return GateConfig(enable=True, kind=kind, window=max(1, min(GateConfig().window, limit // 4)))


@dataclass(frozen=True)
class Recommendation:
    """Settings to paste, with reasons."""

    settings: dict[str, Any]
    """Key without ``prune_opd.`` -> value."""
    reasons: list[str]

    @property
    def overrides(self) -> list[str]:
        """Settings as they are typed after the training command."""
        return [f"prune_opd.{key}={_written(value)}" for key, value in self.settings.items()]

    @property
    def yaml(self) -> str:
        """Settings as a block of a configuration file."""
        return OmegaConf.to_yaml(OmegaConf.create({"prune_opd": self._nested()}))

    def build(self, teacher: str) -> PruneOPDConfig:
        """Read the settings as the trainer would.

        Args:
            teacher: path of the teacher.

        Raises:
            ValueError: the trainer would refuse them.
        """
        nested = self._nested()
        nested["teacher"] = {"path": teacher}
        return load_config(OmegaConf.create(nested))

    def _nested(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, value in self.settings.items():
            group, _, name = key.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[name] = value
        return nested


def _written(value: Any) -> str:
    """Value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def recommend(effective: Tensor, planned: Planned) -> Recommendation:
    """Recommend settings for a run.

    Args:
        effective: (B,) int64, effective lengths at ``w_drop_for`` the limit, without a limit.
        planned: the run.
    """
    limit, steps, topk, threshold = planned.limit, planned.steps, planned.topk, planned.threshold
    w_drop = w_drop_for(limit)
    budget = budget_for(effective, w_drop, limit, steps)
    own = {} if planned.metric == METRIC else {"drift.metric": planned.metric}
    settings = {
        "topk": topk,
        **own,
        f"drift.{BOUNDS[planned.metric]}": threshold,
        "drift.w_drop": w_drop,
        "budget.init": budget.init,
        "budget.min": budget.min,
        "budget.max": budget.max,
        "budget.step": budget.step,
        "budget.margin": budget.margin,
        "gate.enable": False,
    }
    return Recommendation(settings, _reasons(planned, budget, int(spent_at(w_drop))))


def _reasons(planned: Planned, budget: BudgetConfig, spent: int) -> list[str]:
    """Reason for each group of settings; ``spent`` events use up the reliability."""
    events = (
        "the paper's"
        if spent == PAPER_EVENTS
        else f"as many per token of the limit as 100 in {PAPER_MIN:,}"
    )
    return [
        (
            f"topk, drift.{BOUNDS[planned.metric]}: k = {planned.topk} and"
            f" {SYMBOLS[planned.metric]} = {planned.threshold:g}; what another value costs in"
            " accuracy cannot be seen before training, and the paper found γ = 0.9 to cost some"
        ),
        f"drift.w_drop: weight is gone after {spent} events, {events}",
        f"budget.init: {_reached(budget)}",
        (
            f"budget.min: a twelfth of the limit, as in the paper, and at least the {spent} tokens"
            " that reliability needs to run out"
        ),
        (
            f"budget.step, budget.margin: the paper's {PAPER_STEP} of {PAPER_MAX:,} tokens in"
            f" {PAPER_STEPS} steps, for {planned.limit:,} tokens in {planned.steps} steps"
        ),
        "gate.enable: off, since it needs devices of its own; the table says what it would save",
    ]


def _reached(budget: BudgetConfig) -> str:
    """Reason for the first limit."""
    assert budget.init is not None
    share = f"{budget.hit_ratio:.0%} of this student's responses stay reliable"
    if budget.init == budget.max:
        return f"the largest limit; {share} to it, or to within the margin of it"
    if budget.init == budget.min:
        return f"the smallest limit; fewer than {share} beyond it"
    return (
        f"{share} to {budget.init - budget.margin:,} tokens, so about here the limit would settle"
        " by itself"
    )
