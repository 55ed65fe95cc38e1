"""Bytes on a GPU during a training, by what holds them and when."""

from typing import Any

from omegaconf import DictConfig

from recipe.prune_opd.analysis import costs
from recipe.prune_opd.analysis.run_costs import Scenario, Values
from recipe.prune_opd.config import PruneOPDConfig
from verl_ext.topk import ROWS_AT_A_TIME

Row = tuple[str, str, float, str]
"""What, when, bytes on a GPU, and how they come about."""


def memory(
    config: DictConfig,
    prune_opd: PruneOPDConfig,
    student: costs.Shape,
    teacher: costs.Shape,
    values: Values,
    plain: Scenario,
) -> list[dict[str, Any]]:
    """Bytes per GPU, by what holds them and when.

    Args:
        config: verl's composed configuration.
        prune_opd: the recipe's part of it, typed.
        student: its sizes.
        teacher: its sizes.
        values: see ``collect``.
        plain: OPD at the full limit, whose payload is the largest.
    """
    table = [
        *_training(config.actor_rollout_ref, student, values),
        *_teaching(config.actor_rollout_ref.ref, teacher, values),
        *_rollout(config.actor_rollout_ref.rollout, student, values),
        *_payload(prune_opd, plain.scored_tokens / values["steps"]),
        _gate(prune_opd, teacher),
    ]
    peak = sum(float(size) for _, when, size, _ in table if when in ("always", "update"))
    table.append(("peak of the update", "sum", peak, "rows `always` and `update`"))
    return [{"what": what, "when": when, "bytes": float(size), "how": how} for what, when, size, how in table]


def _rows(dynamic: bool, most: int, micro_batch: int | None, values: Values) -> int:
    """Tokens that go through a model at once."""
    return most if dynamic else (values["longest prompt"] + values["limit"]) * (micro_batch or 1)


def _training(config: DictConfig, student: costs.Shape, values: Values) -> list[Row]:
    """The student's weights, update and scoring pass."""
    actor, gpus = config.actor, values["GPUs of the training"]
    dtype = actor.fsdp_config.model_dtype
    rows = _rows(actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu, actor.ppo_micro_batch_size_per_gpu, values)
    weights, logits = costs.weight_bytes(student, dtype, gpus), rows * student.vocabulary * 2
    entropy = 0 if actor.entropy_from_logits_with_chunking else 2 * logits
    # Inputs of all layers and the inside of one; or the inside of all, 34 bytes per row, layer and unit.
    kept_layers = student.layers + 17 if config.model.enable_gradient_checkpointing else 17 * student.layers
    return [
        ("student's weights, sharded", "always", weights, f"{dtype} / {gpus} GPUs"),
        ("gradients, sharded", "update", weights, f"as the weights, {dtype}"),
        ("Adam's two moments, sharded", "always", 2 * weights, f"twice the weights, {dtype}"),
        ("gathered weights", "update", 2 * (student.root + 2 * student.layer), "bf16: embedding, head, two layers"),
        ("activations", "update", 2 * rows * student.hidden * kept_layers, f"bf16, {rows} rows"),
        ("logits", "update", logits, "rows x V x 2 bytes"),
        ("gradient of the logits", "update", logits, "the same"),
        ("float32 pieces of logits", "update", 4.0 * ROWS_AT_A_TIME * student.vocabulary, "1,024 x V x 4 bytes"),
        ("student's logits with entropy", "scoring", logits + entropy, "rows x V x 2, x 4 more for entropy"),
    ]


def _teaching(ref: DictConfig, teacher: costs.Shape, values: Values) -> list[Row]:
    """The teacher in the worker group."""
    rows = _rows(
        ref.log_prob_use_dynamic_bsz,
        ref.log_prob_max_token_len_per_gpu,
        ref.log_prob_micro_batch_size_per_gpu,
        values,
    )
    gpus, dtype = values["GPUs of the training"], ref.fsdp_config.model_dtype
    home = "CPU" if ref.fsdp_config.forward_only or ref.fsdp_config.param_offload else "always"
    weights = costs.weight_bytes(teacher, dtype, gpus)
    return [
        ("teacher's logits", "scoring", rows * teacher.vocabulary * 2, f"{rows} rows x V x 2 bytes"),
        ("teacher's weights, sharded", home, weights, f"{dtype} / {gpus} GPUs"),
    ]


def _rollout(rollout: DictConfig, student: costs.Shape, values: Values) -> list[Row]:
    """Weights and cache of the rollout's engine."""
    replica = rollout.tensor_model_parallel_size
    at_once = values["prompts per step"] * values["responses per prompt"] * replica / values["GPUs of the training"]
    weights, token = costs.weight_bytes(student, "bf16", replica), student.cache_bytes / replica
    everything = at_once * (values["prompt_length"] + values["limit"]) * token
    room = values["gpu_memory"] * costs.GB * rollout.gpu_memory_utilization - weights
    return [
        ("rollout's weights", "rollout", weights, f"bf16 / {replica} GPUs"),
        ("cache of one token", "rollout", token, "2 x 2 x L x G x d bytes"),
        ("cache of all responses at the limit", "rollout", everything, "all in memory at once"),
        ("cache there is room for", "rollout", room, "share of memory less weights"),
    ]


def _payload(prune_opd: PruneOPDConfig, tokens: float) -> list[Row]:
    """Top-k blocks of a step."""
    scores, candidates = costs.payload_bytes(tokens, prune_opd.topk, prune_opd.strategy)
    return [
        ("top-k scores of a step, all GPUs", "CPU", scores, f"{tokens:,.0f} tokens, both models"),
        ("candidates of a step, all GPUs", "CPU", candidates, "ids, old log-probs, advantages"),
    ]


def _gate(prune_opd: PruneOPDConfig, teacher: costs.Shape) -> Row:
    """The teacher's copy on a server of its own."""
    parallel = prune_opd.teacher.server.tensor_model_parallel_size
    weights = costs.weight_bytes(teacher, "bf16", parallel)
    return ("teacher server of the gate", "gate", weights, f"bf16 / {parallel} GPUs of its own")
