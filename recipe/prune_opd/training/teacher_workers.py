"""verl's workers of the frozen teachers, in the place of its reference model."""

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from recipe.prune_opd.checks.files import local_path
from recipe.prune_opd.config import TeacherConfig
from recipe.prune_opd.training.fields import TEACHER
from verl_ext.row_workers import RowWorkers
from verl_ext.topk import TopKPass


def build_teachers(
    node: DictConfig, given: TeacherConfig, config: TrainingWorkerConfig
) -> TrainingWorker | RowWorkers:
    """The worker of the only teacher, or one that has each row scored by its own.

    Args:
        node: verl's ``actor_rollout_ref``.
        given: the teachers.
        config: that verl made for a reference model, with the student in it.
    """
    built = [_build_teacher(node, given, path, config) for path in given.paths.values()]
    return RowWorkers(built, TEACHER) if given.models else built[0]


def _build_teacher(
    node: DictConfig, given: TeacherConfig, path: str, config: TrainingWorkerConfig
) -> TrainingWorker:
    model: Any = OmegaConf.to_container(node.model, resolve=True)
    model |= {
        "path": local_path(path),
        "trust_remote_code": given.trust_remote_code,
        "override_config": given.override_config,
        # What belongs to the student alone:
        "hf_config_path": None,
        "tokenizer_path": None,
        "custom_chat_template": None,
        "lora_rank": 0,
        "lora": {},
        "lora_adapter_path": None,
        "mtp": (model["mtp"] or {}) | {"enable": False},
    }
    teacher: HFModelConfig = omega_conf_to_dataclass(OmegaConf.create(model))
    # forward_only=false keeps FSDP's teacher on its device, but then verl builds an optimizer for
    # it, and has no settings for one. It never steps, so it holds no state.
    optimizer = omega_conf_to_dataclass(node.actor.optim)
    config = replace(config, model_config=teacher, optimizer_config=optimizer)
    worker = TrainingWorker(config=config)
    worker.set_loss_fn(TopKPass(vocab_size=teacher.hf_config.get_text_config().vocab_size))
    return worker
