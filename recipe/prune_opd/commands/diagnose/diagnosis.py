"""Where do two models part along the student's responses, and how many tokens would training make
of them?

Shapes: B responses, T positions, K candidates of each model. Responses are padded at their end;
``mask`` is True on their tokens. All lengths are in tokens.

A response under a limit is the beginning of the same response without one: events, reliability and
a gate's stop look back only. So responses that were sampled once, up to the largest limit, say what
any smaller limit would have left.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.drift import overlap_ratio, reliability
from recipe.prune_opd.method.gates import Gate

KINDS = ("words", "digits", "symbols", "whitespace", "special")
"""What a token can be, see ``kind_of``."""
LEVEL = 0.95
"""Share of resamplings inside an interval."""


@dataclass(frozen=True)
class PairScores:
    """What both models say about the student's responses."""

    tokens: Tensor
    """(B, T) int64, sampled by the student."""
    mask: Tensor
    """(B, T) bool."""
    overlap: dict[int, Tensor]
    """k -> (B, T) float32, ``overlap_ratio`` of the two top k."""
    student_mass: Tensor
    """(B, T) float32, probability that the student gives to its own top k."""
    teacher_mass: Tensor
    """(B, T) float32, the same of the teacher."""
    teacher_on_student: Tensor
    """(B, T) float32, probability that the teacher gives to the student's top k."""
    groups: Tensor
    """(B,) int64, number of the prompt: responses to one prompt are alike."""

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.mask.sum(-1)


def overlap_ratios(
    student_ids: Tensor, teacher_ids: Tensor, ks: Sequence[int]
) -> dict[int, Tensor]:
    """Overlap for several k out of one pass.

    Args:
        student_ids: (B, T, K) int, by descending logit, so that its first k are the top k.
        teacher_ids: (B, T, K) int, the same.
        ks: each from 1 to K.

    Returns:
        k -> (B, T) float32.
    """
    return {k: overlap_ratio(student_ids[..., :k], teacher_ids[..., :k]) for k in ks}


# ----------------------------------------------------------------------------------- where and what


def by_position(values: Tensor, mask: Tensor, width: int) -> list[float]:
    """Means over ``width`` positions at a time, NaN where no response reaches.

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.
        width: >= 1.
    """
    return _means(
        values,
        mask,
        torch.arange(mask.shape[-1]).expand(mask.shape) // width,
        -(-mask.shape[-1] // width),
    )


def by_quarter(values: Tensor, mask: Tensor) -> list[float]:
    """Means over the quarters of each response, whatever its length; token t of n is in quarter
    floor(4 t / n).

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.

    Returns:
        4 numbers, NaN for a quarter that no response has (all of them are shorter than 4 tokens).
    """
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    return _means(values, mask, (4 * torch.arange(mask.shape[-1]) // lengths).clamp(max=3), 4)


def by_kind(values: Tensor, mask: Tensor, kinds: Tensor) -> list[float]:
    """Means by kind of token, NaN for a kind that does not occur.

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.
        kinds: (B, T) int64, number in ``KINDS``.
    """
    return _means(values, mask, kinds, len(KINDS))


def _means(values: Tensor, mask: Tensor, places: Tensor, count: int) -> list[float]:
    """Means of ``values`` by place, (B, T) int64 -> ``count`` numbers."""
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, places[mask], values[mask].double())
    return (sums / torch.bincount(places[mask], minlength=count)).tolist()


def kind_of(text: str, special: bool) -> str:
    """What a token is by what it writes: with a letter a word, else with a digit a digit, else a
    symbol.

    Args:
        text: the token, decoded by itself.
        special: it is a special token, such as the end of a response.
    """
    if special:
        return "special"
    if not text.strip():
        return "whitespace"
    if any(map(str.isalpha, text)):
        return "words"
    return "digits" if any(map(str.isdigit, text)) else "symbols"


# ------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Lengths:
    """How long responses are, each (B,) int64, without a limit."""

    whole: Tensor
    """What the student writes where nothing stops it."""
    generated: Tensor
    """What the student writes, what it writes until a gate's stop is known included."""
    kept: Tensor
    """What is trained on."""
    effective: Tensor
    """E, what is kept with R > 0."""

    def of(self, rows: Tensor) -> "Lengths":
        """Those of some responses, (N,) int64."""
        return Lengths(
            self.whole[rows], self.generated[rows], self.kept[rows], self.effective[rows]
        )

    def under(self, limit: int) -> "Lengths":
        """The same responses under a limit; ``whole`` stays."""
        cut = (values.clamp(max=limit) for values in (self.generated, self.kept, self.effective))
        return Lengths(self.whole, *cut)


def lengths_of(
    events: Tensor,
    mask: Tensor,
    w_drop: float,
    new_gate: Callable[[], Gate] | None = None,
    chunk: int = 1,
) -> Lengths:
    """Lengths that drift events leave.

    A gate learns of an event when the chunk with it is complete, so a response that is cut at token
    s has been generated to the end of the chunk of token s. What a teacher's answer takes comes on
    top and is not counted.

    Args:
        events: (B, T) bool.
        mask: (B, T) bool.
        w_drop: weight lost per event.
        new_gate: makes a gate for one response; None: no gate.
        chunk: tokens between two questions to the teacher.
    """
    whole = mask.sum(-1)
    effective = reliability(events, mask, w_drop, w_base=0).effective_length
    if new_gate is None:
        return Lengths(whole, whole, whole, effective)
    flags = (row[:length].tolist() for row, length in zip(events, whole, strict=True))
    stops = [new_gate().feed(row) for row in flags]
    kept = torch.tensor(
        [int(n) if stop is None else stop for stop, n in zip(stops, whole, strict=True)]
    )
    generated = torch.tensor(
        [
            int(n) if stop is None else min(int(n), chunk * (stop // chunk + 1))
            for stop, n in zip(stops, whole, strict=True)
        ]
    )
    return Lengths(whole, generated, kept, torch.minimum(effective, kept))


@dataclass(frozen=True)
class Course:
    """A training run with a student that does not change, each (steps,) float64, lengths per
    response."""

    limit: Tensor
    whole: Tensor
    generated: Tensor
    kept: Tensor
    effective: Tensor


def course(
    lengths: Lengths, budget: ResponseBudget, batch: int, steps: int, generator: torch.Generator
) -> Course:
    """Batches drawn from known responses, one after the other, under the limit that the budget
    makes of them.

    Args:
        lengths: of the known responses.
        budget: as the run would start with; moved.
        batch: responses of a step.
        steps: batches.
        generator: of the draws.
    """
    rows = []
    for _ in range(steps):
        drawn, limit = (
            torch.randint(len(lengths.whole), (batch,), generator=generator),
            budget.limit,
        )
        cut = lengths.of(drawn).under(limit)
        budget.update(cut.effective.tolist())
        means = (
            values.double().mean().item()
            for values in (cut.whole, cut.generated, cut.kept, cut.effective)
        )
        rows.append([limit, *means])
    return Course(*torch.tensor(rows, dtype=torch.float64).unbind(-1))


@dataclass(frozen=True)
class Prediction:
    """Tokens per response, means over a run with a student that does not change."""

    limit: float
    without_pruning: float
    generated: float
    kept: float
    effective: float
    low: float = math.nan
    """Of ``generated``: interval from resampling the prompts. NaN where nothing was resampled."""
    high: float = math.nan


def predict(
    lengths: Lengths,
    groups: Tensor,
    new_budget: Callable[[], ResponseBudget],
    batch: int,
    steps: int,
    seed: int,
    runs: int = 1,
    resamplings: int = 0,
) -> Prediction:
    """Tokens of a run, with an interval for there being few prompts.

    Args:
        lengths: of the known responses.
        groups: (B,) int64, number of each response's prompt.
        new_budget: makes the run's budget.
        batch: responses of a step.
        steps: batches.
        seed: of all draws; the same seed draws the same responses whatever their lengths.
        runs: whose mean is taken.
        resamplings: runs on prompts drawn with replacement, for the interval; 0: no interval.
    """
    generator = torch.Generator().manual_seed(seed)
    courses = [course(lengths, new_budget(), batch, steps, generator) for _ in range(runs)]
    found = torch.stack(
        [torch.stack([getattr(c, f.name) for f in fields(Course)]) for c in courses]
    ).mean((0, 2))
    interval = (math.nan, math.nan)
    if resamplings:
        drawn = [
            course(lengths.of(rows), new_budget(), batch, steps, generator).generated.mean()
            for rows in resampled(groups, resamplings, generator)
        ]
        interval = _interval(torch.stack(drawn))
    limit, whole, generated, kept, effective = found.tolist()
    return Prediction(limit, whole, generated, kept, effective, *interval)


def _interval(values: Tensor) -> tuple[float, float]:
    """Percentile interval of (N,) float64."""
    low, high = values.quantile(
        torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    ).tolist()
    return low, high


def resampled(groups: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Responses of prompts drawn with replacement, ``count`` times; each (N,) int64 of row numbers.

    Args:
        groups: (B,) int64, number of each response's prompt.
        count: draws of as many prompts as there are.
        generator: of the draws.
    """
    members = [(groups == group).nonzero().squeeze(-1) for group in groups.unique()]
    draws = torch.randint(len(members), (count, len(members)), generator=generator)
    return [torch.cat([members[i] for i in draw]) for draw in draws.tolist()]


def interval_of_mean(
    values: Tensor, mask: Tensor, groups: Tensor, resamplings: int, seed: int
) -> tuple[float, float, float]:
    """Mean over all tokens, and its percentile interval over resampled prompts.

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.
        groups: (B,) int64.
        resamplings: number of draws; the interval is NaN with a single prompt.
        seed: of the draws.
    """
    sums, counts = (values * mask).double().sum(-1), mask.sum(-1).double()
    mean = (sums.sum() / counts.sum()).item()
    if len(groups.unique()) == 1:
        return mean, math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            sums[rows].sum() / counts[rows].sum()
            for rows in resampled(groups, resamplings, generator)
        ]
    )
    return mean, *_interval(means)
