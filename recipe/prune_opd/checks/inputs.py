"""All files a run starts from, checked together: its data, and its models."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.agent_loops import AGENT_NAME, SINGLE_TURN, agent_loop_fault
from recipe.prune_opd.checks.code import check_code, import_libraries
from recipe.prune_opd.checks.data import Prompt, Rules, check_data
from recipe.prune_opd.checks.engines import check_model
from recipe.prune_opd.checks.files import refuse_pointers
from recipe.prune_opd.checks.models import (
    Model,
    check_pair,
    check_rollout_context,
    check_split,
    render,
)
from recipe.prune_opd.checks.scoring import GRADING, grades_here, reads_rows
from recipe.prune_opd.config import PruneOPDConfig, TeacherConfig, shown


@dataclass(frozen=True)
class Inputs:
    """Findings in the files that a run needs."""

    student: Model
    """Configuration and tokenizer of the student."""
    teachers: tuple[Model, ...]
    """The same of each teacher, in the order of ``teacher.paths``."""
    reward_function: str | None
    """``reward.custom_reward_function.path`` that the data needs; None: as configured."""


def check_inputs(
    config: DictConfig, prune_opd: PruneOPDConfig, *, weights: bool, text_only: bool
) -> Inputs:
    """Check the data, row by row, and all models without their weights.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it.
        weights: this run loads the teachers' weights, so their files must be there.
        text_only: responses are scored by servers, which are asked about text.

    Raises:
        ValueError: names the key and the file, what was found and what is needed.
    """
    import_libraries(config)
    check_code(config)
    rules = row_rules(config, prune_opd, text_only)
    data = check_data(config, reads_rows(config), rules, teacher_rule(prune_opd.teacher))
    graded = grades_here(config, data.sources)
    student, teachers = _read_student(config), _read_teachers(prune_opd.teacher)
    for one in (student, *teachers) if weights else (student,):
        refuse_pointers(one.key, one.path, weights=True)
    for teacher in teachers:
        check_pair(student, teacher, prune_opd.topk)
    check_rollout_context(config, student)
    key = "actor_rollout_ref.rollout.tensor_model_parallel_size"
    check_split(key, OmegaConf.select(config, key), student)
    check_model(config, "actor", student)
    kwargs: Any = OmegaConf.to_container(config.data.apply_chat_template_kwargs, resolve=True)
    check_template(student, data.prompts, kwargs)
    return Inputs(student, teachers, GRADING if graded else None)


def _read_student(config: DictConfig) -> Model:
    model = config.actor_rollout_ref.model
    return Model(
        "actor_rollout_ref.model.path",
        str(model.path),
        model.trust_remote_code,
        model.hf_config_path,
        model.tokenizer_path,
        OmegaConf.select(model, "custom_chat_template"),
    )


def _read_teachers(given: TeacherConfig) -> tuple[Model, ...]:
    return tuple(
        Model(given.key_of(name), path, given.trust_remote_code, None, None)
        for name, path in given.paths.items()
    )


def row_rules(config: DictConfig, prune_opd: PruneOPDConfig, text_only: bool) -> Rules:
    """Rules for columns that rows of training data may have, each by its name.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it.
        text_only: see ``check_inputs``.
    """

    def loop_fault(name: Any) -> str | None:
        if prune_opd.semi.enable and name != SINGLE_TURN:
            return f"allowed with prune_opd.semi.enable: {SINGLE_TURN}"
        return agent_loop_fault(config, name)

    def media_fault(value: Any) -> str | None:
        none = value is None or (isinstance(value, list) and not value)
        return None if none else "allowed where servers score responses: none, they know text alone"

    media = (config.data[f"{kind}_key"] for kind in ("image", "video", "audio"))
    return {AGENT_NAME: loop_fault, **{name: media_fault for name in media if text_only}}


def teacher_rule(teacher: TeacherConfig) -> Rules:
    """Rule for the column that names the teacher of a training row; none with one teacher."""

    def teacher_fault(name: Any) -> str | None:
        known = isinstance(name, str) and name in teacher.models
        names = ", ".join(teacher.paths)
        return None if known else f"allowed: a name of prune_opd.teacher.models, {names}"

    return {teacher.key: teacher_fault} if teacher.models else {}


def check_template(student: Model, prompts: list[Prompt], kwargs: dict[str, Any]) -> None:
    """Check that the student's chat template takes a prompt of every set of roles and shapes. The
    teacher renders none.

    Raises:
        ValueError: there is no template, or it refuses a prompt; names the model or the row.
    """
    if not student.tokenizer.chat_template:
        raise ValueError(
            f"{student.key}: {student.path} has no chat template, needed to build its prompts; copy"
            " the chat_template.jinja of a model of its family into its folder, the teacher's for"
            " instance"
        )
    for prompt in prompts:
        try:
            render(student, prompt.messages, kwargs)
        except ValueError as error:
            raise ValueError(
                f"{prompt.where} holds {shown(prompt.messages)}, which the chat template of"
                f" {student.path} refuses ({error}); correct the prompts or the template"
            ) from error
