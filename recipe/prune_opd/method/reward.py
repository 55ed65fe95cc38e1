"""Distillation reward over candidate tokens, r = -w * (S - T). (METHOD: paper section 3.3)

Shapes: B sequences, T response positions, K candidates of one model, K' candidates of the reward.
S and T are log-softmax over the full vocabulary of student and teacher; they are never renormalised over the
candidates. Only the weights w are, as each strategy says.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.prune_opd.method.drift import is_member

STRATEGIES = ("only_stu", "only_tch", "intersection", "union", "union_intersection", "sampled")
SERVED = ("only_tch", "intersection", "sampled")
"""Those that need of the teacher no more than its own top k and the sampled token."""
WEIGHTINGS = ("student_p", "teacher_p", "none")


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


def needs_student_on_teacher(strategy: str) -> bool:
    """Whether a strategy needs the student's log-probs on the teacher's ids: one more student pass."""
    return strategy in ("only_tch", "union", "union_intersection")


def topk_reward(
    student_ids: Tensor,
    student_log_probs: Tensor,
    teacher_on_student: Tensor | None,
    *,
    teacher_ids: Tensor | None = None,
    teacher_log_probs: Tensor | None = None,
    student_on_teacher: Tensor | None = None,
    sampled_student: Tensor | None = None,
    sampled_teacher: Tensor | None = None,
    responses: Tensor | None = None,
    strategy: str = "only_stu",
    weighting: str = "student_p",
) -> TopKReward:
    """Reward of every candidate under one strategy.

    Args:
        student_ids: (B, T, K) int, K_S.
        student_log_probs: (B, T, K) float, S on K_S.
        teacher_on_student: (B, T, K) float, T on K_S; not read by ``only_tch`` and ``sampled``.
        teacher_ids: (B, T, K) int, K_T; all strategies but ``only_stu`` and ``sampled``.
        teacher_log_probs: (B, T, K) float, T on K_T; ``only_tch`` and the unions.
        student_on_teacher: (B, T, K) float, S on K_T; ``only_tch`` and the unions.
        sampled_student: (B, T) float, S of the sampled token; ``sampled``.
        sampled_teacher: (B, T) float, T of the sampled token; ``sampled``.
        responses: (B, T) int, the sampled tokens; ``sampled`` reports them as ids (-1 without them).
        strategy: one of ``STRATEGIES``.
        weighting: one of ``WEIGHTINGS``; ``sampled`` always weighs 1.

    A candidate that one of the models gives probability 0 (log-prob -inf) is no candidate: its reward would be
    infinite. NaN is not hidden, it comes out in the reward.

    Raises:
        ValueError: unknown strategy or weighting, or a tensor that the strategy needs is missing.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {weighting!r}, allowed: {', '.join(WEIGHTINGS)}")
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}, allowed: {', '.join(STRATEGIES)}")
    if strategy == "sampled":
        candidates = _sampled(sampled_student, sampled_teacher, responses)
        weights = torch.ones_like(candidates.student)
    else:
        candidates = _candidates(
            strategy,
            student_ids,
            student_log_probs,
            teacher_on_student,
            teacher_ids,
            teacher_log_probs,
            student_on_teacher,
        )
        weights = _weights(candidates, weighting, renormalise=strategy != "union_intersection")
    reward = torch.where(candidates.valid, -weights * (candidates.student - candidates.teacher), 0.0)
    return TopKReward(reward, candidates.ids, candidates.valid, candidates.student)


def _need(strategy: str, **tensors: Tensor | None) -> list[Tensor]:
    missing = [name for name, tensor in tensors.items() if tensor is None]
    if missing:
        raise ValueError(f"strategy {strategy!r} needs {', '.join(missing)}")
    return [tensor for tensor in tensors.values() if tensor is not None]


def _possible(ids: Tensor, student: Tensor, teacher: Tensor, valid: Tensor) -> Candidates:
    student, teacher = student.float(), teacher.float()
    return Candidates(ids, student, teacher, valid & ~student.isneginf() & ~teacher.isneginf())


def _sampled(sampled_student: Tensor | None, sampled_teacher: Tensor | None, responses: Tensor | None) -> Candidates:
    both = _need("sampled", sampled_student=sampled_student, sampled_teacher=sampled_teacher)
    student, teacher = (log_probs.unsqueeze(-1) for log_probs in both)
    ids = torch.full_like(student, -1, dtype=torch.long) if responses is None else responses.unsqueeze(-1)
    return _possible(ids, student, teacher, torch.ones_like(ids, dtype=torch.bool))


def _candidates(
    strategy: str,
    student_ids: Tensor,
    student_log_probs: Tensor,
    teacher_on_student: Tensor | None,
    teacher_ids: Tensor | None,
    teacher_log_probs: Tensor | None,
    student_on_teacher: Tensor | None,
) -> Candidates:
    if strategy == "only_stu":
        (on_student,) = _need(strategy, teacher_on_student=teacher_on_student)
        return _possible(student_ids, student_log_probs, on_student, torch.ones_like(student_ids, dtype=torch.bool))
    if strategy == "intersection":
        on_student, theirs = _need(strategy, teacher_on_student=teacher_on_student, teacher_ids=teacher_ids)
        return _possible(student_ids, student_log_probs, on_student, is_member(student_ids, theirs))
    theirs, their_log_probs, on_teacher = _need(
        strategy, teacher_ids=teacher_ids, teacher_log_probs=teacher_log_probs, student_on_teacher=student_on_teacher
    )
    if strategy == "only_tch":
        return _possible(theirs, on_teacher, their_log_probs, torch.ones_like(theirs, dtype=torch.bool))
    (on_student,) = _need(strategy, teacher_on_student=teacher_on_student)
    of_student = torch.ones_like(student_ids, dtype=torch.bool)
    if strategy == "union_intersection":
        of_student = ~is_member(student_ids, theirs)
    return _possible(
        torch.cat([student_ids, theirs], -1),
        torch.cat([student_log_probs, on_teacher], -1),
        torch.cat([on_student, their_log_probs], -1),
        torch.cat([of_student, ~is_member(theirs, student_ids)], -1),
    )


def _weights(candidates: Candidates, weighting: str, renormalise: bool) -> Tensor:
    """w, (B, T, K'): 0 on columns that are not valid; sums to 1 over the valid ones where ``renormalise``."""
    log_weight = {
        "student_p": candidates.student,
        "teacher_p": candidates.teacher,
        "none": torch.zeros_like(candidates.student),
    }[weighting]
    log_weight = log_weight.masked_fill(~candidates.valid, -torch.inf)
    if not renormalise:
        return log_weight.exp()
    # A position without any candidate is 0/0 here; its columns are not valid, so its reward is 0 all the same.
    return torch.softmax(log_weight, -1)
