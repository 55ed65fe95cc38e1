"""Training runs, played with known responses to predict how many tokens they would make.

Shapes: B responses. All lengths are in tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recipe.prune_opd.commands.diagnose.intervals import over_prompts
from recipe.prune_opd.commands.diagnose.lengths import Lengths
from recipe.prune_opd.commands.diagnose.plan import Planned
from recipe.prune_opd.method.budget import Budget

STEPS_AT_A_TIME = 256
"""Steps whose responses are drawn, and averaged, in one piece."""
NewBudget = Callable[[], Budget]
"""Makes a run's budget."""


@dataclass(frozen=True)
class Course:
    """Run with a student that does not change: lengths per response, each (steps,) float64."""

    limit: Tensor
    whole: Tensor
    generated: Tensor
    kept: Tensor
    effective: Tensor


def course(
    lengths: Lengths, budget: Budget, batch: int, steps: int, generator: torch.Generator
) -> Course:
    """Draw batches from known responses, each under the limit that the budget made of those before.

    Args:
        lengths: of the known responses.
        budget: as the run would start with; moved.
        batch: responses of a step.
        steps: batches.
        generator: of the draws.
    """
    parts = []
    for done in range(0, steps, STEPS_AT_A_TIME):
        count = min(STEPS_AT_A_TIME, steps - done)
        drawn = torch.randint(len(lengths.whole), (count, batch), generator=generator)
        limits = []
        for effective in lengths.effective[drawn]:
            limits.append(budget.limit)
            budget.update(effective.clamp(max=budget.limit).tolist())
        limit = torch.tensor(limits)
        cut = lengths.of(drawn).under(limit.unsqueeze(-1))
        columns = (cut.whole, cut.generated, cut.kept, cut.effective)
        parts.append([limit.double(), *(values.double().mean(-1) for values in columns)])
    return Course(*map(torch.cat, zip(*parts, strict=True)))


@dataclass(frozen=True)
class Prediction:
    """Tokens per response, means over a run with a student that does not change."""

    limit: float
    without_pruning: float
    generated: float
    kept: float
    effective: float
    low: float = math.nan
    """Interval of ``generated`` from resampling the prompts. NaN where nothing was resampled."""
    high: float = math.nan


def predict(lengths: Lengths, new_budget: NewBudget, planned: Planned, runs: int = 1) -> Prediction:
    """Predict the tokens of a run. The same seed draws the same responses whatever their lengths.

    Args:
        lengths: of the known responses.
        new_budget: makes the run's budget, at its pace.
        planned: batch, steps and seed of the run.
        runs: whose mean is taken.
    """
    generator = torch.Generator().manual_seed(planned.seed)
    courses = [
        course(lengths, new_budget(), planned.batch, planned.played, generator) for _ in range(runs)
    ]
    means = torch.stack(
        [torch.stack([getattr(one, column.name) for column in fields(Course)]) for one in courses]
    ).mean((0, 2))
    return Prediction(*means.tolist())


def interval_of_generated(
    lengths: Lengths, groups: Tensor, new_budget: NewBudget, planned: Planned, resamplings: int
) -> tuple[float, float]:
    """Interval of the generated tokens of a run for there being few prompts.

    Args:
        lengths: of the known responses.
        groups: (B,) int64, number of each response's prompt.
        new_budget: makes the run's budget, at its pace.
        planned: batch, steps and seed of the run.
        resamplings: runs on prompts drawn with replacement.
    """
    generator = torch.Generator().manual_seed(planned.seed)

    def generated(rows: Tensor) -> float:
        drawn = lengths.of(rows)
        played = course(drawn, new_budget(), planned.batch, planned.played, generator)
        return played.generated.mean().item()

    return over_prompts(generated, groups, resamplings, planned.seed)
