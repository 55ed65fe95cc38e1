"""Verdict on the teacher's signal: does it survive drift, or is it lost after it?

What the bounds rest on, and what each piece of evidence cannot say: docs/diagnose.md.

Shapes: B responses, T positions, N responses that a piece of evidence is made of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recipe.prune_opd.commands.diagnose.gradients import Cosines
from recipe.prune_opd.commands.diagnose.intervals import over_prompts
from recipe.prune_opd.commands.diagnose.recovery import Recovery, groups_of
from recipe.prune_opd.commands.pair.sides import Sides

SURVIVES, LOST, UNKNOWN = "signal survives drift", "signal is lost after drift", "cannot tell"
FEW_PROMPTS, FEW_TOKENS = 8, 100
"""Prompts, and tokens after drift, below which a piece of evidence says nothing."""
NOISE = 0.05
"""Noise on the weights of the teacher's second view, as a share of their standard deviation."""
LEAST_BEFORE = 0.2
"""Share of right answers, or of agreement, before drift, below which there is too little to
lose."""
RESAMPLINGS = 1000
RECOVERY = "right answers of the teacher when it goes on from a prefix"
AGREEMENT = "share of the teacher's push that the other teacher confirms"
STEADINESS = "share of the teacher's push that it confirms with noise on its weights"
COSINE = "cosine of the gradients of OPD's loss and of right solutions"
"""Names of the pieces of evidence."""
BOUNDS = {RECOVERY: (0.7, 0.8), AGREEMENT: (0.7, 0.8), STEADINESS: (0.7, 0.8), COSINE: (0.5, 0.6)}
"""Share of the signal before drift that is left after it: lost below the first, survives above the
second. An interval has to lie beyond a bound as a whole.

Where pruning paid, two teachers agreed after drift on .17 to .51 of what they agreed on before;
where it cost accuracy, on about all. Nothing was seen between .51 and .99: the middle is .75, and
.05 to both sides are neither. A cosine falls even where a teacher heals, because what follows a
slip is no text of right solutions; where pruning paid it kept .42."""


@dataclass(frozen=True)
class Evidence:
    """What is left of the signal after drift, by one measure."""

    name: str
    before: float
    after: float
    low: float
    """Interval of after / before, which is resampled by prompts."""
    high: float
    prompts: int
    fault: str = ""
    """Reason why it says nothing, whatever the interval."""
    grown: bool = False
    """There is more of it after drift than before, where it is hardly there: it survives."""

    @property
    def kept(self) -> float:
        """Share of the signal that is left."""
        return self.after / self.before if self.before > 0 else math.nan

    @property
    def says(self) -> str:
        """``SURVIVES``, ``LOST`` or ``UNKNOWN``."""
        if self.fault:
            return UNKNOWN
        if self.grown:
            return SURVIVES
        lost_below, survives_above = BOUNDS[self.name]
        if self.high < lost_below:
            return LOST
        return SURVIVES if self.low > survives_above else UNKNOWN

    def __str__(self) -> str:
        interval = ""
        if self.grown:
            interval = ", more than before"
        elif not math.isnan(self.low + self.kept):
            interval = f", {self.kept:.0%} kept ({self.low:.0%} to {self.high:.0%})"
        fault = f"; says nothing: {self.fault}" if self.fault else ""
        return f"{self.name}: {self.before:.2f} before, {self.after:.2f} after{interval}{fault}"

    def answer(self) -> dict[str, Any]:
        """Content for ``--json``."""
        return {**vars(self), "kept": self.kept, "says": self.says, "text": str(self)}


def of_recovery(found: Recovery, groups: Tensor, seed: int) -> Evidence:
    """Judge how often the teacher reaches the right answer from both prefixes.

    Args:
        found: continuations of N cuts.
        groups: (B,) int64, number of each response's prompt.
        seed: of the resampling.
    """
    before, after = (torch.tensor(one).double() for one in (found.before, found.after))
    ones = torch.ones_like(before)
    evidence = _evidence(
        RECOVERY,
        ((before, ones), (after, ones)),
        groups_of(found.cuts, groups),
        seed,
    )
    cut = found.unfinished[0] / max(1, len(before))
    if not evidence.fault and evidence.before < LEAST_BEFORE:
        cause = f"; the limit cut {cut:.0%} of them" if cut else ""
        fault = f"the teacher rarely reaches the answer even from before{cause}"
        return replace(evidence, fault=fault)
    return evidence


@dataclass(frozen=True)
class View:
    """Second view of the teacher's advice on every token."""

    name: str
    """``AGREEMENT`` or ``STEADINESS``."""
    same: Tensor
    """(B, T) bool, its most likely token is the teacher's."""
    weight: Tensor
    """(B, T) float, how strongly OPD acts on the token, see ``advice.push``."""


def of_view(view: View, sides: Sides, groups: Tensor, seed: int) -> Evidence:
    """Judge how much of the teacher's advice a second view confirms, weighted by its push.

    Args:
        view: of the tokens.
        sides: of the responses.
        groups: (B,) int64.
        seed: of the resampling.
    """
    rows = sides.after.any(-1)
    before, after = (
        (
            (view.weight * (view.same & side))[rows].double().sum(-1),
            (view.weight * side)[rows].double().sum(-1),
        )
        for side in (sides.until, sides.after)
    )
    evidence = _evidence(view.name, (before, after), groups[rows], seed)
    tokens = int(sides.after.sum())
    if not evidence.fault and tokens < FEW_TOKENS:
        return replace(evidence, fault=f"{tokens} tokens after, fewer than {FEW_TOKENS}")
    if not evidence.fault and evidence.before < LEAST_BEFORE:
        return replace(evidence, fault="the two disagree before drift already")
    return evidence


def of_gradients(found: Cosines, groups: Tensor, seed: int) -> Evidence:
    """Judge how far the loss points where right solutions point.

    Args:
        found: cosines of N responses.
        groups: (B,) int64.
        seed: of the resampling.
    """
    ones = torch.ones_like(found.before)
    mine = groups[torch.tensor(found.rows, dtype=torch.int64)]
    evidence = _evidence(COSINE, ((found.before, ones), (found.after, ones)), mine, seed)
    if evidence.fault:
        return evidence
    if _lower(found.before, mine, seed) > 0:
        return evidence
    more = min(_lower(found.after, mine, seed), _lower(found.after - found.before, mine, seed))
    if more > 0:
        return replace(evidence, grown=True)
    return replace(evidence, fault="before drift it cannot be told from 0")


def _lower(values: Tensor, groups: Tensor, seed: int) -> float:
    """Lower end of the interval of a mean, (N,) float64."""
    return over_prompts(lambda rows: values[rows].mean().item(), groups, RESAMPLINGS, seed)[0]


Counted = tuple[Tensor, Tensor]
"""Sum of a number over a response, and what it is divided by, (N,) float64 each."""


def _evidence(name: str, sides: tuple[Counted, Counted], groups: Tensor, seed: int) -> Evidence:
    """Evidence of means before and after, with the interval of their ratio."""
    prompts = len(groups.unique())
    if not prompts:
        return Evidence(name, math.nan, math.nan, math.nan, math.nan, 0, "there is nothing of it")

    def means(rows: Tensor) -> list[float]:
        return [(total[rows].sum() / count[rows].sum()).item() for total, count in sides]

    def kept(rows: Tensor) -> float:
        before, after = means(rows)
        return after / max(before, 0.5 / len(rows))  # half an answer where a draw has none

    before, after = means(torch.arange(len(groups)))
    low, high = over_prompts(kept, groups, RESAMPLINGS, seed)
    few = f"{prompts} prompts, fewer than {FEW_PROMPTS}" if prompts < FEW_PROMPTS else ""
    return Evidence(name, before, after, low, high, prompts, few)


# ------------------------------------------------------------------------------------------ verdict


@dataclass(frozen=True)
class Signal:
    """Verdict, and what follows from it."""

    name: str
    """``SURVIVES``, ``LOST`` or ``UNKNOWN``."""
    reason: str
    advice: str


ADVICE = {
    LOST: (
        "what is trained on after drift is noise: +recipe=prune_opd_gate, the gate with w_base = 0"
        " and loss_normaliser = reliable, is worth trying, against plain OPD at the same tokens"
    ),
    SURVIVES: (
        "the teacher still teaches after drift: pruning saves only what shorter responses save, and"
        " may cost accuracy; take plain OPD (+recipe=opd), or weights without a gate"
    ),
    UNKNOWN: "compare plain OPD with +recipe=prune_opd_gate at the same tokens before a long run",
}
UNANSWERED = (
    "the answer is out of the teacher's reach from there, but single steps that it advises may be"
    " right all the same"
)
"""Caution where recovery alone says that the signal is lost."""
TELL = "--other-teacher or --solutions tells"


def judge_signal(found: Sequence[Evidence], missing: Sequence[str], rejecting: int) -> Signal:
    """Judge whether the signal survives. Evidence that speaks must speak with one voice.

    Two exceptions. A gradient against right solutions says what steps are worth where no step leads
    to the answer any more, so it overrules recovery that is lost. And a teacher with noise on its
    weights is no second opinion: it speaks only against such a recovery.

    Args:
        found: pieces of evidence, the most direct one first.
        missing: reasons why others are not there.
        rejecting: responses with a token that the teacher would not accept.
    """
    said = "; ".join(map(str, found))
    says = {one.name: one.says for one in found if one.says != UNKNOWN}
    steady = says.pop(STEADINESS, UNKNOWN)
    if COSINE in says and says.get(RECOVERY) == LOST:
        del says[RECOVERY]
    voices = set(says.values())
    if len(voices) > 1:
        return Signal(UNKNOWN, f"the evidence disagrees: {said}", ADVICE[UNKNOWN])
    if not voices:
        none = "no response has a token that the teacher would not accept"
        missed = "; ".join(filter(None, (said, *missing)))
        return Signal(UNKNOWN, missed if rejecting else none, ADVICE[UNKNOWN])
    (name,) = voices
    if set(says) != {RECOVERY} or name != LOST:
        return Signal(name, said, ADVICE[name])
    name = UNKNOWN if steady == SURVIVES else LOST
    return Signal(name, f"{said}; {UNANSWERED}: {TELL}", ADVICE[name])
