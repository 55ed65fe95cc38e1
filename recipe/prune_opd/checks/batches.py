"""Batches cut into mini-batches, ranks and micro-batches; verl asserts it after a whole rollout."""

import logging
import math
from dataclasses import dataclass

from omegaconf import DictConfig

from recipe.prune_opd.checks.engines import check_shared, engine_of
from recipe.prune_opd.checks.numbers import ACTOR, ROLLOUT

logger = logging.getLogger(__name__)

WORLD = "trainer.nnodes x trainer.n_gpus_per_node"
MINI = f"{ACTOR}.ppo_mini_batch_size"


@dataclass(frozen=True)
class Batches:
    """Sizes of one step, in responses."""

    mini: int
    """Responses of an update, ``ppo_mini_batch_size * rollout.n``."""
    given: int
    """Responses that are generated."""
    world: int
    """Ranks of the trainer."""

    @classmethod
    def of(cls, config: DictConfig) -> "Batches":
        """Take the sizes that a configuration gives."""
        actor, samples = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
        return cls(
            mini=actor.ppo_mini_batch_size * samples,
            given=config.data.train_batch_size * samples,
            world=config.trainer.nnodes * config.trainer.n_gpus_per_node,
        )

    @property
    def filled(self) -> int:
        """Responses that pass through the models: verl adds empty ones up to whole mini-batches."""
        return -(-self.given // self.mini) * self.mini


def check_batches(config: DictConfig, longest: int, teacher_passes: bool) -> None:
    """Check what must divide what, and that every pass holds the longest sequence.

    Args:
        config: verl's composed configuration.
        longest: tokens of the longest training sequence.
        teacher_passes: the teacher is verl's reference model.

    Raises:
        ValueError: names the key, what it holds and what is allowed.
    """
    batches, models = Batches.of(config), ["actor", "ref"] if teacher_passes else ["actor"]
    _check_generations(config)
    if teacher_passes:
        check_shared(config)
    _check_ranks(config, batches, models)
    _check_shares(config, batches, models)
    _check_micro_batches(config, batches, longest, models)


def warn_of_empty_responses(config: DictConfig) -> None:
    """Say how many empty responses verl adds to each batch, which cost time and train nothing."""
    batches = Batches.of(config)
    if batches.filled > batches.given:
        logger.warning(
            "data.train_batch_size=%d is no multiple of %s=%d: verl fills each batch of %d"
            " responses up with %d empty ones, which pass through the models as well",
            config.data.train_batch_size,
            MINI,
            config.actor_rollout_ref.actor.ppo_mini_batch_size,
            batches.given,
            batches.filled - batches.given,
        )


def _check_generations(config: DictConfig) -> None:
    """Check what the rollout takes at once."""
    fetched, prompts = config.data.gen_batch_size, config.data.train_batch_size
    if fetched is not None and prompts % fetched:
        raise ValueError(
            f"data.gen_batch_size: got {fetched}, allowed: null or a divisor of"
            f" data.train_batch_size, {prompts}"
        )
    rollout = config.actor_rollout_ref.rollout
    if rollout.name == "vllm" and rollout.max_num_batched_tokens < rollout.max_num_seqs:
        raise ValueError(
            f"{ROLLOUT}.max_num_batched_tokens: got {rollout.max_num_batched_tokens}, allowed with"
            f" vLLM: at least {ROLLOUT}.max_num_seqs, {rollout.max_num_seqs}"
        )


def _check_ranks(config: DictConfig, batches: Batches, models: list[str]) -> None:
    """Check that ranks which work together go into all ranks without remainder."""
    rollout = config.actor_rollout_ref.rollout
    servers = rollout.tensor_model_parallel_size * rollout.data_parallel_size
    together = {}
    if config.actor_rollout_ref.hybrid_engine:  # else none are on these ranks
        together[f"{ROLLOUT}.tensor_model_parallel_size x {ROLLOUT}.data_parallel_size"] = servers
    engine = engine_of(config)
    for name in models:
        model, key = config.actor_rollout_ref[name], f"actor_rollout_ref.{name}"
        together[f"{key}.{engine.model_parallel}"] = engine.model_parallel_size(model)
        if 0 <= (shards := engine.shards_of(model)) < batches.world:
            together[f"{key}.{engine.shards}"] = shards
    for key, size in together.items():
        if size == 0 or batches.world % size:
            raise ValueError(f"{key}: got {size}, allowed: a divisor of {WORLD}, {batches.world}")


def _check_shares(config: DictConfig, batches: Batches, models: list[str]) -> None:
    """Check that data-parallel ranks get equal shares of a batch and of its mini-batches."""
    samples, engine = config.actor_rollout_ref.rollout.n, engine_of(config)
    for name in models:
        ranks = batches.world // engine.model_parallel_size(config.actor_rollout_ref[name])
        rows = batches.mini if name == "actor" else batches.filled
        if rows % ranks:
            raise ValueError(
                f"{MINI}: got {batches.mini // samples}, allowed: a multiple of"
                f" {ranks // math.gcd(ranks, samples)}, so that with {ROLLOUT}.n={samples} the"
                f" {ranks} data-parallel ranks of actor_rollout_ref.{name} ({WORLD} /"
                f" {engine.model_parallel}) take equal shares"
            )


@dataclass(frozen=True)
class Pass:
    """Pass over a batch: where its keys are, and whose ranks share it."""

    node: str
    model: str
    prefix: str
    switch: str

    def key(self, name: str) -> str:
        """Full name of one of its keys."""
        return f"actor_rollout_ref.{self.node}.{name}"

    def check_tokens(self, config: DictConfig, longest: int) -> None:
        """Check that micro-batches by tokens hold the longest sequence, before a run gets there."""
        name = f"{self.prefix}_max_token_len_per_gpu"
        tokens = config.actor_rollout_ref[self.node][name]
        model = config.actor_rollout_ref[self.model]
        ranks = engine_of(config).sequence_parallel_size(model)
        if tokens is None or tokens * ranks < longest:
            raise ValueError(
                f"{self.key(name)}: got {tokens}, allowed: at least {-(-longest // ranks)}, that is"
                f" data.max_prompt_length + prune_opd.budget.max = {longest} over"
                f" {ranks} sequence-parallel ranks"
            )

    def check_responses(self, config: DictConfig, responses: int) -> None:
        """Check that micro-batches by responses go into the share of a rank without remainder."""
        name = f"{self.prefix}_micro_batch_size_per_gpu"
        size = config.actor_rollout_ref[self.node][name]
        if size is None or responses % size:
            raise ValueError(
                f"{self.key(name)}: got {size}, allowed with {self.key(self.switch)}=false: a"
                f" divisor of {responses}, the responses of a rank"
            )


PASSES = (
    Pass("actor", "actor", "ppo", "use_dynamic_bsz"),
    Pass("rollout", "actor", "log_prob", "log_prob_use_dynamic_bsz"),
    Pass("ref", "ref", "log_prob", "log_prob_use_dynamic_bsz"),
)


def _check_micro_batches(
    config: DictConfig, batches: Batches, longest: int, models: list[str]
) -> None:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if rollout.log_prob_use_dynamic_bsz != actor.use_dynamic_bsz:
        raise ValueError(
            f"{ROLLOUT}.log_prob_use_dynamic_bsz: got {rollout.log_prob_use_dynamic_bsz}, allowed: "
            f"{actor.use_dynamic_bsz}, as {ACTOR}.use_dynamic_bsz"
        )
    for one in PASSES:
        if one.model not in models:
            continue
        if config.actor_rollout_ref[one.node][one.switch]:
            one.check_tokens(config, longest)
        else:
            model = config.actor_rollout_ref[one.model]
            ranks = batches.world // engine_of(config).model_parallel_size(model)
            rows = batches.mini if one.node == "actor" else batches.filled
            one.check_responses(config, rows // ranks)
