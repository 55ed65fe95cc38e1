"""The folder of a run that never was: a log and records of random numbers, to see what `report`
shows before training.

    python examples/report/made_up.py --out runs/made_up
    python -m recipe.prune_opd report runs/made_up --out report.html

The numbers mean nothing; the files are of the form that a training writes.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recipe.prune_opd.records.files import Records
from recipe.prune_opd.records.tally import recorded_edges

LONGEST = 4096
TEXT = (
    "Let x be the number of apples . Then 3 x + 4 = 2 5 , so x = 7 . Wait , we check : 3 · 7 + 4 ="
    " 2 5 \n"
)
WORDS = TEXT.split(" ")


def metrics(step: int, steps: int, chance: np.random.Generator) -> dict[str, float]:
    """What verl's file logger would have of a step; every tenth is validated."""
    done, noise = step / steps, chance.random()
    found = {
        "training/global_step": step,
        "prune_opd/overlap_ratio": 0.6 + 0.2 * done + 0.03 * noise,
        "prune_opd/event_rate": 0.5 - 0.3 * done + 0.03 * noise,
        "actor/grad_norm": 1.5 - done + 0.4 * noise,
        "timing_s/gen": 20 + 10 * done + 3 * noise,
        "timing_s/ref": 5 + noise,
        "timing_s/update_actor": 12 + 2 * noise,
        "timing_s/step": 42 + 10 * done + 6 * noise,
    }
    return found | ({"val-core/made_up/acc/mean@16": 0.3 + 0.2 * done} if step % 10 == 0 else {})


def record(step: int, steps: int, chance: np.random.Generator) -> dict[str, Any]:
    """What ``recorder.step_record`` would have of it."""
    limit = 1024 + 100 * (10 * step // steps)
    edges = recorded_edges(LONGEST)
    edges = edges[: 1 + sum(edge < limit for edge in edges)]
    fade = np.exp(-np.array(edges[:-1]) / (limit * step / steps)) + 0.05 * chance.random(
        len(edges) - 1
    )
    generated = 200 * limit
    return {
        "limit": limit,
        "next_limit": limit,
        "responses": 256,
        "length": {"mean": 0.8 * limit},
        "effective_length": {"mean": 0.5 * limit, "q10": 0.3 * limit, "q90": 0.8 * limit},
        "share": {"ended": 0.4, "gate": 0.0, "limit": 0.6},
        "tokens": {
            **{"generated": generated, "scored": generated, "trained": generated},
            **{"reliable": generated // 2, "saved": 200 * (LONGEST - limit)},
        },
        "positions": {
            "edges": edges,
            "tokens": [256 * (end - start) for start, end in pairwise(edges)],
            "overlap": (0.5 + 0.4 * fade).tolist(),
            "events": (0.5 - 0.4 * fade).tolist(),
            "weight": fade.tolist(),
            "reward": (-0.2 * fade).tolist(),
            "student_entropy": (1 - 0.3 * fade).tolist(),
            "teacher_entropy": (1.2 - 0.3 * fade).tolist(),
        },
    }


def sample(length: int, rate: float, chance: np.random.Generator) -> dict[str, Any]:
    """What ``samples.token_data`` would have of a response with so many drift events per token."""
    events = np.flatnonzero(chance.random(length) < rate).tolist()
    counted = np.cumsum(np.isin(np.arange(length), events))
    overlap = np.where(np.isin(np.arange(length), events), 0.5, 0.875)
    return {
        "limit": length,
        "effective_length": int((counted < 100).sum()),
        "stopped": 0,
        "ended": 0,
        "prompt": (
            "Three bags hold as many apples each, four more lie beside them, 25 in all. How many"
            " are in a bag?"
        ),
        "tokens": [i % len(WORDS) for i in range(length)],
        "overlap": overlap.tolist(),
        "events": events,
        "weight": np.clip(1 - 0.01 * counted, 0, 1).round(6).tolist(),
        "student_ids": [
            [i % len(WORDS), (i + 1) % len(WORDS), (i + 2) % len(WORDS)] for i in range(length)
        ],
        "student_log_probs": [[-0.2, -1.9, -4.0]] * length,
        "teacher_ids": [
            [i % len(WORDS), (i + 7) % len(WORDS), (i + 2) % len(WORDS)] for i in range(length)
        ],
        "teacher_log_probs": [[-0.1, -2.8, -5.0]] * length,
        "pieces": {str(i): " " + word for i, word in enumerate(WORDS)},
    }


def write(out: Path, steps: int, seed: int) -> None:
    """Write log and records of so many steps."""
    chance = np.random.default_rng(seed)
    records = Records(out / "records")
    with (out / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in range(1, steps + 1):
            log.write(json.dumps({"step": step, "data": metrics(step, steps, chance)}) + "\n")
            if step in (1, steps):
                records.samples(step, [sample(2500, rate, chance) for rate in (0.6, 0.05, 0.03)])
            records.step(step, record(step, steps, chance))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/made_up"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    write(args.out, args.steps, args.seed)
    print(args.out)
