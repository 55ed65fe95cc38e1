"""Drift: where student and teacher part, and how much a token is worth after that. (METHOD: paper
sections 3.1-3.2)

Shapes: B sequences, T response positions, K candidates per position.
A response token is scored by the logits of the position before it; the caller aligns rows
accordingly.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from recipe.prune_opd.method.pieces import in_pieces
from recipe.prune_opd.method.registry import Registry

if TYPE_CHECKING:
    from recipe.prune_opd.method.reward import Scores

SLACK = 1e-6
"""A ratio or a cumulative probability this close to its bound counts as equal to it, whatever the
rounding."""
MOST_WEIGHT = 1000
"""Largest weight that a rule may give a token: products with it stay far inside of float32."""
MOST_TOKENS = 2**31
"""Tokens that no response has."""


def is_member(ids: Tensor, others: Tensor) -> Tensor:
    """Tell which of ``ids`` occur among ``others`` at the same position.

    Args:
        ids: (..., K) int.
        others: (..., K2) int.

    Returns:
        (..., K) bool.
    """
    return in_pieces(lambda *piece: _shared(*piece).T, ids.shape[:-1], ids, others)


def _shared(ids: Tensor, others: Tensor) -> Tensor:
    """Tell of ids (N, K) which are among others (N, K2), as (K, N) bool.

    Candidates first: whole columns are compared, and no (N, K, K2) block is made. The xor of two
    ids is 0 where they are equal and else positive, so its minimum over the others tells; that is
    twice as fast as to compare and collect truth values.
    """
    kind = torch.promote_types(ids.dtype, others.dtype)
    most = torch.iinfo(kind).max
    # Without their signs: -1, which stands for no id, becomes the largest number.
    columns, theirs = (each.T.to(kind).contiguous() & most for each in (ids, others))
    least, differing = torch.full_like(columns, most), torch.empty_like(columns)
    for column in theirs:
        torch.minimum(least, torch.bitwise_xor(columns, column, out=differing), out=least)
    return least == 0


def overlap_ratio(student_ids: Tensor, teacher_ids: Tensor) -> Tensor:
    """Share of candidates that both models rank among their k most likely, O_t = |K_S ∩ K_T| / k.

    Args:
        student_ids: (B, T, K) int, ids of the student's k largest logits, distinct within a
            position.
        teacher_ids: (B, T, K) int, the same of the teacher.

    Returns:
        (B, T) float32 in [0, 1].

    Raises:
        ValueError: the two shapes differ.
    """
    if student_ids.shape != teacher_ids.shape:
        raise ValueError(
            "overlap_ratio: student_ids and teacher_ids must have one shape (B, T, K), "
            f"got {tuple(student_ids.shape)} and {tuple(teacher_ids.shape)}"
        )
    lead, k = student_ids.shape[:-1], student_ids.shape[-1]
    counts = in_pieces(
        lambda *piece: _shared(*piece).sum(0, dtype=torch.int32), lead, student_ids, teacher_ids
    )
    return counts / k


def overlap_events(overlap: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Drift events of metric ``overlap_ratio``: D_t = 1 where O_t < γ, strictly, on tokens the
    student generated.

    Args:
        overlap: (B, T) float.
        mask: (B, T) bool or 0/1, 1 on tokens the student generated.
        threshold: γ.

    Returns:
        (B, T) bool.
    """
    return (overlap.double() < threshold - SLACK) & mask.bool()


def nucleus_events(
    responses: Tensor, teacher_ids: Tensor, teacher_log_probs: Tensor, mask: Tensor, top_p: float
) -> Tensor:
    """Drift events of metric ``teacher_top_p_accept``: the sampled token is outside the teacher's
    nucleus.

    The nucleus is the shortest prefix of the teacher's ranked candidates whose full-vocabulary
    probability reaches ``top_p``, the crossing token included, or all K of them where it is never
    reached.

    Args:
        responses: (B, T) int, sampled tokens.
        teacher_ids: (B, T, K) int, ranked by descending probability.
        teacher_log_probs: (B, T, K) float, log-softmax over the full vocabulary at ``teacher_ids``.
        mask: (B, T) bool or 0/1.
        top_p: p in (0, 1].

    Returns:
        (B, T) bool.
    """

    def outside(responses: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
        probs = log_probs.double().exp()
        mass_before = probs.cumsum(-1) - probs
        # The first candidate is always in.
        in_nucleus = (mass_before < top_p - SLACK) | (mass_before == 0)
        return ~((ids == responses.unsqueeze(-1)) & in_nucleus).any(-1)

    found = in_pieces(outside, responses.shape, responses, teacher_ids, teacher_log_probs)
    return found & mask.bool()


class DriftMetric(ABC):
    """Rule for what counts as a drift event."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Optional parts of ``Scores`` it reads. The in-flight gate has none of them."""
    ranks_only: ClassVar[bool] = False
    """True where it reads ids and no probabilities, so that temperatures do not matter to it."""

    @abstractmethod
    def events(self, scores: "Scores", mask: Tensor) -> Tensor:
        """Mark the drift events.

        Args:
            scores: of both models on the responses.
            mask: (B, T) bool, tokens that count.

        Returns:
            D, (B, T) bool, on tokens of ``mask`` alone. A token's event depends on that token's
            scores only: the in-flight gate asks about a response piece by piece.
        """


@dataclass(frozen=True)
class OverlapRatio(DriftMetric):
    """Metric ``overlap_ratio``: fewer than a share γ of the candidates are in both top k."""

    ranks_only = True
    threshold: float
    """γ."""

    def events(self, scores: "Scores", mask: Tensor) -> Tensor:
        """See ``overlap_events``."""
        return overlap_events(scores.overlap, mask, self.threshold)

    def __str__(self) -> str:
        return f"overlap_ratio, γ = {self.threshold}"


@dataclass(frozen=True)
class TeacherTopPAccept(DriftMetric):
    """Metric ``teacher_top_p_accept``: the sampled token is outside the teacher's nucleus."""

    top_p: float
    """Probability of the nucleus."""

    def events(self, scores: "Scores", mask: Tensor) -> Tensor:
        """See ``nucleus_events``."""
        teacher = scores.teacher
        return nucleus_events(scores.responses, teacher.ids, teacher.log_probs, mask, self.top_p)

    def __str__(self) -> str:
        return f"teacher_top_p_accept, top_p = {self.top_p}"


METRICS: Registry[DriftMetric] = Registry(
    "prune_opd.drift.metric",
    DriftMetric,
    overlap_ratio=OverlapRatio,
    teacher_top_p_accept=TeacherTopPAccept,
)


@dataclass(frozen=True)
class Reliability:
    """Weights that ``reliability`` returns."""

    weight: Tensor
    """R, (B, T) float32: 1 before any event, falling by w_drop with each, never recovering."""
    loss_weight: Tensor
    """L, (B, T) float32: R + w_base on generated tokens, 0 elsewhere."""
    effective_length: Tensor
    """E, (B,) int64: generated tokens with R > 0."""
    reliable_to: Tensor
    """(B,) int64: positions up to the last generated token with R > 0, that one included. E, but
    for tokens in between that count not, those of tools above all."""


def spent_at(w_drop: float) -> float:
    """Events that use up the reliability: ceil(1 / w_drop); infinitely many for 0, and for what
    would take more of them than any response has tokens."""
    return max(1, math.ceil(1 / w_drop - 1e-9)) if w_drop * MOST_TOKENS > 1 else math.inf


def turn_starts(generated: Tensor) -> Tensor:
    """Find the first token of every turn: a token of the student's behind one that is not.

    Args:
        generated: (B, T) bool, tokens that the student generated.

    Returns:
        (B, T) bool.
    """
    before = torch.nn.functional.pad(generated, (1, 0))[..., :-1]
    return generated & ~before


def reliability(
    events: Tensor, mask: Tensor, w_drop: float, w_base: float, starts: Tensor | None = None
) -> Reliability:
    """Monotone reliability weight R_t = clip(1 - w_drop * C_t, 0, 1) with C_t the events up to and
    including t.

    R is exactly 0 from the ceil(1 / w_drop)-th event on. Counts are exact integers and the weight
    is formed in float64 before it is rounded to float32 (bfloat16 would stall a count at 256).

    Args:
        events: (B, T) bool; events outside ``mask`` are ignored.
        mask: (B, T) bool or 0/1.
        w_drop: weight lost per event, >= 0.
        w_base: weight added to R on every generated token, >= 0; not a floor.
        starts: (B, T) bool, tokens at which the count of events begins anew, so that R is 1 again;
            None: at the start of the response alone.

    Raises:
        ValueError: ``w_drop`` is negative or not finite, or ``w_base`` outside of [0,
            ``MOST_WEIGHT``].
    """
    if not 0 <= w_drop < math.inf:
        raise ValueError(f"reliability: w_drop must be >= 0 and finite, got {w_drop}")
    if not 0 <= w_base <= MOST_WEIGHT:
        raise ValueError(f"reliability: w_base must be in [0, {MOST_WEIGHT}], got {w_base}")
    generated = mask.bool()
    counted = (events.bool() & generated).long()
    count = counted.cumsum(-1)
    if starts is not None:
        # Counts never fall, so the largest at a start so far is that of the last start.
        count = count - torch.where(starts, count - counted, 0).cummax(-1).values
    alive = count < spent_at(w_drop)
    weight = torch.where(alive, (1 - w_drop * count.double()).clamp(0, 1), 0.0).float()
    return Reliability(
        weight=weight,
        loss_weight=torch.where(generated, weight + w_base, 0.0),
        effective_length=(alive & generated).sum(-1),
        reliable_to=_last(alive & generated),
    )


def _last(marked: Tensor) -> Tensor:
    """Positions up to the last marked one, (B, T) bool -> (B,) int64; 0 where none is marked."""
    positions = torch.arange(1, marked.shape[-1] + 1, device=marked.device)
    return torch.nn.functional.pad(marked * positions, (1, 0)).amax(-1)
