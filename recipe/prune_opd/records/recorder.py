"""A run's record keeper: what the trainer calls to write a step down."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.pruning import find_drift
from recipe.prune_opd.method.reward import Scores
from recipe.prune_opd.records.files import Records
from recipe.prune_opd.records.samples import chosen, token_data
from recipe.prune_opd.records.tally import RECORDED, Tally, recorded_edges

logger = logging.getLogger(__name__)

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MOST_LENGTHS = 256
"""Lengths that a step's line has at most."""


@dataclass(frozen=True)
class Sample:
    """One response, as far as it is needed to look at it token by token. T tokens."""

    prompt: Tensor
    """Token ids, (P,)."""
    scores: Scores
    """B = 1, T positions."""
    mask: Tensor
    """(1, T) bool, tokens that count."""
    generated: Tensor
    """(1, T) bool, the student's, scored or not."""


class Recorder:
    """Writes the steps of a run down.

    Args:
        config: with ``records.dir`` set; the folder is made with the first record.
        tokenizer: gives the student's tokenizer, which is loaded later.
    """

    def __init__(self, config: PruneOPDConfig, tokenizer: Callable[[], Any]):
        self.config, self.tokenizer = config, tokenizer
        self.files = Records(Path(str(config.records.dir)))

    def write(
        self,
        step: int,
        tally: Tally,
        limits: tuple[int, int],
        fetch: Callable[[list[int]], list[Sample]],
        generated: int | None = None,
    ) -> None:
        """Write a step down. A full disk, or a folder that cannot be made, costs the record and is
        a warning, the run goes on.

        Args:
            step: its number.
            tally: of its real responses, at least one.
            limits: under which its prompts were sent out, and that of the next ones.
            fetch: gives some of these responses, by their indices.
            generated: see ``step_record``.
        """
        try:
            self.files.step(step, step_record(tally, *limits, generated))
            if self.config.records.samples_at(step):
                self.files.samples(step, self._samples(tally, fetch))
        except (OSError, ValueError) as error:
            kind, folder = type(error).__name__, self.files.folder
            logger.warning(
                f"step {step}: its records are not in {folder} ({kind}: {error}); the training"
                " goes on"
            )

    def _samples(
        self, tally: Tally, fetch: Callable[[list[int]], list[Sample]]
    ) -> list[dict[str, Any]]:
        """Some responses token by token; their drift is computed as it was for training."""
        columns = {
            "limit": "limit",
            "effective_length": "effective_length",
            "stopped": "gate_stopped",
            "ended": "ended",
        }
        facts = {name: tally.column(column).tolist() for name, column in columns.items()}
        indices = chosen(facts["effective_length"], self.config.records.samples)
        found = []
        for index, sample in zip(indices, fetch(indices), strict=True):
            drift = find_drift(sample.scores, sample.mask, self.config.rules, sample.generated)
            found.append(
                {
                    **{name: int(values[index]) for name, values in facts.items()},
                    "prompt": self.tokenizer().decode(sample.prompt, skip_special_tokens=True),
                    **token_data(sample.scores, drift, self.config.records.topk, self._piece),
                }
            )
        return found

    def _piece(self, token: int) -> str:
        return str(self.tokenizer().decode([token]))


def step_record(
    tally: Tally, limit: int, next_limit: int, generated_for_step: int | None = None
) -> dict[str, Any]:
    """Record of a step; ``docs/records.md`` says what each value means.

    Args:
        tally: of the real responses, at least one.
        limit: under which prompts were sent out in this step.
        next_limit: of the next prompts.
        generated_for_step: tokens that were generated for this step, where they are not those of
            its responses: with Semi-OPD. Then the limit saves none.
    """
    total, tokens, cut = tally.total, tally.column("tokens"), tally.column("ended") == 0
    kept = tokens + tally.column("missing")
    # What the gate cut off again was generated, too.
    generated = torch.maximum(tally.column("gate_generated"), kept)
    ended, stopped = (tally.column(name).mean().item() for name in ("ended", "gate_stopped"))
    saved = (tally.longest - generated)[cut].clamp(min=0)
    counts = int(generated.sum()), int(saved.sum())
    if generated_for_step is not None:
        counts = generated_for_step, 0
    edges = recorded_edges(tally.longest)
    trained = sum(tally.by_position("trained", edges))
    return {
        "limit": limit,
        "next_limit": next_limit,
        "responses": len(tally),
        "length": _distribution(kept),
        "lengths": _spread(kept),
        "effective_length": _distribution(tally.column("effective_length")[tokens > 0]),
        "share": {"ended": ended, "gate": stopped, "limit": 1 - ended - stopped},
        "tokens": {
            "generated": counts[0],
            "scored": int(total["tokens"]),
            "trained": int(trained),
            "reliable": int(total["effective_length"]),
            "saved": counts[1],
        },
        "positions": _by_position(tally, edges),
    }


def _by_position(tally: Tally, edges: list[int]) -> dict[str, list[Any]]:
    """Tokens of each bucket and the means over them, without the buckets that nobody reached."""
    counts = tally.by_position("tokens", edges)
    used = max((i + 1 for i, count in enumerate(counts) if count), default=0)
    found: dict[str, list[Any]] = {
        "edges": edges[: used + 1],
        "tokens": [int(count) for count in counts[:used]],
    }
    for name in RECORDED:
        if name not in ("tokens", "trained"):
            sums = tally.by_position(name, edges)
            found[name] = [
                _rounded(value / count) if count else None
                for value, count in zip(sums[:used], counts[:used], strict=True)
            ]
    return found


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


def _spread(lengths: Tensor) -> list[int]:
    """All of (B,) lengths in ascending order, or as many of them as are kept, evenly spread."""
    ordered = lengths.sort().values
    kept = min(len(ordered), MOST_LENGTHS)
    middles = (torch.arange(kept) + 0.5) * (len(ordered) / kept)
    return [int(length) for length in ordered[middles.long()]]


def _rounded(value: float) -> float | None:
    """Round to six digits; None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
