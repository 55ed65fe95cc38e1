"""Distillation reward over candidate tokens, r = -w * (S - T). (METHOD: paper section 3.3)

Shapes: B sequences, T response positions, K candidates of one model, K' candidates of the reward.
S and T are log-softmax over the full vocabulary of student and teacher; they are never renormalised
over the candidates. Only the weights w are, as each strategy says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from recipe.prune_opd.method.drift import is_member, overlap_ratio

Rule = TypeVar("Rule")


@dataclass(frozen=True)
class TopK:
    """A model's most likely tokens at each position."""

    ids: Tensor
    """(B, T, K) int, by descending logit."""
    log_probs: Tensor
    """(B, T, K) float, log-softmax over the full vocabulary at ``ids``."""


@dataclass(frozen=True)
class Sampled:
    """What both models say of the sampled token."""

    student: Tensor
    """S, (B, T) float."""
    teacher: Tensor
    """T, (B, T) float."""


@dataclass(frozen=True)
class Scores:
    """What student and teacher say about responses. A strategy says which of the optional parts it
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
    """What ``topk_reward`` returns."""

    reward: Tensor
    """r, (B, T, K') float32; 0 where ``valid`` is False."""
    ids: Tensor
    """(B, T, K') int, the candidate tokens."""
    valid: Tensor
    """(B, T, K') bool."""
    student_log_probs: Tensor
    """S at ``ids``, (B, T, K') float32: the old log-probs of the update."""


@dataclass(frozen=True)
class Strategy:
    """Which tokens are rewarded at each position."""

    candidates: Callable[[Scores], Candidates]
    needs: tuple[str, ...]
    """Optional parts of ``Scores`` that ``candidates`` reads."""
    served: bool
    """The teacher's own top k and the sampled token tell all that is needed of the teacher."""
    renormalise: bool = True
    """Weights sum to 1 over the candidates of a position. False: they are the models' own
    probabilities."""


def topk_reward(
    scores: Scores, strategy: str = "only_stu", weighting: str = "student_p"
) -> TopKReward:
    """Reward of every candidate under one strategy.

    A candidate that one of the models gives probability 0 (log-prob -inf) is no candidate: its
    reward would be infinite. NaN is not hidden, it comes out in the reward.

    Args:
        scores: of both models, with what the strategy ``needs``.
        strategy: one of ``STRATEGIES``.
        weighting: one of ``WEIGHTINGS``. With one candidate, as ``sampled`` has, each of them is 1.

    Raises:
        ValueError: unknown strategy or weighting, or a part of ``scores`` that the strategy needs
            is missing.
    """
    rule, log_weight = (
        _known("strategy", strategy, STRATEGIES),
        _known("weighting", weighting, WEIGHTINGS),
    )
    missing = [name for name in rule.needs if getattr(scores, name) is None]
    if missing:
        raise ValueError(f"strategy {strategy!r} needs {', '.join(missing)}")
    found = rule.candidates(scores)
    weights = _weights(found, log_weight(found), rule.renormalise)
    reward = torch.where(found.valid, -weights * (found.student - found.teacher), 0.0)
    return TopKReward(reward, found.ids, found.valid, found.student)


def needs_student_on_teacher(strategy: str) -> bool:
    """Whether a strategy needs the student's log-probs on the teacher's ids: one more student
    pass."""
    return "student_on_teacher" in STRATEGIES[strategy].needs


def _weights(candidates: Candidates, log_weight: Tensor, renormalise: bool) -> Tensor:
    """w, (B, T, K'): 0 on columns that are not valid; sums to 1 over the valid ones where
    ``renormalise``."""
    log_weight = log_weight.masked_fill(~candidates.valid, -torch.inf)
    # A position without any candidate is 0/0 here; its columns are not valid, so its reward is 0
    # all the same.
    return torch.softmax(log_weight, -1) if renormalise else log_weight.exp()


# --------------------------------------------------------------------------------------- strategies


def _possible(
    ids: Tensor, student: Tensor, teacher: Tensor, valid: Tensor | None = None
) -> Candidates:
    student, teacher = student.float(), teacher.float()
    finite = ~student.isneginf() & ~teacher.isneginf()
    return Candidates(ids, student, teacher, finite if valid is None else valid & finite)


def _only_stu(scores: Scores) -> Candidates:
    assert scores.teacher_on_student is not None
    return _possible(scores.student.ids, scores.student.log_probs, scores.teacher_on_student)


def _only_tch(scores: Scores) -> Candidates:
    assert scores.student_on_teacher is not None
    return _possible(scores.teacher.ids, scores.student_on_teacher, scores.teacher.log_probs)


def _intersection(scores: Scores) -> Candidates:
    assert scores.teacher_on_student is not None
    shared = is_member(scores.student.ids, scores.teacher.ids)
    return _possible(
        scores.student.ids, scores.student.log_probs, scores.teacher_on_student, shared
    )


def _union(scores: Scores) -> Candidates:
    """K_S, then what only K_T has."""
    return _both(scores, torch.ones_like(scores.student.ids, dtype=torch.bool))


def _union_intersection(scores: Scores) -> Candidates:
    """What only one of K_S and K_T has."""
    return _both(scores, ~is_member(scores.student.ids, scores.teacher.ids))


def _both(scores: Scores, of_student: Tensor) -> Candidates:
    student, teacher = scores.student, scores.teacher
    assert scores.teacher_on_student is not None
    assert scores.student_on_teacher is not None
    return _possible(
        torch.cat([student.ids, teacher.ids], -1),
        torch.cat([student.log_probs, scores.student_on_teacher], -1),
        torch.cat([scores.teacher_on_student, teacher.log_probs], -1),
        torch.cat([of_student, ~is_member(teacher.ids, student.ids)], -1),
    )


def _sampled(scores: Scores) -> Candidates:
    assert scores.sampled is not None
    columns = (scores.responses, scores.sampled.student, scores.sampled.teacher)
    return _possible(*(column.unsqueeze(-1) for column in columns))


_TWICE = ("teacher_on_student", "student_on_teacher")
STRATEGIES = {
    "only_stu": Strategy(_only_stu, ("teacher_on_student",), served=False),
    "only_tch": Strategy(_only_tch, ("student_on_teacher",), served=True),
    "intersection": Strategy(_intersection, ("teacher_on_student",), served=True),
    "union": Strategy(_union, _TWICE, served=False),
    "union_intersection": Strategy(_union_intersection, _TWICE, served=False, renormalise=False),
    "sampled": Strategy(_sampled, ("sampled",), served=True),
}
SERVED = tuple(name for name, strategy in STRATEGIES.items() if strategy.served)
"""Those that a teacher on servers can tell all about."""

WEIGHTINGS: dict[str, Callable[[Candidates], Tensor]] = {
    "student_p": lambda candidates: candidates.student,
    "teacher_p": lambda candidates: candidates.teacher,
    "none": lambda candidates: torch.zeros_like(candidates.student),
}
"""Name -> logarithm of the weights before they are renormalised, (B, T, K')."""


def _known(kind: str, name: str, names: dict[str, Rule]) -> Rule:
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}, allowed: {', '.join(names)}")
    return names[name]
