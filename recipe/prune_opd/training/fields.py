"""Fields of a batch in TransferQueue: their names, which of them a worker method reads, and what
the method takes them for.

A worker writes blocks of (response, K) values as jagged fields, and the next worker reads them
where they are.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from recipe.prune_opd.config import TeacherConfig, shown
from recipe.prune_opd.method.reward import Sampled, Scores, TopK
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport, Reports
from recipe.prune_opd.teacher.answers import SERVED_IDS, SERVED_LOG_PROBS, is_missing
from recipe.prune_opd.teacher.client import SCORE_REPORT
from recipe.prune_opd.teacher.home import Home
from verl_ext.rollout.scoring import ScoreReport

STUDENT_IDS, STUDENT_LOG_PROBS = "student_topk_ids", "student_topk_log_probs"
TEACHER_IDS, TEACHER_LOG_PROBS = "teacher_topk_ids", "teacher_topk_log_probs"
TOP_K_FIELDS = (STUDENT_IDS, STUDENT_LOG_PROBS, TEACHER_IDS, TEACHER_LOG_PROBS)
TEACHER_ON_STUDENT, STUDENT_ON_TEACHER = "teacher_on_student_ids", "student_on_teacher_ids"
TEACHER_SAMPLED = "teacher_sampled_log_probs"
CANDIDATES, OLD_LOG_PROBS, ADVANTAGES = (
    "candidate_ids",
    "candidate_old_log_probs",
    "candidate_advantages",
)
SAMPLED_OLD, TASK_ADVANTAGES = "old_log_probs", "advantages"
"""verl's, (response,): log-probs of the sampled tokens, and what its estimator makes of task
rewards. The latter is written over by the sum of all advantages of a token."""
SUMS, POSITIONS = "prune_opd_sums", "prune_opd_positions"
ERRORS = "prune_opd_errors"
"""Text of a response's last late or failed question to the teacher, see ``Reports.errors``."""
COUNTED = "prune_opd_counted"
STEP = "prune_opd_step"
"""Beginning of the file that a batch is dumped to: its step, and which update of it."""
EXTRA = "extra_fields"  # verl's, where the agent loop leaves its reports

LIMIT = "prune_opd_limit"
"""int64, one a row: the most tokens a response may have. Training prompts carry it from when they
are sent out, and so do their responses; validation prompts do not."""
TEACHER = "prune_opd_teacher"
"""int64, one a row: the teacher that scores a response, by its place in ``teacher.paths``. Training
prompts carry it as they carry ``LIMIT``, where there are several."""
INNER = "prune_opd_inner"
"""Text: the agent loop that a training prompt's row names; not there where data name none."""
UID, SESSION, ROLLOUT_LOG_PROBS = "uid", "session_id", "rollout_log_probs"  # verl's
SHARD, STORED = "prune_opd_shard", "prune_opd_stored"
"""Beginning of the files that a batch of cached rollouts is written to; what was written of it."""

MODEL_FIELDS = ("input_ids", "position_ids", "loss_mask", "responses", "multi_modal_inputs")
"""Fields that an engine needs for a pass over the batch."""


def student_fields(home: Home) -> tuple[str, ...]:
    """Name the fields the student's pass reads."""
    return (*MODEL_FIELDS, SERVED_IDS) if home.asks_on_student else MODEL_FIELDS


def teacher_fields(home: Home) -> tuple[str, ...]:
    """Name the fields the teacher's pass reads."""
    of_student = "teacher_on_student" in home.prune_opd.rules.needs
    own = (STUDENT_IDS,) if of_student else ()
    return (*MODEL_FIELDS, *own, *row_teacher_fields(home))


def row_teacher_fields(home: Home) -> tuple[str, ...]:
    """Name the field that says which teacher a row has; none with one teacher."""
    return (TEACHER,) if home.prune_opd.teacher.models else ()


def served_fields(home: Home) -> tuple[str, ...]:
    """Name the fields ``read_served_scores`` and ``read_reported_student`` read."""
    return "responses", SERVED_IDS, SERVED_LOG_PROBS


def stored_fields(home: Home, log_probs: bool) -> tuple[str, ...]:
    """Name the fields of a response that are cached.

    Args:
        home: of the teacher.
        log_probs: the rollout reports log-probs.
    """
    scores = (TEACHER_IDS, TEACHER_LOG_PROBS) if home.cacheable else ()
    sampled = (
        (TEACHER_SAMPLED,) if home.cacheable and "sampled" in home.prune_opd.rules.needs else ()
    )
    own = (ROLLOUT_LOG_PROBS,) if log_probs else ()
    return (UID, SESSION, "prompts", "responses", "response_mask", *own, *scores, *sampled)


READS = {
    "compute_ref_log_prob": teacher_fields,
    "compute_base_log_prob": teacher_fields,
    "read_served_scores": served_fields,
}
"""Fields that a method of the worker which brings the teacher's scores reads."""


def advantage_fields(home: Home) -> tuple[str, ...]:
    """Name the fields ``compute_pruned_advantage`` reads."""
    fields = ["responses", "response_mask", LIMIT, *row_teacher_fields(home), *TOP_K_FIELDS]
    if home.prune_opd.dump_dir:
        fields.append("prompts")
    if home.is_asked:
        fields.append(EXTRA)
    if home.prune_opd.task_reward.factor:
        fields += [SAMPLED_OLD, TASK_ADVANTAGES]
    return tuple(dict.fromkeys([*fields, *part_fields(home.prune_opd.rules.needs)]))


def part_fields(needs: Iterable[str]) -> list[str]:
    """Name the fields that hold optional parts of ``Scores``."""
    held = {
        "teacher_on_student": [TEACHER_ON_STUDENT],
        "student_on_teacher": [STUDENT_ON_TEACHER],
        "sampled": [SAMPLED_OLD, TEACHER_SAMPLED],
    }
    return [field for part in needs for field in held[part]]


UPDATE_FIELDS = (*MODEL_FIELDS, "response_mask", CANDIDATES, OLD_LOG_PROBS, ADVANTAGES, COUNTED)
"""Fields the update reads."""


def scores_of(fields: Mapping[str, Tensor]) -> Scores:
    """Padded (B, T) and (B, T, K) fields of responses as the method takes them."""
    sampled = None
    if TEACHER_SAMPLED in fields:
        sampled = Sampled(fields[SAMPLED_OLD], fields[TEACHER_SAMPLED])
    return Scores(
        fields["responses"],
        TopK(fields[STUDENT_IDS], fields[STUDENT_LOG_PROBS]),
        TopK(fields[TEACHER_IDS], fields[TEACHER_LOG_PROBS]),
        fields.get(TEACHER_ON_STUDENT),
        fields.get(STUDENT_ON_TEACHER),
        sampled,
    )


def counted_tokens(fields: Mapping[str, Tensor]) -> Tensor:
    """(B, T) bool. A token without the teacher's score, or without the student's report, takes no
    part in anything, as if it were padding."""
    missing = is_missing(fields[TEACHER_LOG_PROBS]) | is_missing(fields[STUDENT_LOG_PROBS])
    return fields["response_mask"].bool() & ~missing


def limits_of(data: TensorDict) -> Tensor:
    """(B,) int64, limits that the responses of a batch carry.

    Raises:
        RuntimeError: they carry none.
    """
    if LIMIT not in data:
        raise RuntimeError(
            "responses carry no limit: their prompts were not sent out by this trainer (a rollout"
            " replay or a checkpoint without it, or a trainer of your own that does not call"
            " super()._submit_batch_to_rollout?)"
        )
    return torch.as_tensor(data[LIMIT]).reshape(-1)


def teachers_of(data: TensorDict) -> Tensor | None:
    """(B,) int64, places of the rows' teachers in ``teacher.paths``; None where there is one."""
    return torch.as_tensor(data[TEACHER]).reshape(-1) if TEACHER in data else None


def row_teachers(batch: TensorDict, teacher: TeacherConfig) -> Tensor:
    """(B,) int64, the column ``TEACHER`` of prompts that are sent out.

    Args:
        batch: rows of the training data.
        teacher: of several models.

    Raises:
        ValueError: a row names none of them; files that were read before the start have been
            refused for that, so the rows come from elsewhere.
    """
    names, column = list(teacher.paths), tu.get(batch, teacher.key)
    # A column whose rows are all alike may have become one value.
    given = column if isinstance(column, list) else [column] * len(batch)
    for row, name in enumerate(given):
        if name not in names:
            raise ValueError(
                f"prune_opd.teacher.key: row {row} of a training batch has {shown(name)} in its"
                f" column {teacher.key!r}, allowed: {', '.join(names)}"
            )
    return torch.tensor([names.index(name) for name in given])


def check_lengths(tags: Iterable[dict[str, Any]], limits: Iterable[int], largest: int) -> None:
    """Check that no response is longer than the limit its row carries.

    Args:
        tags: verl's, of the responses and of padding.
        limits: of the real responses, in their order.
        largest: of the run, which those of a replayed rollout may exceed.

    Raises:
        RuntimeError: one is.
    """
    lengths = [tag["response_len"] for tag in tags if not tag.get("is_padding", False)]
    for length, own in zip(lengths, limits, strict=True):
        limit = min(int(own), largest)
        if length > limit:
            raise RuntimeError(
                f"a response has {length} tokens under a limit of {limit}: the rollout does not"
                " take it from the batch (an agent loop or a rollout replay of your own?)"
            )


def reports(data: TensorDict) -> list[Reports]:
    """Reports of the agent loop about each response of a batch."""
    if EXTRA not in data:
        return [Reports()] * len(data)
    # verl dumps what an agent loop returns, dataclasses become dictionaries.
    return [
        Reports(
            gate=GateReport(**extra[GATE_REPORT]) if GATE_REPORT in extra else None,
            score=ScoreReport(**extra[SCORE_REPORT]) if SCORE_REPORT in extra else None,
        )
        for extra in tu.get(data, EXTRA)
    ]
