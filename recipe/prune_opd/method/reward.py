"""Distillation reward over candidate tokens, r = -w * (S - T). (METHOD: paper section 3.3)

Not of the paper: ``clip`` bounds |S - T|, as verl's ``distillation_loss.loss_max_clamp`` does from
one side. Without it one token that the teacher rules out outweighs the rest of a batch.

Shapes: B sequences, T response positions, K candidates of one model, K' candidates of the reward.
S and T are log-softmax over the full vocabulary of student and teacher; they are never renormalised
over the candidates. Only the weights w are, as each strategy says.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from recipe.prune_opd.method.drift import is_member, overlap_ratio
from recipe.prune_opd.method.pieces import in_pieces
from recipe.prune_opd.method.registry import Registry


@dataclass(frozen=True)
class TopK:
    """A model's most likely tokens at each position."""

    ids: Tensor
    """(B, T, K) int, by descending logit."""
    log_probs: Tensor
    """(B, T, K) float, log-softmax over the full vocabulary at ``ids``."""


@dataclass(frozen=True)
class Sampled:
    """Log-probs of the sampled token under both models."""

    student: Tensor
    """S, (B, T) float."""
    teacher: Tensor
    """T, (B, T) float."""


@dataclass(frozen=True)
class Scores:
    """Scores of responses by student and teacher. A strategy says which of the optional parts it
    needs."""

    responses: Tensor
    """(B, T) int, the sampled tokens."""
    student: TopK
    """K_S with S."""
    teacher: TopK
    """K_T with T."""
    teacher_on_student: Tensor | None = None
    """T on K_S, (B, T, K) float."""
    student_on_teacher: Tensor | None = None
    """S on K_T, (B, T, K) float: one more pass of the student."""
    sampled: Sampled | None = None

    @cached_property
    def overlap(self) -> Tensor:
        """O, (B, T) float32: computed once for all who ask, it is the dearest part of finding
        drift."""
        return overlap_ratio(self.student.ids, self.teacher.ids)


@dataclass(frozen=True)
class Candidates:
    """The tokens a reward is given to at each position."""

    ids: Tensor
    """(B, T, K') int."""
    student: Tensor
    """S, (B, T, K') float32."""
    teacher: Tensor
    """T, (B, T, K') float32."""
    valid: Tensor
    """(B, T, K') bool; False: the column holds no candidate here."""


@dataclass(frozen=True)
class TopKReward:
    """Reward that ``topk_reward`` returns."""

    reward: Tensor
    """r, (B, T, K') float32; 0 where ``valid`` is False."""
    ids: Tensor
    """(B, T, K') int, the candidate tokens."""
    valid: Tensor
    """(B, T, K') bool."""
    student_log_probs: Tensor
    """S at ``ids``, (B, T, K') float32: the old log-probs of the update."""


class Strategy(ABC):
    """Choice of the tokens that are rewarded at each position."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Optional parts of ``Scores`` it reads. Which homes of the teacher serve it follows."""
    renormalise: ClassVar[bool] = True
    """Weights sum to 1 over the candidates of a position. False: they are the models' own
    probabilities."""

    @abstractmethod
    def candidates(self, scores: Scores) -> Candidates:
        """Choose the candidates, out of ``scores`` with all that the strategy ``needs``."""


class Weighting(ABC):
    """Weight of a candidate against the others of its position."""

    @abstractmethod
    def log_weight(self, candidates: Candidates) -> Tensor:
        """Logarithm of the weights before they are renormalised, (B, T, K')."""


def topk_reward(
    scores: Scores,
    strategy: str | Strategy = "only_stu",
    weighting: str | Weighting = "student_p",
    clip: float = math.inf,
) -> TopKReward:
    """Reward of every candidate under one strategy.

    A candidate that one of the models gives probability 0 (log-prob -inf) is no candidate: its
    reward would be infinite. NaN is not hidden, it comes out in the reward.

    Args:
        scores: of both models, with what the strategy ``needs``.
        strategy: one of ``STRATEGIES``, or such an object.
        weighting: one of ``WEIGHTINGS``, or such an object. With one candidate, as ``sampled`` has,
            each of them is 1.
        clip: largest |S - T|, nats, > 0.

    Raises:
        ValueError: unknown strategy or weighting, or a part of ``scores`` that the strategy needs
            is missing.
    """
    rule = STRATEGIES.find(strategy)() if isinstance(strategy, str) else strategy
    weigh = WEIGHTINGS.find(weighting)() if isinstance(weighting, str) else weighting
    missing = [name for name in rule.needs if getattr(scores, name) is None]
    if missing:
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise ValueError(f"strategy {name!r} needs {', '.join(missing)}")
    found = rule.candidates(scores)

    def weighted(student: Tensor, teacher: Tensor, valid: Tensor, log_weight: Tensor) -> Tensor:
        weights = _weights(log_weight, valid, rule.renormalise)
        return torch.where(valid, weights * (teacher - student).clamp(-clip, clip), 0.0)

    parts = found.student, found.teacher, found.valid, weigh.log_weight(found)
    reward = in_pieces(weighted, found.valid.shape[:-1], *parts)
    return TopKReward(reward, found.ids, found.valid, found.student)


def _weights(log_weight: Tensor, valid: Tensor, renormalise: bool) -> Tensor:
    """w, (N, K'): 0 on columns that are not valid; sums to 1 over the valid ones where
    ``renormalise``."""
    log_weight = log_weight.masked_fill(~valid, -torch.inf)
    # A position without any candidate is 0/0 here; its columns are not valid, so its reward is 0
    # all the same.
    return torch.softmax(log_weight, -1) if renormalise else log_weight.exp()


# --------------------------------------------------------------------------------------- strategies


def possible(
    ids: Tensor, student: Tensor, teacher: Tensor, valid: Tensor | None = None
) -> Candidates:
    """Candidates less those that one of the models gives probability 0.

    Args:
        ids: (B, T, K') int.
        student: S at ``ids``, (B, T, K') float.
        teacher: T at ``ids``, (B, T, K') float.
        valid: (B, T, K') bool, columns that hold a candidate; None: all.
    """
    student, teacher = student.float(), teacher.float()
    finite = ~student.isneginf() & ~teacher.isneginf()
    return Candidates(ids, student, teacher, finite if valid is None else valid & finite)


def log_probs_of(ids: Tensor, of: TopK) -> Tensor:
    """A model's log-probs of some ids, where they are among its own candidates.

    Args:
        ids: (..., K) int, distinct in a row.
        of: the model's candidates, (..., K2).

    Returns:
        (..., K) float; -inf for an id that is not among them.
    """

    def among(ids: Tensor, their_ids: Tensor, their_log_probs: Tensor) -> Tensor:
        found = torch.full_like(ids, -torch.inf, dtype=their_log_probs.dtype)
        for theirs, log_probs in zip(their_ids.T, their_log_probs.T, strict=True):
            found = torch.where(ids == theirs.unsqueeze(-1), log_probs.unsqueeze(-1), found)
        return found

    return in_pieces(among, ids.shape[:-1], ids, of.ids, of.log_probs)


class OnlyStudent(Strategy):
    """K_S."""

    needs = ("teacher_on_student",)

    def candidates(self, scores: Scores) -> Candidates:
        """See ``Strategy``."""
        assert scores.teacher_on_student is not None
        return possible(scores.student.ids, scores.student.log_probs, scores.teacher_on_student)


class OnlyTeacher(Strategy):
    """K_T."""

    needs = ("student_on_teacher",)

    def candidates(self, scores: Scores) -> Candidates:
        """See ``Strategy``."""
        assert scores.student_on_teacher is not None
        return possible(scores.teacher.ids, scores.student_on_teacher, scores.teacher.log_probs)


class Intersection(Strategy):
    """K_S, those also in K_T. The teacher's own top k tells all that is needed of it."""

    def candidates(self, scores: Scores) -> Candidates:
        """See ``Strategy``."""
        student, teacher = scores.student, scores.teacher
        shared = is_member(student.ids, teacher.ids)
        return possible(student.ids, student.log_probs, log_probs_of(student.ids, teacher), shared)


class Union(Strategy):
    """K_S, then what only K_T has."""

    needs = ("teacher_on_student", "student_on_teacher")

    def candidates(self, scores: Scores) -> Candidates:
        """See ``Strategy``."""
        return _both(scores, torch.ones_like(scores.student.ids, dtype=torch.bool))


class UnionIntersection(Strategy):
    """Candidates that only one of K_S and K_T has."""

    needs = ("teacher_on_student", "student_on_teacher")
    renormalise = False

    def candidates(self, scores: Scores) -> Candidates:
        """See ``Strategy``."""
        return _both(scores, ~is_member(scores.student.ids, scores.teacher.ids))


class SampledToken(Strategy):
    """The sampled token."""

    needs = ("sampled",)

    def candidates(self, scores: Scores) -> Candidates:
        """See ``Strategy``."""
        assert scores.sampled is not None
        columns = (scores.responses, scores.sampled.student, scores.sampled.teacher)
        ids, student, teacher = (column.unsqueeze(-1) for column in columns)
        return possible(ids, student, teacher)


def _both(scores: Scores, of_student: Tensor) -> Candidates:
    """K_S where ``of_student``, then what only K_T has."""
    student, teacher = scores.student, scores.teacher
    assert scores.teacher_on_student is not None
    assert scores.student_on_teacher is not None
    return possible(
        torch.cat([student.ids, teacher.ids], -1),
        torch.cat([student.log_probs, scores.student_on_teacher], -1),
        torch.cat([scores.teacher_on_student, teacher.log_probs], -1),
        torch.cat([of_student, ~is_member(teacher.ids, student.ids)], -1),
    )


STRATEGIES: Registry[Strategy] = Registry(
    "prune_opd.strategy",
    Strategy,
    only_stu=OnlyStudent,
    only_tch=OnlyTeacher,
    intersection=Intersection,
    union=Union,
    union_intersection=UnionIntersection,
    sampled=SampledToken,
)


# --------------------------------------------------------------------------------------- weightings


class StudentProbability(Weighting):
    """The student's probability p(v)."""

    def log_weight(self, candidates: Candidates) -> Tensor:
        """See ``Weighting``."""
        return candidates.student


class TeacherProbability(Weighting):
    """The teacher's probability q(v)."""

    def log_weight(self, candidates: Candidates) -> Tensor:
        """See ``Weighting``."""
        return candidates.teacher


class Uniform(Weighting):
    """1 for every candidate."""

    def log_weight(self, candidates: Candidates) -> Tensor:
        """See ``Weighting``."""
        return torch.zeros_like(candidates.student)


WEIGHTINGS: Registry[Weighting] = Registry(
    "prune_opd.weighting",
    Weighting,
    student_p=StudentProbability,
    teacher_p=TeacherProbability,
    none=Uniform,
)
