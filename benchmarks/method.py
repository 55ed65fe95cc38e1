"""What does the method's arithmetic cost on a batch, and how does it grow?

    python benchmarks/method.py                   # a minute on one core, 1 GB

Time: medians, one thread of a CPU, at (B, T, K) = (64, 12288, 16). Growth: the exponent with which
it grows in B, T and K, from half of each; 1 is proportional. Largest: the largest tensor made.
"""

import argparse
import math
from collections.abc import Callable

import torch
from measuring import allocations, medians
from rich.console import Console
from rich.table import Table

from recipe.prune_opd.method.drift import nucleus_events, overlap_ratio, reliability
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.reward import Scores, TopK, topk_reward

Shape = tuple[int, int, int]
FULL: Shape = (64, 12288, 16)
TARGETS = {"overlap": 0.25, "reliability": 0.06, "reward": 0.4, "loss and gradient": 1.5}
"""Seconds."""
LARGEST = 64
"""MB of the largest tensor."""


def works(shape: Shape) -> dict[str, Callable[[], object]]:
    """Name -> the work, on a random batch whose two models share half of their candidates."""
    generator = torch.Generator().manual_seed(0)
    batch, length, _ = shape

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator)

    steps = torch.randint(1, 5, shape, generator=generator, dtype=torch.int32)
    ids = steps.cumsum(-1, dtype=torch.int32)
    theirs = ids + torch.randint(0, 4, (batch, length, 1), generator=generator, dtype=torch.int32)
    student, teacher = -uniform(*shape).cumsum(-1), -uniform(*shape).cumsum(-1)
    mask = torch.ones(batch, length, dtype=torch.bool)
    events = uniform(batch, length) < 0.3
    advantages = uniform(*shape) - 0.5
    log_probs = (student + 0.01 * uniform(*shape)).requires_grad_()
    scores = Scores(ids[..., 0], TopK(ids, student), TopK(theirs, teacher), teacher)

    def loss_and_gradient() -> None:
        topk_policy_loss(log_probs, student, advantages, mask)[0].backward()
        log_probs.grad = None

    return {
        "overlap": lambda: overlap_ratio(ids, theirs),
        "nucleus": lambda: nucleus_events(ids[..., 0], theirs, teacher, mask, 0.95),
        "reliability": lambda: reliability(events, mask, 0.01, 0.5),
        "reward": lambda: topk_reward(scores),
        "loss and gradient": loss_and_gradient,
    }


def times(shape: Shape, rounds: int) -> dict[str, tuple[float, float]]:
    """Median and least seconds of each."""
    prepared = {name: lambda work=work: work for name, work in works(shape).items()}
    return medians(prepared, "cpu", rounds)


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    full = times(FULL, rounds)
    halves = [
        times((FULL[0] // 2, *FULL[1:]), rounds),
        times((FULL[0], FULL[1] // 2, FULL[2]), rounds),
        times((*FULL[:2], FULL[2] // 2), rounds),
    ]
    columns = ("", "s: median (least)", "target", *(f"growth in {axis}" for axis in "BTK"))
    table = Table(*columns, "largest, MB", "target", title=f"(B, T, K) = {FULL}")
    for name, work in works(FULL).items():
        growth = [math.log2(full[name][0] / half[name][0]) for half in halves]
        table.add_row(
            name,
            "{:.3f} ({:.3f})".format(*full[name]),
            f"{TARGETS[name]:.2f}" if name in TARGETS else "",
            *(f"{exponent:.2f}" for exponent in growth),
            f"{max(allocations(work)) / 1e6:.0f}",
            str(LARGEST),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
