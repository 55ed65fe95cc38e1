"""The quickstart: train a pair on which pruning pays, with plain OPD and with Prune-OPD in flight,
and lay the two side by side.

    python examples/quickstart/run.py --out runs/quickstart               # what `make quickstart`
    runs
    python examples/quickstart/run.py --recipes prune_opd iw_opd          # other recipes, same pair
    python examples/quickstart/run.py prune_opd.drift.w_drop=0.1          # more settings for verl

The trainings themselves are the commands that are printed; they can be pasted and changed.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pairs"))
import launch
import matplotlib
import signposts
import signposts_pair
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

RECIPES = ("opd", "prune_opd_gate")
EVERY = 5
"""Steps between two validations."""
RATES = {"opd": 1e-3}
"""Learning rate of a recipe that falls apart at the task's, see docs/results.md."""
Curve = list[tuple[float, float]]
"""Tokens generated so far, and progress on the validation routes."""


def curve(records: list[dict[str, float]]) -> Curve:
    """Progress over the tokens of a run."""
    tokens, points = 0.0, []
    for record in records:
        tokens += launch.spent(record)
        if (progress := launch.validated(record, "progress")) is not None:
            points.append((tokens, progress))
    return points


def arrived(record: dict[str, float]) -> str:
    """Share of whole routes with its 95 % Wilson interval."""
    count = launch.SIGNPOSTS.validation
    share = launch.validated(record, "reward") or 0.0
    interval = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return f"{share:.1%} ({interval.low:.0%} to {interval.high:.0%})"


def summary(runs: dict[str, list[dict[str, float]]], seconds: dict[str, float]) -> Table:
    """What the runs came to, a column each."""
    title = f"Quickstart: {launch.SIGNPOSTS.validation} validation routes, greedy"
    table = Table("", *runs, title=title, title_justify="left")
    rows = {
        "progress before the first wrong word, at the start": lambda r: f"{curve(r)[0][1]:.1%}",
        "progress, at the end": lambda r: f"{curve(r)[-1][1]:.1%}",
        "progress, at its best": lambda r: f"{max(progress for _, progress in curve(r)):.1%}",
        "whole routes right, at the end": lambda r: arrived(r[-1]),
        "tokens generated": lambda r: f"{curve(r)[-1][0]:,.0f}",
        "tokens per response, first and last step": lambda r: " -> ".join(
            f"{each['response_length/mean']:.0f}"
            for each in (launch.training_steps(r)[0], launch.training_steps(r)[-1])
        ),
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(records) for records in runs.values()))
    table.add_row("seconds, start-up included", *(f"{seconds[name]:.0f}" for name in runs))
    return table


def plot(runs: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Draw the progress of the runs over the tokens they generated."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, records in runs.items():
        axes.plot(*zip(*curve(records), strict=True), marker="o", label=name)
    axes.set(
        xlabel="tokens generated in training",
        ylabel="route followed before the first wrong word",
        title="A teacher whose advice is lost after a wrong step",
    )
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        help="folder for everything the runs make",
    )
    parser.add_argument(
        "--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE", help="one run each"
    )
    parser.add_argument(
        "--engine", choices=("vllm", "sglang"), default="vllm", help="engine of the rollouts"
    )
    parser.add_argument("--steps", type=int, default=20, help="batches of 64 responses")
    parser.add_argument(
        "--timeout", type=int, default=1800, help="seconds until a training is given up"
    )
    parser.add_argument("overrides", nargs="*", help="more settings for verl, key=value")
    args = parser.parse_intermixed_args()
    shared = args.out.resolve()
    shared.mkdir(parents=True, exist_ok=True)
    signposts_pair.build_pair(shared / "models", signposts_pair.Settings())
    signposts.write_parquet(shared / "data", **launch.SIGNPOSTS.data)

    runs, seconds = {}, {}
    for recipe in args.recipes:
        out = shared / recipe
        overrides = [
            f"actor_rollout_ref.rollout.name={args.engine}",
            f"trainer.test_freq={min(EVERY, args.steps)}",
            f"actor_rollout_ref.actor.optim.lr={RATES.get(recipe, launch.SIGNPOSTS.lr)}",
            *args.overrides,
        ]
        command = launch.training_command(
            shared, out, recipe, args.steps, overrides, launch.SIGNPOSTS
        )
        started = time.monotonic()
        runs[recipe] = launch.run(command, out, args.steps, args.timeout)
        seconds[recipe] = time.monotonic() - started
    Console().print(summary(runs, seconds))
    plot(runs, shared / "progress.png")
    print(f"\nThe curves: {os.path.relpath(shared / 'progress.png')}")
    print("Each run's metrics, output, records and checkpoint lie in its folder under", args.out)


if __name__ == "__main__":
    main()
