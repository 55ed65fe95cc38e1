"""What is measured of a pair, and the tokens of a training run under many settings, as one
dictionary of plain numbers.

Tokens are predicted for a student that does not change: responses that were sampled are drawn again
and again and cut where the response budget and the gate of training cut them. Shapes as in
``diagnosis``.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor
from tqdm import tqdm

from recipe.prune_opd.commands.diagnose.diagnosis import (
    KINDS,
    PairScores,
    Prediction,
    by_kind,
    by_position,
    by_quarter,
    interval_of_mean,
    lengths_of,
    predict,
)
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
from recipe.prune_opd.method.drift import overlap_events

POSITIONS = 16
"""Parts of the longest response in which overlap is given."""
RUNS, RESAMPLINGS = 10, 100
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
OFF = "off"
"""In the place of a gate's kind: no gate."""


@dataclass(frozen=True)
class Planned:
    """The run that is planned, and the settings to compare."""

    limit: int
    """Most tokens of a training response."""
    steps: int = 203
    batch: int = 256
    """Responses of a step."""
    topk: int = 16
    threshold: float = 0.7
    ks: tuple[int, ...] = (8, 16, 32)
    thresholds: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9)
    w_drops: tuple[float, ...] = (0.005, 0.01, 0.02)
    gates: tuple[str, ...] = (OFF, "cumulative", "windowed", "consecutive", "relative")
    seed: int = 0


def forecast(
    scores: PairScores, kinds: Tensor, ended: Tensor, planned: Planned, teacher: str
) -> dict[str, Any]:
    """Everything that is reported.

    Args:
        scores: of both models on the student's responses, none longer than the limit.
        kinds: (B, T) int64, numbers in ``diagnosis.KINDS``.
        ended: (B,) bool, the response ended by itself.
        planned: the run.
        teacher: its path, for the recommended settings.

    Raises:
        ValueError: the trainer would refuse the recommended settings.
    """
    events = overlap_events(scores.overlap[planned.topk], scores.mask, planned.threshold)
    measured = measure(scores, events, kinds, ended, planned)
    verdict = verdict_of(scores, planned)
    advice = recommend(
        events, scores.mask, planned.limit, planned.steps, planned.topk, planned.threshold
    )
    config = advice.build(teacher)
    prediction = predict(
        lengths_of(events, scores.mask, config.drift.w_drop),
        scores.groups,
        partial(config.budget.build, planned.limit),
        planned.batch,
        planned.steps,
        planned.seed,
        RUNS,
        RESAMPLINGS if len(scores.groups.unique()) > 1 else 0,
    )
    return {
        **measured,
        "verdict": asdict(verdict),
        "recommended": {
            "settings": advice.settings,
            "overrides": advice.overrides,
            "yaml": advice.yaml,
            "reasons": advice.reasons,
            "prediction": _with_shares(prediction, planned),
        },
        "grid": list(compare(scores, planned)),
    }


def verdict_of(scores: PairScores, planned: Planned) -> Verdict:
    """How the pair fits, at the k and γ of the bounds, or at the largest k there is where that one
    was not scored."""
    k = JUDGED_K if JUDGED_K in scores.overlap else max(scores.overlap)
    overlap, mask = scores.overlap[k], scores.mask
    events = overlap_events(overlap, mask, JUDGED_THRESHOLD)
    verdict = judge(by_quarter(overlap, mask), by_quarter(events, mask))
    return replace(verdict, reason=verdict.reason + basis(k, planned.topk, planned.threshold))


def measure(
    scores: PairScores, events: Tensor, kinds: Tensor, ended: Tensor, planned: Planned
) -> dict[str, dict[str, Any]]:
    """Where and on what the two part.

    Args:
        scores: of both models.
        events: (B, T) bool, at the planned k and γ.
        kinds: (B, T) int64.
        ended: (B,) bool.
        planned: the run.
    """
    mask, overlap = scores.mask, scores.overlap[planned.topk]
    mean, low, high = interval_of_mean(events, mask, scores.groups, RESAMPLINGS * 10, planned.seed)
    mass = {
        "student_mass": scores.student_mass,
        "teacher_mass": scores.teacher_mass,
        "teacher_on_student": scores.teacher_on_student,
    }
    return {
        "responses": _responses(scores, ended, planned.limit),
        "overlap": {
            "mean": _mean(overlap, mask),
            "by_k": {k: _mean(values, mask) for k, values in scores.overlap.items()},
            "by_quarter": by_quarter(overlap, mask),
            "by_position": _along({"overlap": overlap, "event_rate": events, **mass}, mask),
        },
        "events": {"mean": mean, "low": low, "high": high, "by_quarter": by_quarter(events, mask)},
        "mass": {name: _mean(values, mask) for name, values in mass.items()},
        "kinds": _kinds(events, overlap, mask, kinds),
        "effective_length": _effective_length(events, mask, planned.limit),
    }


def _mean(values: Tensor, mask: Tensor) -> float:
    return values[mask].double().mean().item()


def _responses(scores: PairScores, ended: Tensor, limit: int) -> dict[str, Any]:
    """How many there are, how long, and how they end."""
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


def _kinds(
    events: Tensor, overlap: Tensor, mask: Tensor, kinds: Tensor
) -> dict[str, dict[str, Any]]:
    """Tokens, events and overlap by kind of token."""
    rates = zip(KINDS, by_kind(events, mask, kinds), by_kind(overlap, mask, kinds), strict=True)
    return {
        name: {"tokens": int(((kinds == i) & mask).sum()), "event_rate": rate, "overlap": shared}
        for i, (name, rate, shared) in enumerate(rates)
    }


def _effective_length(events: Tensor, mask: Tensor, limit: int) -> dict[str, Any]:
    """How long responses stay reliable at the recommended w_drop."""
    w_drop = w_drop_for(limit)
    effective = lengths_of(events, mask, w_drop).effective
    return {
        "w_drop": w_drop,
        "mean": effective.double().mean().item(),
        "quantiles": {str(q): effective.double().quantile(q).item() for q in QUANTILES},
        "of_responses": effective.tolist(),
    }


def compare(scores: PairScores, planned: Planned) -> Iterator[dict[str, Any]]:
    """Tokens under every combination of settings; the budget of each is the one that would be
    recommended with them.

    Args:
        scores: of both models.
        planned: the run, and the settings.
    """
    cells = list(product(planned.ks, planned.thresholds, planned.w_drops, planned.gates))
    for k, threshold, w_drop, kind in tqdm(cells, desc="settings", unit=" combinations"):
        events = overlap_events(scores.overlap[k], scores.mask, threshold)
        if kind == OFF:
            lengths = lengths_of(events, scores.mask, w_drop)
        else:
            gate = gate_for(kind, planned.limit)
            chunk = gate.chunk_for(planned.limit)
            lengths = lengths_of(events, scores.mask, w_drop, partial(gate.build, w_drop), chunk)
        budget = budget_for(lengths.effective, w_drop, planned.limit, planned.steps)
        new_budget = partial(budget.build, planned.limit)
        prediction = predict(
            lengths, scores.groups, new_budget, planned.batch, planned.steps, planned.seed
        )
        yield {
            "topk": k,
            "threshold": threshold,
            "w_drop": w_drop,
            "gate": kind,
            "budget": {
                name: getattr(budget, name) for name in ("init", "min", "max", "step", "margin")
            },
            **_with_shares(prediction, planned),
        }


def _with_shares(prediction: Prediction, planned: Planned) -> dict[str, float]:
    """Tokens per response, and as parts of those without pruning and of the limit."""
    return {
        **asdict(prediction),
        "saved": 1 - prediction.generated / prediction.without_pruning,
        "of_limit": prediction.generated / planned.limit,
    }
