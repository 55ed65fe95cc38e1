"""The teacher's servers, which start while the student is loaded, and who asks them."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from omegaconf import DictConfig
from verl.experimental.teacher_loop import MultiTeacherModelManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.device import get_device_name
from verl.workers.rollout.llm_server import LLMServerClient

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.teacher.client import RoutingClient, TeachingClient, with_teachers
from recipe.prune_opd.teacher.home import Home
from verl_ext.rollout.teacher_pool import TeacherPool

POOL = "teacher_pool"


class TeacherServers(PPOTrainer):
    """Mixin below ``PruneOPD``: verl's own order would load the teacher behind the student, whose
    devices are others."""

    config: DictConfig
    prune_opd: PruneOPDConfig
    home: Home
    teacher_vocab_sizes: list[int]
    resource_pool_manager: Any
    mapping: dict[Role, str]

    teacher_servers: MultiTeacherModelManager | None = None
    """Set when all have started."""
    _starting: Future[MultiTeacherModelManager] | None = None

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        pool, pools = self.home.pool(self.config), self.resource_pool_manager
        if not pool:
            return
        pools.resource_pool_spec[POOL] = pool.nodes(self.config.trainer.n_gpus_per_node)
        self.mapping[Role.TeacherModel] = POOL
        # verl creates the pools next, then the workers on them, and has no hook in between.
        pools.create_resource_pool = partial(self._start, pool, pools.create_resource_pool)

    def _start(self, teachers: TeacherPool, create_pools: Callable[[], None]) -> None:
        """Create verl's pools, and start the servers beside what follows."""
        create_pools()
        pools = self.resource_pool_manager.resource_pool_dict
        for pool in pools.values():
            # The trainer's devices are taken first, as without this, and the teacher's last.
            pool.get_placement_groups(device_name=get_device_name())
        per_node = self.config.trainer.n_gpus_per_node
        self._starting = teachers.start(self.config, pools[POOL], per_node)

    def on_init_end(self) -> None:
        """Wait for the teacher's servers.

        Raises:
            Exception: what they could not start for.
        """
        super().on_init_end()
        self.teacher_servers = self._starting and self._starting.result()

    def get_llm_client(self) -> LLMServerClient | TeachingClient | RoutingClient:
        """The trainer's client of the rollout servers, or one around it that also reaches the
        teachers'."""
        client = super().get_llm_client()
        teachers = self.home.clients(self.config, self.teacher_servers)
        return with_teachers(client, self.home, teachers, self.teacher_vocab_sizes)
