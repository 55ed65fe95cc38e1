"""What would each rule of the response limit have generated? Runs that are played, not trained.

    python benchmarks/budgets.py                      # half a minute on one core
    python benchmarks/budgets.py --run run.csv        # also a run whose metrics were logged

A response is two numbers: its length where nothing cuts it, and its useful length, up to which it
is reliable. Both are log-normal over a batch; over the run the useful one

    grows    from 300 to 3,000 tokens in the median, most of it around step 40
    falls    from 3,000 to 300, most of it around step 60
    stays    at 1,500, in batches of 256 and of 32 responses

and of ``--run`` they are fitted step by step: to the mean effective length and the share of
responses that were reliable up to the limit, to the mean length and the share that was cut. Limits
act on what is generated and nothing else: that a student learns otherwise under another limit is
not in it.
"""

import argparse
import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from recipe.prune_opd.method.budget import Budget, QuantileBudget, ResponseBudget

MAX, STEPS, SEEDS = 12288, 203, 5
BOUNDS = {"init": 2048, "min": 1024, "max": MAX}
NORMAL = NormalDist()
RULES: dict[str, Callable[[], Budget]] = {
    "hits": lambda: ResponseBudget(**BOUNDS),
    "hits, step 400": lambda: ResponseBudget(**BOUNDS, step=400),
    "quantile": lambda: QuantileBudget(**BOUNDS),
    "quantile, hit_ratio .2": lambda: QuantileBudget(**BOUNDS, hit_ratio=0.2),
    "quantile, hit_ratio .2, patience 1": lambda: QuantileBudget(
        **BOUNDS, hit_ratio=0.2, patience=1
    ),
    "quantile .9, patience 1": lambda: QuantileBudget(**BOUNDS, quantile=0.9, patience=1),
}


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths, in tokens."""

    median: float
    spread: float
    """Standard deviation of the logarithm."""

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw so many."""
        logs = math.log(self.median) + self.spread * generator.standard_normal(count)
        return np.clip(np.exp(logs).round(), 1, MAX).astype(np.int64)

    def mean_under(self, limit: float) -> float:
        """Mean where all are cut at ``limit``."""
        z = math.log(limit / self.median) / self.spread
        whole = self.median * math.exp(self.spread**2 / 2)
        return whole * NORMAL.cdf(z - self.spread) + limit * NORMAL.cdf(-z)


Step = tuple[Lengths, Lengths]
"""Useful and whole lengths of the responses of a step."""


def fitted(mean: float, limit: float, bound: float, share: float) -> Lengths:
    """Lengths with this mean under a limit, of which ``share`` reach ``bound``."""
    z = NORMAL.inv_cdf(1 - min(max(share, 1 / 512), 0.98))

    def of(spread: float) -> Lengths:
        return Lengths(bound * math.exp(-z * spread), spread)

    spreads = np.linspace(0.02, 2, 400)
    return of(float(min(spreads, key=lambda spread: abs(of(spread).mean_under(limit) - mean))))


def logged(file: Path) -> list[Step]:
    """Steps of a run, out of a table of its metrics.

    Args:
        file: csv with the columns ``max_response_length``, ``hit_ratio``, ``clip_ratio``,
            ``response_length_mean``, ``effective_length_mean`` and ``effective_length_max``.
    """
    steps = []
    with file.open() as table:
        for row in csv.DictReader(table):
            now = {name: float(value) for name, value in row.items()}
            limit, hits = now["max_response_length"], now["hit_ratio"]
            # Where nobody reached the limit, the longest of the batch is known.
            longest = (now["effective_length_max"], 1 / 256)
            reached = (max(BOUNDS["min"], limit - 100), hits) if hits else longest
            useful = fitted(now["effective_length_mean"], limit, *reached)
            whole = fitted(now["response_length_mean"], limit, limit, now["clip_ratio"])
            steps.append((useful, whole))
    return steps


def moving(start: float, end: float, middle: float, width: float) -> list[Step]:
    """Steps whose useful length goes from one median to another."""
    shares = [1 / (1 + math.exp((middle - step) / width)) for step in range(STEPS)]
    whole = Lengths(6000, 0.6)
    return [(Lengths(start * (end / start) ** share, 0.6), whole) for share in shares]


def play(budget: Budget, steps: list[Step], batch: int, seed: int) -> tuple[float, ...]:
    """Play a run.

    Returns:
        Tokens generated, those of them that are reliable, reliable ones that were cut off, the mean
        limit, and by how much it changes from step to step.
    """
    generator, limits, sums = np.random.default_rng(seed), [], np.zeros(3)
    for useful, whole in steps:
        lengths = whole.draw(batch, generator)
        reliable = np.minimum(useful.draw(batch, generator), lengths)
        limit = budget.limit
        kept = np.minimum(reliable, limit)
        sums += np.minimum(lengths, limit).sum(), kept.sum(), (reliable - kept).sum()
        limits.append(limit)
        budget.update(kept.tolist())
    return (*sums.tolist(), float(np.mean(limits)), float(np.abs(np.diff(limits)).mean()))


def show(name: str, steps: list[Step], batch: int) -> None:
    """Play every rule and print a table."""
    columns = ("rule", "M tokens", "reliable", "lost", "mean limit", "change per step")
    table = Table(title=f"{name}, {batch} responses a step", title_justify="left", box=None)
    for column in columns:
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule, new in RULES.items():
        runs = [play(new(), steps, batch, seed) for seed in range(SEEDS)]
        made, reliable, lost, limit, change = np.mean(runs, 0)
        numbers = (reliable / made, lost / (reliable + lost))
        shares = (f"{share:.1%}" for share in numbers)
        table.add_row(rule, f"{made / 1e6:.1f}", *shares, f"{limit:,.0f}", f"{change:,.0f}")
    Console(width=110).print(table, "")


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="table of a run's metrics, csv")
    run = parser.parse_args().run
    if run:
        show(run.stem, logged(run), 256)
    show("grows", moving(300, 3000, 40, 6), 256)
    show("falls", moving(3000, 300, 60, 6), 256)
    for batch in (256, 32):
        show("stays", moving(1500, 1500, 40, 6), batch)


if __name__ == "__main__":
    main()
