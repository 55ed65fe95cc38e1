"""Make a pair and its data, and train it with one recipe.

    python examples/pairs/train.py walk --out runs/walk --steps 40                 # Prune-OPD
    python examples/pairs/train.py walk --out runs/walk --steps 40 --recipe opd    # the same pair
    python examples/pairs/train.py drifting --out runs/drifting --name mine \\
        prune_opd.drift.w_drop=0.1                                # more settings for verl

The pairs are walk, and drifting, long, dial, guide and close of the signposts. Models and data are
made once, in DIR/models and DIR/data; a run has the folder DIR/NAME.
"""

import argparse
import os
from pathlib import Path

import launch
import signposts
import signposts_pair
import walk
import walk_pair

WALK = (launch.WALK, walk, walk_pair)
SIGNPOSTS = (launch.SIGNPOSTS, signposts, signposts_pair)
PAIRS = {
    "walk": (*WALK, walk_pair.Settings()),
    "drifting": (*SIGNPOSTS, signposts_pair.Settings()),
    "dial": (*SIGNPOSTS, signposts_pair.Settings(rho=0.3)),
    "guide": (*SIGNPOSTS, signposts_pair.Settings(rho=None)),
    "long": (launch.JOURNEYS, signposts, signposts_pair, signposts_pair.LONG),
    "close": (*SIGNPOSTS, signposts_pair.Settings(further=20)),
}
"""Name -> setup, task, pair and its settings."""


def paths_of(models: Path) -> list[str]:
    """Settings that name the two models of a folder."""
    return [
        f"actor_rollout_ref.model.path={models / 'student'}",
        f"prune_opd.teacher.path={models / 'teacher'}",
    ]


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pair", choices=list(PAIRS))
    parser.add_argument("--out", type=Path, required=True, help="folder for models, data and runs")
    parser.add_argument(
        "--models", type=Path, help="student/ and teacher/ that are there, in place of the pair's"
    )
    parser.add_argument("--recipe", default="prune_opd")
    parser.add_argument("--name", help="of the run's folder (default: the recipe)")
    parser.add_argument("--steps", type=int, default=30, help="batches of 64 responses")
    parser.add_argument(
        "--timeout", type=int, default=1800, help="seconds until the training is given up"
    )
    parser.add_argument("overrides", nargs="*", help="more settings for verl, key=value")
    args = parser.parse_intermixed_args()
    setup, task, pair, settings = PAIRS[args.pair]
    shared, overrides = args.out.resolve(), args.overrides
    if args.models:
        overrides = [*paths_of(args.models.resolve()), *overrides]
    else:
        pair.build_pair(shared / "models", settings)
    task.write_parquet(shared / "data", **setup.data)

    out = shared / (args.name or args.recipe)
    command = launch.training_command(shared, out, args.recipe, args.steps, overrides, setup)
    records = launch.run(command, out, args.steps, args.timeout)
    validated = (launch.validated(record, "reward") for record in records)
    course = " -> ".join(f"{share:.1%}" for share in validated if share is not None)
    print(f"right in validation: {course}; tokens: {sum(map(launch.spent, records)):,.0f}")
    print("Metrics, output, records and checkpoint of the run:", os.path.relpath(out))


if __name__ == "__main__":
    main()
