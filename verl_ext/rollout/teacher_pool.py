"""Pool of teacher servers, verl's, on a copy of the configuration: ``distillation`` stays off.

With ``distillation.enabled`` verl would replace the actor's loss and score every finished response
once more.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.experimental.teacher_loop import MultiTeacherModelManager
from verl.single_controller.ray.base import RayResourcePool

from verl_ext.rollout import register
from verl_ext.rollout.client import ScoringClient

ONLY = "teacher_model"
"""Name that verl's configuration has for the only teacher, and drops where there are several
(``DistillationConfig._resolve_teacher_models``)."""


@dataclass(frozen=True)
class TeacherPool:
    """Teachers on ``replicas`` servers of ``tensor_model_parallel_size`` devices each.

    ``paths`` has the model of each by its name. ``engine`` is one of ``verl_ext.rollout.ENGINES``.
    SGLang has no block size: its cache holds tokens.
    """

    paths: Mapping[str, str]
    engine: str
    topk: int
    max_prompt_length: int
    max_response_length: int
    replicas: int = 1
    tensor_model_parallel_size: int = 1
    dtype: str = "bfloat16"
    gpu_memory_utilization: float = 0.85
    block_size: int = 16
    max_num_batched_tokens: int = 2048
    enforce_eager: bool = True
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    wide: int = 0
    """W, where the servers are asked at chosen ids, see ``rows.At``; else 0."""

    def nodes(self, gpus_per_node: int) -> list[int]:
        """Devices of the pool, node by node: a part of one, or whole ones."""
        devices = len(self.paths) * self.replicas * self.tensor_model_parallel_size
        if devices <= gpus_per_node:
            return [devices]
        return [gpus_per_node] * (devices // gpus_per_node)

    def start(
        self, config: DictConfig, resource_pool: RayResourcePool, gpus_per_node: int
    ) -> Future[MultiTeacherModelManager]:
        """Start the servers, beside what the caller does meanwhile.

        The rollout's servers of the same engine, which verl starts later, are then of our class,
        too; nobody following them, they generate as verl's.

        Args:
            config: verl's configuration.
            resource_pool: of the shape ``nodes`` says.
            gpus_per_node: devices of a node.

        Returns:
            Their manager, once all of them serve, or what one could not start for.
        """
        register(self.engine)
        nodes = self.nodes(gpus_per_node)
        copied = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        settings = {
            "enabled": True,
            "n_gpus_per_node": nodes[0],
            "nnodes": len(nodes),
            # The loss itself is not used: it is verl's way to have servers give the top-k.
            "distillation_loss": {"loss_mode": "forward_kl_topk", "topk": self.topk},
            "teacher_models": self._models(copied.distillation.teacher_models[ONLY]),
        }
        copied.distillation = OmegaConf.merge(copied.distillation, settings)
        with_pool = {"config": copied, "resource_pool": resource_pool}
        starter = ThreadPoolExecutor(1, "teacher_servers")
        started = starter.submit(MultiTeacherModelManager, **with_pool)
        starter.shutdown(wait=False)
        return started

    def _models(self, defaults: DictConfig) -> dict[str, Any]:
        """verl's node for each teacher.

        Args:
            defaults: verl's, which only the node of this name has: those of its class are others,
                random weights (``load_format``) among them.
        """
        alone, found = len(self.paths) == 1, dict[str, Any]()
        for name, path in self.paths.items():
            own = {
                "key": name,
                "model_path": path,
                "num_replicas": self.replicas,
                "inference": self._inference(),
            }
            found[ONLY if alone else name] = OmegaConf.merge(defaults, own)
        return found

    def _inference(self) -> dict[str, Any]:
        return {
            "name": self.engine,
            "dtype": self.dtype,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "tensor_model_parallel_size": self.tensor_model_parallel_size,
            "prompt_length": self.max_prompt_length,
            "response_length": self.max_response_length,
            "max_model_len": self.max_prompt_length + self.max_response_length + 1,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            # vLLM takes no more sequences than tokens.
            "max_num_seqs": min(1024, self.max_num_batched_tokens),
            "enforce_eager": self.enforce_eager,
            "enable_prefix_caching": True,
            "enable_sleep_mode": False,  # the devices are its own
            "free_cache_engine": False,
            "logprobs_mode": "raw_logprobs",
            "temperature": 1.0,
            "engine_kwargs": {self.engine: self._arguments() | self.engine_kwargs},
        }

    def _arguments(self) -> dict[str, Any]:
        """Engine arguments that verl's keys do not reach."""
        if self.engine == "vllm":
            return {"block_size": self.block_size, "max_logprobs": max(self.topk, self.wide)}
        return {"chunked_prefill_size": self.max_num_batched_tokens}

    @classmethod
    def client(cls, config: DictConfig, manager: MultiTeacherModelManager) -> ScoringClient:
        """Make a client of the servers that ``start`` has started for the only teacher."""
        (one,) = cls.clients(config, manager)
        return one

    @staticmethod
    def clients(config: DictConfig, manager: MultiTeacherModelManager) -> list[ScoringClient]:
        """Make a client of each teacher's servers, in the order of ``paths``, which verl keeps."""
        return [
            ScoringClient(
                config,
                manager.load_balancer_handle[name],
                dict(zip(addresses, manager.server_handles[name], strict=True)),
            )
            for name, addresses in manager.server_addresses.items()
        ]
