"""What is measured of a pair, and the tokens of a training run under many settings, as one dictionary of plain numbers.

Tokens are predicted for a student that does not change: responses that were sampled are drawn again and again and cut
where the response budget and the gate of training cut them. Shapes as in ``diagnosis``.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor
from tqdm import tqdm

from recipe.prune_opd.analysis.diagnosis import (
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
from recipe.prune_opd.analysis.recommend import budget_for, gate_for, judge, recommend, w_drop_for
from recipe.prune_opd.drift import overlap_events

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


def forecast(scores: PairScores, kinds: Tensor, ended: Tensor, planned: Planned, teacher: str) -> dict[str, Any]:
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
    verdict = judge(measured["overlap"]["by_quarter"], measured["events"]["by_quarter"])
    advice = recommend(events, scores.mask, planned.limit, planned.steps, planned.topk, planned.threshold)
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
    width = -(-mask.shape[-1] // POSITIONS)
    columns = {
        "overlap": overlap,
        "event_rate": events,
        "student_mass": scores.student_mass,
        "teacher_mass": scores.teacher_mass,
        "teacher_on_student": scores.teacher_on_student,
    }
    along = {name: by_position(values, mask, width) for name, values in columns.items()}
    starts = range(0, mask.shape[-1], width)
    positions = [
        {"from": start, "tokens": int(mask[:, start : start + width].sum()), **{name: along[name][i] for name in along}}
        for i, start in enumerate(starts)
    ]
    mean, low, high = interval_of_mean(events, mask, scores.groups, RESAMPLINGS * 10, planned.seed)
    effective = lengths_of(events, mask, w_drop_for(planned.limit)).effective
    lengths = scores.lengths
    return {
        "responses": {
            "number": len(lengths),
            "prompts": len(scores.groups.unique()),
            "tokens": int(lengths.sum()),
            "mean_length": lengths.double().mean().item(),
            "ended": int(ended.sum()),
            "at_limit": int((~ended & (lengths >= planned.limit)).sum()),
            "cut_early": int((~ended & (lengths < planned.limit)).sum()),
        },
        "overlap": {
            "mean": overlap[mask].double().mean().item(),
            "by_k": {k: values[mask].double().mean().item() for k, values in scores.overlap.items()},
            "by_quarter": by_quarter(overlap, mask),
            "by_position": positions,
        },
        "events": {"mean": mean, "low": low, "high": high, "by_quarter": by_quarter(events, mask)},
        "mass": {
            name: columns[name][mask].double().mean().item()
            for name in ("student_mass", "teacher_mass", "teacher_on_student")
        },
        "kinds": {
            name: {"tokens": int(((kinds == i) & mask).sum()), "event_rate": rate, "overlap": shared}
            for i, (name, rate, shared) in enumerate(
                zip(KINDS, by_kind(events, mask, kinds), by_kind(overlap, mask, kinds), strict=True)
            )
        },
        "effective_length": {
            "w_drop": w_drop_for(planned.limit),
            "mean": effective.double().mean().item(),
            "quantiles": {str(q): effective.double().quantile(q).item() for q in QUANTILES},
            "of_responses": effective.tolist(),
        },
    }


def compare(scores: PairScores, planned: Planned) -> Iterator[dict[str, Any]]:
    """Tokens under every combination of settings; the budget of each is the one that would be recommended with them.

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
            lengths = lengths_of(events, scores.mask, w_drop, partial(gate.build, w_drop), gate.chunk)
        budget = budget_for(lengths.effective, w_drop, planned.limit, planned.steps)
        new_budget = partial(budget.build, planned.limit)
        prediction = predict(lengths, scores.groups, new_budget, planned.batch, planned.steps, planned.seed)
        yield {
            "topk": k,
            "threshold": threshold,
            "w_drop": w_drop,
            "gate": kind,
            "budget": {name: getattr(budget, name) for name in ("init", "min", "max", "step", "margin")},
            **_with_shares(prediction, planned),
        }


def _with_shares(prediction: Prediction, planned: Planned) -> dict[str, float]:
    """Tokens per response, and as parts of those without pruning and of the limit."""
    return {
        **asdict(prediction),
        "saved": 1 - prediction.generated / prediction.without_pruning,
        "of_limit": prediction.generated / planned.limit,
    }
