"""Answer about a pair as plain numbers: what is measured, and tokens of runs under many settings.

Tokens are predicted for a student that does not change: responses that were sampled are drawn again
and again and cut where the response budget and the gate of training cut them.

Shapes: B responses, T positions.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from torch import Tensor
from tqdm import tqdm

from recipe.prune_opd.commands.diagnose.intervals import of_mean
from recipe.prune_opd.commands.diagnose.lengths import Lengths, lengths_of
from recipe.prune_opd.commands.diagnose.plan import OFF, Planned
from recipe.prune_opd.commands.diagnose.recommend import (
    JUDGED_K,
    JUDGED_THRESHOLD,
    Verdict,
    basis,
    budget_for,
    gate_for,
    judge,
    recommend,
    w_drop_for,
)
from recipe.prune_opd.commands.diagnose.runs import (
    NewBudget,
    Prediction,
    interval_of_generated,
    predict,
)
from recipe.prune_opd.commands.diagnose.scores import (
    PairScores,
    by_kind,
    by_position,
    by_quarter,
    mean,
)
from recipe.prune_opd.commands.diagnose.tokens import KINDS
from recipe.prune_opd.commands.pair.rules import rules_of
from recipe.prune_opd.config import BudgetConfig
from recipe.prune_opd.method.pruning import Drift, find_drift

POSITIONS = 16
"""Parts of the longest response in which overlap is given."""
RUNS, RESAMPLINGS = 10, 100
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def forecast(
    scores: PairScores, kinds: Tensor, ended: Tensor, planned: Planned, teacher: str
) -> dict[str, Any]:
    """Put together everything that is reported.

    Args:
        scores: of both models on the student's responses, none longer than the limit.
        kinds: (B, T) int64, numbers in ``KINDS``.
        ended: (B,) bool, the response ended by itself.
        planned: the run.
        teacher: its path, for the recommended settings.

    Raises:
        ValueError: the trainer would refuse the recommended settings.
    """
    w_drop = w_drop_for(planned.limit)
    drift = planned_drift(scores, planned)
    measured = {
        "responses": _responses(scores, ended, planned.limit),
        **measure(scores, drift, kinds, planned),
        "effective_length": _effective_length(drift, w_drop),
    }
    return {
        **measured,
        "verdict": asdict(verdict_of(scores, planned)),
        "recommended": _recommended(scores, drift, planned, teacher),
        "grid": list(compare(scores, planned)),
    }


def planned_drift(scores: PairScores, planned: Planned) -> Drift:
    """Drift by the rules that are planned, at the recommended w_drop."""
    rules = rules_of(planned.threshold, w_drop_for(planned.limit), planned.metric)
    return find_drift(scores.at(planned.topk), scores.mask, rules)


def verdict_of(scores: PairScores, planned: Planned) -> Verdict:
    """Judge how the pair fits, at the k and γ of the bounds, or at the largest k scored."""
    k = JUDGED_K if JUDGED_K in scores.ks else max(scores.ks)
    drift = find_drift(scores.at(k), scores.mask, rules_of(JUDGED_THRESHOLD))
    verdict = judge(by_quarter(drift.overlap, drift.mask), by_quarter(drift.events, drift.mask))
    return replace(verdict, reason=verdict.reason + basis(k, planned.topk, planned.threshold))


def _recommended(
    scores: PairScores, drift: Drift, planned: Planned, teacher: str
) -> dict[str, Any]:
    """Settings, reasons, and what they should come to."""
    lengths = lengths_of(drift)
    advice = recommend(lengths.effective, planned)
    new_budget = _played(advice.build(teacher).budget, planned)
    prediction = predict(lengths, new_budget, planned, RUNS)
    low, high = interval_of_generated(lengths, scores.groups, new_budget, planned, RESAMPLINGS)
    return {
        "settings": advice.settings,
        "overrides": advice.overrides,
        "yaml": advice.yaml,
        "reasons": advice.reasons,
        "prediction": _with_shares(replace(prediction, low=low, high=high), planned),
    }


# ----------------------------------------------------------------------------------------- measured


def measure(
    scores: PairScores, drift: Drift, kinds: Tensor, planned: Planned
) -> dict[str, dict[str, Any]]:
    """Measure where and on what the two part.

    Args:
        scores: of both models.
        drift: at the planned k and γ.
        kinds: (B, T) int64.
        planned: the run.
    """
    mask, overlap, events = drift.mask, drift.overlap, drift.events
    low, high = of_mean(events, mask, scores.groups, RESAMPLINGS * 10, planned.seed)
    mass = scores.mass(planned.topk)
    return {
        "overlap": {
            "mean": mean(overlap, mask),
            "by_k": {k: mean(scores.at(k).overlap, mask) for k in scores.ks},
            "by_quarter": by_quarter(overlap, mask),
            "by_position": _along({"overlap": overlap, "event_rate": events, **mass}, mask),
        },
        "events": {
            "mean": mean(events, mask),
            "low": low,
            "high": high,
            "by_quarter": by_quarter(events, mask),
        },
        "mass": {name: mean(values, mask) for name, values in mass.items()},
        "kinds": _kinds(drift, kinds),
    }


def _responses(scores: PairScores, ended: Tensor, limit: int) -> dict[str, Any]:
    """Count responses, tokens, and ways in which responses end."""
    lengths = scores.lengths
    return {
        "number": len(lengths),
        "prompts": len(scores.groups.unique()),
        "tokens": int(lengths.sum()),
        "mean_length": lengths.double().mean().item(),
        "ended": int(ended.sum()),
        "at_limit": int((~ended & (lengths >= limit)).sum()),
        "cut_early": int((~ended & (lengths < limit)).sum()),
    }


def _along(columns: dict[str, Tensor], mask: Tensor) -> list[dict[str, Any]]:
    """Means of (B, T) columns in ``POSITIONS`` parts of the longest response."""
    width = -(-mask.shape[-1] // POSITIONS)
    along = {name: by_position(values, mask, width) for name, values in columns.items()}
    return [
        {
            "from": start,
            "tokens": int(mask[:, start : start + width].sum()),
            **{name: along[name][i] for name in along},
        }
        for i, start in enumerate(range(0, mask.shape[-1], width))
    ]


def _kinds(drift: Drift, kinds: Tensor) -> dict[str, dict[str, Any]]:
    """Tokens, events and overlap by kind of token."""
    mask = drift.mask
    rates, shares = by_kind(drift.events, mask, kinds), by_kind(drift.overlap, mask, kinds)
    return {
        name: {
            "tokens": int(((kinds == i) & mask).sum()),
            "event_rate": rates[i],
            "overlap": shares[i],
        }
        for i, name in enumerate(KINDS)
    }


def _effective_length(drift: Drift, w_drop: float) -> dict[str, Any]:
    """Tokens that responses stay reliable at the recommended w_drop."""
    effective = drift.reliability.effective_length
    return {
        "w_drop": w_drop,
        "mean": effective.double().mean().item(),
        "quantiles": {str(q): effective.double().quantile(q).item() for q in QUANTILES},
        "of_responses": effective.tolist(),
    }


# ----------------------------------------------------------------------------------------- compared


def compare(scores: PairScores, planned: Planned) -> Iterator[dict[str, Any]]:
    """Predict tokens under every combination of settings, each with the budget recommended with it.

    Args:
        scores: of both models.
        planned: the run, and the settings.
    """
    cells = list(product(planned.ks, planned.thresholds, planned.w_drops, planned.gates))
    for k, threshold, w_drop, kind in tqdm(cells, desc="settings", unit=" combinations"):
        rules = rules_of(threshold, w_drop, planned.metric)
        drift = find_drift(scores.at(k), scores.mask, rules)
        lengths = _gated(drift, w_drop, kind, planned.limit)
        budget = budget_for(lengths.effective, w_drop, planned.limit, planned.steps)
        prediction = predict(lengths, _played(budget, planned), planned)
        yield {
            "topk": k,
            "threshold": threshold,
            "w_drop": w_drop,
            "gate": kind,
            "budget": _numbers(budget),
            **_with_shares(prediction, planned),
        }


def _gated(drift: Drift, w_drop: float, kind: str, limit: int) -> Lengths:
    """Lengths with a gate of one kind, or without one."""
    if kind == OFF:
        return lengths_of(drift)
    gate = gate_for(kind, limit)
    rule, chunk = gate.build(w_drop), gate.chunk_for(limit)
    return lengths_of(drift, rule, chunk, gate.min_tokens)


def _played(budget: BudgetConfig, planned: Planned) -> NewBudget:
    """Maker of a budget for a run that is played: its limit moves for ``pace`` steps at once."""
    return budget.changed(step=budget.step * planned.pace).resolved(planned.limit).build


def _numbers(budget: BudgetConfig) -> dict[str, int]:
    return {name: getattr(budget, name) for name in ("init", "min", "max", "step", "margin")}


def _with_shares(prediction: Prediction, planned: Planned) -> dict[str, float]:
    """Tokens per response, and as parts of those without pruning and of the limit."""
    return {
        **asdict(prediction),
        "saved": 1 - prediction.generated / prediction.without_pruning,
        "of_limit": prediction.generated / planned.limit,
    }
