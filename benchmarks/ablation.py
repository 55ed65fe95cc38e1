"""Does stopping responses in flight cost accuracy? Gate off and on, with and without the suffix's
weight, some seeds.

The walk pair under a fixed limit, so that nothing but the gate shortens a
response. All runs divide the loss by the reliable tokens: by generated tokens, a stop would also
scale the gradient up. A seed sets the order of the problems and the sampling; the two models are
the same in all runs. Accuracy is greedy on 256 held-out problems.

    python benchmarks/ablation.py --out runs/ablation     # 12 runs of 5 minutes on 2 cores

It goes on where it stopped.

Two comparisons: after the same steps, and after the same generated tokens (linear between two
validations; the tokens are those of the shortest run of the seed).
"""

import argparse
import statistics
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "pairs"))
import launch
import walk
import walk_pair

STEPS, EVERY = 24, 6
VARIANTS = list(product((False, True), (0.0, 0.5)))
Curve = dict[int, tuple[float, float]]
"""Step -> tokens generated so far, those after a stop included, and accuracy."""


def overrides(gate: bool, w_base: float, seed: int) -> list[str]:
    """What a run adds to the walk task's command."""
    return [
        f"prune_opd.gate.enable={gate}",
        f"prune_opd.drift.w_base={w_base}",
        "prune_opd.gate.chunk=32",
        "prune_opd.budget.enable=false",
        "prune_opd.loss_normaliser=reliable",
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"trainer.test_freq={EVERY}",
        "trainer.val_before_train=false",
        "trainer.save_freq=-1",
    ]


def curve(folder: Path) -> Curve:
    """Accuracy over the steps of a run."""
    tokens, points = 0.0, {}
    for record in launch.read(folder / "metrics.jsonl"):
        tokens += launch.spent(record)
        if (accuracy := launch.validated(record, "reward")) is not None:
            points[int(record["step"])] = (tokens, accuracy)
    return points


def at_tokens(points: Curve, tokens: float) -> float:
    """Accuracy after so many tokens."""
    known = sorted(points.values())
    return float(np.interp(tokens, [t for t, _ in known], [a for _, a in known]))


def spread(values: list[float]) -> str:
    """Mean, and the values."""
    return f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)})"


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    shared = args.out.resolve() / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    walk_pair.build_pair(shared / "models", walk_pair.Settings())
    walk.write_parquet(shared / "data", validation=launch.VALIDATION_PROBLEMS)

    curves: dict[tuple[bool, float, int], Curve] = {}
    for seed, (gate, w_base) in product(args.seeds, VARIANTS):
        folder = args.out.resolve() / f"gate_{'on' if gate else 'off'}_w_base_{w_base}_seed_{seed}"
        folder.mkdir(exist_ok=True)
        if STEPS not in curve(folder):
            settings = overrides(gate, w_base, seed)
            command = launch.training_command(
                shared, folder, "prune_opd", STEPS, settings, launch.WALK
            )
            started = time.monotonic()
            launch.train(command, folder, STEPS, timeout=1200)
            print(f"{folder.name}: {time.monotonic() - started:.0f} s, {curve(folder)}", flush=True)
        curves[gate, w_base, seed] = curve(folder)

    steps = range(EVERY, STEPS + 1, EVERY)
    table = Table(
        "gate",
        "w_base",
        "tokens",
        *(f"accuracy, step {step}" for step in steps),
        "accuracy, same tokens",
        title="Ablation",
    )
    for gate, w_base in VARIANTS:
        mine = [curves[gate, w_base, seed] for seed in args.seeds]
        shortest = [min(curves[g, w, seed][STEPS][0] for g, w in VARIANTS) for seed in args.seeds]
        table.add_row(
            "on" if gate else "off",
            f"{w_base}",
            f"{statistics.mean(points[STEPS][0] for points in mine):,.0f}",
            *(spread([points[step][1] for points in mine]) for step in steps),
            spread(
                [at_tokens(points, tokens) for points, tokens in zip(mine, shortest, strict=True)]
            ),
        )
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
