"""The teacher on inference servers that this run starts, and rollout servers whose responses can be
followed."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from recipe.prune_opd.checks.files import local_path
from recipe.prune_opd.checks.models import Model, check_server_context, check_split
from recipe.prune_opd.checks.settings import check_engine, check_followed
from recipe.prune_opd.config import ENGINES, PruneOPDConfig, require
from recipe.prune_opd.teacher.home import LACKS, Home

if TYPE_CHECKING:  # takes seconds
    from verl_ext.rollout.teacher_pool import TeacherPool

VLLM_MAX_LOGPROBS = 20
"""vLLM's default of ``max_logprobs``."""


class Served(Home):
    """A teacher on servers: they know their own top k and the sampled token, and score a response
    while others are still being generated."""

    delivers: tuple[str, ...] = ("sampled",)

    def check(self, config: DictConfig) -> None:
        """See ``Home``."""
        super().check(config)
        teacher = self.prune_opd.teacher
        home = f"teacher.home={teacher.home}"
        allowed = f"1 with {home}: servers report probabilities at temperature 1"
        require(teacher.temperature == 1, "teacher.temperature", teacher.temperature, allowed)
        if config.trainer.del_local_ckpt_after_load:
            raise ValueError(
                f"trainer.del_local_ckpt_after_load: got True, allowed with prune_opd.{home}:"
                " False, because a run that loses its teacher goes back to the checkpoint it came"
                " from"
            )


class Servers(Served):
    """Servers with devices of their own beside the trainer's. They look for the student's
    candidates among their ``wide_topk`` most likely tokens."""

    several = True
    lacks = LACKS | {
        "teacher_on_student": f"{LACKS['teacher_on_student']} without teacher.server.wide_topk"
    }

    def __init__(self, prune_opd: PruneOPDConfig):
        super().__init__(prune_opd)
        if prune_opd.teacher.server.wide_topk:
            self.delivers = ("teacher_on_student", *self.delivers)

    def check(self, config: DictConfig) -> None:
        """See ``Home``."""
        super().check(config)
        given = self.prune_opd
        check_pool(config, given, "teacher.home=server")
        wide, least = given.teacher.server.wide_topk, given.topk
        allowed = f"0, or at least topk, {least}"
        require(not wide or wide >= least, "teacher.server.wide_topk", wide, allowed)
        if self.asks_on_student and not given.gate.enable:  # which is checked for the same
            check_followed(config, given, "teacher.server.wide_topk")

    def check_models(self, config: DictConfig, student: Model, teacher: Model) -> None:
        """See ``Home``."""
        check_server_models(config, self.prune_opd, teacher)
        wide, most = self.prune_opd.teacher.server.wide_topk, teacher.vocab_size
        allowed = f"at most the teacher's vocabulary, {most}"
        require(wide <= most, "teacher.server.wide_topk", wide, allowed)

    def pool(self, config: DictConfig) -> "TeacherPool":
        """See ``Home``."""
        return teacher_pool(config, self.prune_opd)

    def __str__(self) -> str:
        wide = self.prune_opd.teacher.server.wide_topk
        more = f", the student's candidates among its {wide} likeliest tokens"
        return super().__str__() + (more if self.asks_on_student else "")

    def client(self, config: DictConfig, servers: Any) -> Any:
        """See ``Home``."""
        return self.pool(config).client(config, servers)

    def clients(self, config: DictConfig, servers: Any) -> list[Any]:
        """See ``Home``."""
        return self.pool(config).clients(config, servers)


def follow_rollout(config: DictConfig, topk: int) -> None:
    """Have the rollout servers report the unprocessed top-k of what they generate."""
    from verl_ext.rollout import register
    from verl_ext.rollout.rows import RAW

    rollout = config.actor_rollout_ref.rollout
    register(rollout.name)
    with open_dict(config):
        rollout.logprobs_mode = RAW
        engine = dict(rollout.engine_kwargs.get("vllm") or {})
        engine["max_logprobs"] = engine.get("max_logprobs") or max(topk, VLLM_MAX_LOGPROBS)
        rollout.engine_kwargs.vllm = engine


def teacher_pool(config: DictConfig, prune_opd: PruneOPDConfig) -> "TeacherPool":
    """The teachers' servers, as long as a training response may become."""
    from verl_ext.rollout.teacher_pool import TeacherPool

    server, rollout = prune_opd.teacher.server, config.actor_rollout_ref.rollout
    longest = prune_opd.budget.longest
    return TeacherPool(
        paths={name: local_path(path) for name, path in prune_opd.teacher.paths.items()},
        engine=server.engine,
        topk=prune_opd.topk,
        max_prompt_length=rollout.prompt_length,
        max_response_length=longest,
        replicas=server.replicas,
        tensor_model_parallel_size=server.tensor_model_parallel_size,
        dtype=server.dtype,
        gpu_memory_utilization=server.gpu_memory_utilization,
        block_size=server.block_size,
        max_num_batched_tokens=server.max_num_batched_tokens,
        enforce_eager=server.enforce_eager,
        engine_kwargs=server.engine_kwargs,
        wide=server.wide_topk,
    )


def check_pool(config: DictConfig, prune_opd: PruneOPDConfig, needed_by: str) -> None:
    """Check that the teacher's servers fit the nodes, and report what is asked of them.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it.
        needed_by: the setting for which they are started, for messages.

    Raises:
        ValueError: names the key, what was found and what is allowed.
    """
    teacher = prune_opd.teacher
    engine = teacher.server.engine
    require(engine in ENGINES, "teacher.server.engine", engine, ", ".join(ENGINES))
    server, per_node = teacher.server, config.trainer.n_gpus_per_node
    require(
        not teacher.trust_remote_code,
        "teacher.trust_remote_code",
        teacher.trust_remote_code,
        "false with gate.enable or teacher.home=server: verl starts teacher servers without it",
    )
    teachers = len(teacher.paths)
    devices = teachers * server.replicas * server.tensor_model_parallel_size
    each = f" for each of {teachers} teachers" if teachers > 1 else ""
    if devices > per_node and (devices % per_node or per_node % server.tensor_model_parallel_size):
        raise ValueError(
            f"prune_opd.teacher.server: got {server.replicas} replicas of"
            f" {server.tensor_model_parallel_size} devices{each}, allowed: at most"
            f" trainer.n_gpus_per_node, {per_node}, together, or whole nodes of whole replicas"
        )
    key = "prune_opd.teacher.server.engine_kwargs"
    check_engine(key, server.engine_kwargs, prune_opd.topk, needed_by)
    wide = server.wide_topk
    if wide:
        check_engine(key, server.engine_kwargs, wide, needed_by, "teacher.server.wide_topk")


def check_server_models(config: DictConfig, prune_opd: PruneOPDConfig, teacher: Model) -> None:
    """Check that the teacher's context holds the longest training sequence, and that its heads go
    on the devices of a server.

    Raises:
        ValueError: names the model, its context or heads, and what is needed.
    """
    server = prune_opd.teacher.server
    key = "prune_opd.teacher.server.tensor_model_parallel_size"
    check_split(key, server.tensor_model_parallel_size, teacher)
    longest = config.data.max_prompt_length + prune_opd.budget.longest
    check_server_context(teacher, longest, server.engine)
