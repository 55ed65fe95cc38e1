"""What a step tells about drift: sums per response on the workers, means over responses on the
driver.

Shapes: B responses, T positions, K candidates. A response's sums are one row of C = len(COLUMNS)
numbers, so that nothing of shape (B, T) has to reach the driver.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recipe.prune_opd.method.pruning import Pruned
from recipe.prune_opd.method.reward import Scores
from recipe.prune_opd.records.positions import by_position
from recipe.prune_opd.records.reports import GateReport

if TYPE_CHECKING:  # its package imports verl, this module only torch
    from verl_ext.rollout.scoring import ScoreReport

BUCKETS = 8
"""Position buckets: equal parts of the largest limit; the last also takes what lies beyond."""

SUMS = (
    "tokens",
    "overlap",
    "events",
    "weight",
    "loss_weight",
    "zero_weight",
    "reward",
    "pruned_reward",
    "student_mass",
    "teacher_mass",
)
"""Per-token values that are summed over a response."""
BY_POSITION = ("tokens", "overlap", "events", "loss_weight")
"""Those also summed by position bucket."""
OF_REPORT = (
    "stopped",
    "generated",
    "teacher_tokens",
    "asked",
    "waited",
    "late",
    "failed",
    "given_up",
)
GATE = (*OF_REPORT, "gate_tokens", "gate_agreed")
"""Of the ``GateReport``; then tokens the gate looked at, and those on which it and the trainer say
the same."""
PER_RESPONSE = ("effective_length", "ended", "missing", *GATE)
COLUMNS = (*SUMS, *PER_RESPONSE, *(f"{name}/{i}" for name in BY_POSITION for i in range(BUCKETS)))


@dataclass(frozen=True)
class Facts:
    """What is known of each response beside its scores."""

    ended: Tensor
    """(B,) bool, the response ended by itself."""
    missing: Tensor
    """(B,) int, generated tokens that do not count because the teacher gave no score for them."""
    gate: Tensor
    """(B, len(GATE)), columns as in ``GATE``."""


def response_sums(pruned: Pruned, scores: Scores, facts: Facts, max_length: int) -> Tensor:
    """One row of sums per response, columns as in ``COLUMNS``.

    Args:
        pruned: the batch.
        scores: it was made of.
        facts: of the same responses.
        max_length: the largest limit, in tokens.

    Returns:
        (B, C) float32.
    """
    weights = pruned.reliability
    per_token = {
        "tokens": torch.ones_like(pruned.overlap),
        "overlap": pruned.overlap,
        "events": pruned.events,
        "weight": weights.weight,
        "loss_weight": weights.loss_weight,
        "zero_weight": weights.weight == 0,
        "reward": pruned.reward.reward.sum(-1),
        "pruned_reward": pruned.advantages.sum(-1),
        "student_mass": scores.student.log_probs.exp().sum(-1),
        "teacher_mass": scores.teacher.log_probs.exp().sum(-1),
    }
    mask = pruned.mask
    per_token = {name: torch.where(mask, value.float(), 0.0) for name, value in per_token.items()}
    columns = [per_token[name].sum(-1) for name in SUMS]
    columns += [weights.effective_length, facts.ended, facts.missing, *facts.gate.unbind(-1)]
    positions = torch.arange(mask.shape[-1]) // bucket_width(max_length)
    for name in BY_POSITION:
        buckets = torch.zeros(mask.shape[0], BUCKETS).index_add(
            -1, positions.clamp(max=BUCKETS - 1), per_token[name]
        )
        columns += list(buckets.unbind(-1))
    return torch.stack([column.float() for column in columns], -1)


def bucket_width(max_length: int) -> int:
    """Positions per bucket."""
    return -(-max_length // BUCKETS)


def summarise(sums: Tensor, max_length: int) -> dict[str, float]:
    """Means over all tokens of a batch, under their logged names.

    Args:
        sums: (B, C), real responses only.
        max_length: as in ``response_sums``.
    """
    total = dict(zip(COLUMNS, sums.double().sum(0).tolist(), strict=True))
    tokens, responses = max(total["tokens"], 1.0), len(sums)
    metrics = {
        "prune_opd/overlap_ratio": total["overlap"] / tokens,
        "prune_opd/event_rate": total["events"] / tokens,
        "prune_opd/reliability_weight": total["weight"] / tokens,
        "prune_opd/loss_weight": total["loss_weight"] / tokens,
        "prune_opd/zero_weight_ratio": total["zero_weight"] / tokens,
        "prune_opd/generated_tokens": total["tokens"],
        "prune_opd/kept_tokens": total["effective_length"],
        "prune_opd/reward_mean": total["reward"] / tokens,
        "prune_opd/pruned_reward_mean": total["pruned_reward"] / tokens,
        "prune_opd/student_topk_mass": total["student_mass"] / tokens,
        "prune_opd/teacher_topk_mass": total["teacher_mass"] / tokens,
        "prune_opd/ended_ratio": total["ended"] / responses,
        "prune_opd/limit_hit_ratio": 1 - (total["ended"] + total["stopped"]) / responses,
    }
    for i in range(BUCKETS):
        count = total[f"tokens/{i}"]
        if count:  # no response reached this bucket: no value rather than a made-up one
            start = i * bucket_width(max_length)
            metrics[f"prune_opd/overlap_ratio/from_{start}"] = total[f"overlap/{i}"] / count
            metrics[f"prune_opd/event_rate/from_{start}"] = total[f"events/{i}"] / count
            metrics[f"prune_opd/loss_weight/from_{start}"] = total[f"loss_weight/{i}"] / count
    return metrics


QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def step_record(
    sums: Tensor, positions: Tensor, edges: list[int], limit: int, next_limit: int, longest: int
) -> dict[str, Any]:
    """What the records keep of a step; ``docs/records.md`` says what each value means.

    Args:
        sums: (B, C), real responses only, at least one.
        positions: (B, F * N) of the same, see ``positions``.
        edges: of the position buckets.
        limit: under which the responses were generated.
        next_limit: of the next batch.
        longest: the largest limit.
    """
    column = dict(zip(COLUMNS, sums.double().unbind(-1), strict=True))
    total = by_position(positions, edges)
    kept, scored = column["tokens"] + column["missing"], column["tokens"] > 0
    # What the gate cut off again was generated, too.
    generated = torch.maximum(column["generated"], kept)
    ended, stopped = column["ended"].mean().item(), column["stopped"].mean().item()
    cut = column["ended"] == 0
    used = max((i + 1 for i, count in enumerate(total["tokens"]) if count), default=0)
    means = {
        name: [
            _rounded(value / count) if count else None
            for value, count in zip(row, total["tokens"], strict=True)
        ]
        for name, row in total.items()
        if name not in ("tokens", "trained")
    }
    return {
        "limit": limit,
        "next_limit": next_limit,
        "responses": len(sums),
        "length": _distribution(kept),
        "effective_length": _distribution(column["effective_length"][scored]),
        "share": {"ended": ended, "gate": stopped, "limit": 1 - ended - stopped},
        "tokens": {
            "generated": int(generated.sum()),
            "scored": int(column["tokens"].sum()),
            "trained": int(sum(total["trained"])),
            "reliable": int(column["effective_length"].sum()),
            "saved": int((longest - generated)[cut].clamp(min=0).sum()),
        },
        "positions": {
            "edges": edges[: used + 1],
            "tokens": [int(count) for count in total["tokens"][:used]],
            **{name: row[:used] for name, row in means.items()},
        },
    }


def _distribution(values: Tensor) -> dict[str, float | None] | None:
    """Mean, extremes and quantiles of (B,) values; None where there are none."""
    if not len(values):
        return None
    quantiles = torch.quantile(values, torch.tensor(QUANTILES, dtype=values.dtype)).tolist()
    named = {
        f"q{round(100 * q)}": _rounded(value) for q, value in zip(QUANTILES, quantiles, strict=True)
    }
    extremes = {"min": values.min(), "max": values.max(), "mean": values.mean()}
    return {**{name: _rounded(value.item()) for name, value in extremes.items()}, **named}


def _rounded(value: float) -> float | None:
    """With six digits; None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def gate_columns(reports: list[GateReport | None], events: Tensor) -> Tensor:
    """What the gate did, and what it said against what the trainer found, (B, len(GATE)) float32.

    Args:
        reports: of each response; None where there was no gate.
        events: (B, T) bool, the trainer's.
    """
    columns = torch.zeros(len(reports), len(GATE))
    for row, report in enumerate(reports):
        if report is not None:
            # A padding row has the report of another response.
            seen = torch.as_tensor(report.events)[: events.shape[1]]
            agreed = int((seen == events[row, : len(seen)]).sum())
            columns[row] = torch.tensor(
                [*(float(getattr(report, name)) for name in OF_REPORT), len(seen), agreed]
            )
    return columns


def summarise_gate(sums: Tensor) -> dict[str, float]:
    """What the gate did in a batch, under its logged names.

    Args:
        sums: (B, C), real responses only, all of them generated under the gate.
    """
    column = dict(zip(COLUMNS, sums.double().unbind(-1), strict=True))
    total = {name: values.sum().item() for name, values in column.items()}
    stopped = column["stopped"] > 0
    metrics = {
        "prune_opd/gate/stopped_ratio": stopped.double().mean().item(),
        "prune_opd/gate/overshoot_tokens": total["generated"] - total["tokens"] - total["missing"],
        "prune_opd/gate/teacher_tokens_per_token": total["teacher_tokens"]
        / max(total["generated"], 1.0),
        "prune_opd/gate/waited_mean": column["waited"].mean().item(),
        "prune_opd/gate/waited_max": column["waited"].max().item(),
        "prune_opd/gate/late_answers": total["late"],
        "prune_opd/gate/failed_answers": total["failed"],
        "prune_opd/gate/given_up": total["given_up"],
    }
    if stopped.any():
        kept = column["tokens"] + column["missing"]
        metrics["prune_opd/gate/stop_position_mean"] = kept[stopped].mean().item()
    if total["asked"]:
        metrics["prune_opd/gate/hidden_ratio"] = 1 - total["waited"] / total["asked"]
    if total["gate_tokens"]:
        metrics["prune_opd/gate/event_agreement"] = total["gate_agreed"] / total["gate_tokens"]
    return metrics


def summarise_scores(scores: "list[ScoreReport | None]", sums: Tensor) -> dict[str, float]:
    """How the teacher's servers did in a batch, under their logged names.

    Args:
        scores: of the real responses.
        sums: (B, C) of the same.
    """
    asked = [score for score in scores if score and score.ended]
    tokens, missing = (
        sums[:, COLUMNS.index(name)].double().sum().item() for name in ("tokens", "missing")
    )
    metrics = {
        "prune_opd/teacher/missing_ratio": missing / max(tokens + missing, 1.0),
        "prune_opd/teacher/late_answers": float(sum(score.late for score in asked)),
        "prune_opd/teacher/failed_answers": float(sum(score.failed for score in asked)),
    }
    if asked:
        last = max(score.began for score in asked)
        early, after = (
            sum(score.early for score in asked),
            sum(score.ended - score.began for score in asked),
        )
        hidden = early + sum(max(0.0, min(score.ended, last) - score.began) for score in asked)
        metrics |= {
            "prune_opd/teacher/computed_tokens": float(sum(score.computed for score in asked)),
            "prune_opd/teacher/score_seconds_mean": after / len(asked),
            "prune_opd/teacher/hidden_ratio": hidden / max(early + after, 1e-9),
            "prune_opd/teacher/waited": max(score.ended for score in asked) - last,
        }
    return metrics
