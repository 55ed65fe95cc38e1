"""The teacher in the trainer's own workers, as verl's reference model."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.engines import check_model
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.config import require
from recipe.prune_opd.teacher.home import Home
from recipe.prune_opd.teacher.servers import check_pool, check_server_models, teacher_pool
from verl_ext.texts import shown

if TYPE_CHECKING:  # takes seconds
    from verl_ext.rollout.teacher_pool import TeacherPool


class WorkerGroup(Home):
    """Teacher and student take turns on the same devices, several teachers, too; any token can be
    scored.

    For the gate a second copy of each teacher is on servers.
    """

    delivers = ("teacher_on_student", "sampled")
    reference_model = True
    several = True

    def check(self, config: DictConfig) -> None:
        """See ``Home``."""
        super().check(config)
        if self.is_asked:
            check_pool(config, self.prune_opd, "gate.enable")

    def check_models(self, config: DictConfig, student: Model, teacher: Model) -> None:
        """See ``Home``."""
        if self.held:
            check_model(config, "ref", teacher)
        if self.is_asked:
            check_server_models(config, self.prune_opd, teacher)

    def pool(self, config: DictConfig) -> "TeacherPool | None":
        """See ``Home``."""
        return teacher_pool(config, self.prune_opd) if self.is_asked else None

    def client(self, config: DictConfig, servers: Any) -> Any:
        """See ``Home``."""
        pool = self.pool(config)
        return pool.client(config, servers) if pool else None

    def clients(self, config: DictConfig, servers: Any) -> list[Any]:
        """See ``Home``."""
        pool = self.pool(config)
        return pool.clients(config, servers) if pool else []

    def __str__(self) -> str:
        return "worker group and, for the gate, servers" if self.is_asked else "worker group"


class LoraBase(WorkerGroup):
    """The student without its LoRA adapter: no second copy is held, the actor's passes are taken
    with the adapter off (``TrainingWorker.infer_batch``, ``no_lora_adapter``).
    """

    worker_method = "compute_base_log_prob"
    held = None
    several = False

    def check(self, config: DictConfig) -> None:
        """See ``Home``."""
        super().check(config)
        model, teacher = config.actor_rollout_ref.model, self.prune_opd.teacher
        rank = OmegaConf.select(model, "lora.rank") or model.get("lora_rank")
        if not rank and model.get("lora_adapter_path") is None:
            raise ValueError(
                f"actor_rollout_ref.model.lora_rank: got {shown(model.get('lora_rank'))}, allowed"
                " with prune_opd.teacher.home=lora_base: above 0, or a lora_adapter_path, because"
                " the teacher is the student without its adapter"
            )
        for key, own in (("path", model.path), ("override_config", model.override_config)):
            found, allowed = getattr(teacher, key), f"actor_rollout_ref.model.{key}, {shown(own)}"
            require(
                found == own, f"teacher.{key}", found, f"with teacher.home=lora_base: {allowed}"
            )

    def __str__(self) -> str:
        return "student's base and, for the gate, servers" if self.is_asked else "student's base"
