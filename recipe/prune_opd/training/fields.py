"""Fields of a batch in TransferQueue: their names, and which of them a worker method reads.

A worker writes blocks of (response, K) values as jagged fields, and the next worker reads them
where they are.
"""

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.teacher.answers import SERVED_IDS, SERVED_LOG_PROBS

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
SUMS, POSITIONS = "prune_opd_sums", "prune_opd_positions"
COUNTED = "prune_opd_counted"
EXTRA = "extra_fields"  # verl's, where the agent loop leaves its reports

MODEL_FIELDS = ("input_ids", "position_ids", "loss_mask", "responses", "multi_modal_inputs")
"""What an engine needs for a pass over the batch."""


def teacher_fields(config: PruneOPDConfig) -> tuple[str, ...]:
    """Fields the teacher's pass reads."""
    return (
        (*MODEL_FIELDS, STUDENT_IDS) if "teacher_on_student" in config.rules.needs else MODEL_FIELDS
    )


def served_fields(config: PruneOPDConfig) -> tuple[str, ...]:
    """Fields ``read_served_scores`` reads."""
    return "responses", SERVED_IDS, SERVED_LOG_PROBS


READS = {"compute_ref_log_prob": teacher_fields, "read_served_scores": served_fields}
"""Fields that a method of the worker which brings the teacher's scores reads."""


def advantage_fields(config: PruneOPDConfig) -> tuple[str, ...]:
    """Fields ``compute_pruned_advantage`` reads."""
    fields = ["responses", "response_mask", *TOP_K_FIELDS]
    if config.dump_dir:
        fields.append("prompts")
    if config.gate.enable:
        fields.append(EXTRA)
    needed = {
        "teacher_on_student": (TEACHER_ON_STUDENT,),
        "student_on_teacher": (STUDENT_ON_TEACHER,),
        "sampled": ("old_log_probs", TEACHER_SAMPLED),
    }
    for part in config.rules.needs:
        fields += needed[part]
    return tuple(fields)


UPDATE_FIELDS = (*MODEL_FIELDS, "response_mask", CANDIDATES, OLD_LOG_PROBS, ADVANTAGES, COUNTED)
"""Fields the update reads."""
