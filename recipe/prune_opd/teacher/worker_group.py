"""The teacher in the trainer's own workers, as verl's reference model."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from recipe.prune_opd.checks.engines import check_model
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.teacher.home import Home
from recipe.prune_opd.teacher.servers import check_pool, check_server_models, teacher_pool

if TYPE_CHECKING:  # takes seconds
    from verl_ext.rollout.teacher_pool import TeacherPool


class WorkerGroup(Home):
    """Teacher and student take turns on the same devices; any token can be scored.

    For the gate a second copy of it is on servers.
    """

    delivers = ("teacher_on_student", "sampled")
    reference_model = True

    def check(self, config: DictConfig) -> None:
        """See ``Home``."""
        super().check(config)
        if self.is_asked:
            check_pool(config, self.prune_opd, "gate.enable")

    def check_models(self, config: DictConfig, student: Model, teacher: Model) -> None:
        """See ``Home``."""
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

    def __str__(self) -> str:
        return "worker group and, for the gate, servers" if self.is_asked else "worker group"
