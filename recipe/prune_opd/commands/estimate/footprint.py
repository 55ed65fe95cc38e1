"""Bytes on a GPU during a training, by what holds them and when."""

from typing import Any

import torch
from omegaconf import DictConfig

from recipe.prune_opd.commands.estimate import costs
from recipe.prune_opd.commands.estimate.run_costs import Scenario
from recipe.prune_opd.commands.estimate.values import Values
from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.reward import Sampled, Scores, Strategy, TopK
from verl_ext.logits import piece_bytes

Row = tuple[str, str, float, str]
"""Row of the table: what, when, bytes on a GPU, and how they come about."""

MOMENTS = ("always", "update", "loss", "layers")
"""Times when something is held: all the time, through the update, or while the loss or a layer is
differentiated."""


def memory(
    config: DictConfig,
    prune_opd: PruneOPDConfig,
    student: costs.Shape,
    teacher: costs.Shape,
    values: Values,
    plain: Scenario,
) -> list[dict[str, Any]]:
    """List bytes per GPU, by what holds them and when.

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
        *_teaching(
            config.actor_rollout_ref.ref, teacher, values, _copies(prune_opd.teacher.temperature)
        ),
        *_rollout(config.actor_rollout_ref.rollout, student, values),
        *_payload(prune_opd, plain.scored_tokens / values["steps"]),
        _gate(prune_opd, teacher),
    ]
    table.append(_peak(table))
    return [
        {"what": what, "when": when, "bytes": float(size), "how": how}
        for what, when, size, how in table
    ]


def _peak(table: list[Row]) -> Row:
    """Add up the fullest moment of the update: logits are gone before layers are differentiated."""
    held = {moment: sum(size for _, when, size, _ in table if when == moment) for moment in MOMENTS}
    peak = held["always"] + held["update"] + max(held["loss"], held["layers"])
    return ("peak of the update", "sum", peak, "always, update and the larger of loss and layers")


def _rows(dynamic: bool, most: int, micro_batch: int | None, values: Values) -> int:
    """Tokens that go through a model at once."""
    return most if dynamic else (values["longest prompt"] + values["limit"]) * (micro_batch or 1)


def training_bytes(student: costs.Shape, dtype: str, gpus: int) -> float:
    """Bytes on each GPU of what training keeps: weights, gradients, and Adam's two moments.

    Args:
        student: its sizes.
        dtype: ``model_dtype`` of all four, see ``costs.BYTES``.
        gpus: that they are sharded over.
    """
    return (1 + 1 + 2) * costs.weight_bytes(student, dtype, gpus)


def gathered_bytes(student: costs.Shape) -> int:
    """Bytes on each GPU of the weights that are whole at once: bf16; the root and two layers."""
    return 2 * (student.root + 2 * student.layer)


def logits_bytes(model: costs.Shape, rows: int, copies: int = 1) -> int:
    """Bytes of the logits of ``rows`` tokens, bf16; their gradient is written in their place."""
    return copies * rows * model.vocabulary * 2


def _training(config: DictConfig, student: costs.Shape, values: Values) -> list[Row]:
    """Rows of the student's weights, update and scoring pass."""
    actor, gpus = config.actor, values["GPUs of the training"]
    dtype = actor.fsdp_config.model_dtype
    rows = _rows(
        actor.use_dynamic_bsz,
        actor.ppo_max_token_len_per_gpu,
        actor.ppo_micro_batch_size_per_gpu,
        values,
    )
    weights = costs.weight_bytes(student, dtype, gpus)
    gathered = gathered_bytes(student)
    return [
        ("student's weights, sharded", "always", weights, f"{dtype} / {gpus} GPUs"),
        ("gradients, sharded", "update", weights, f"as the weights, {dtype}"),
        ("Adam's two moments, sharded", "always", 2 * weights, f"twice the weights, {dtype}"),
        ("gathered weights", "update", gathered, "bf16: embedding, head, two layers"),
        *_activations(student, rows, config.model.enable_gradient_checkpointing),
        *_logits(config, student, rows),
    ]


def _logits(config: DictConfig, student: costs.Shape, rows: int) -> list[Row]:
    """Rows of the student's logits, whose scoring pass holds the same."""
    copies = _copies(config.rollout.temperature)
    how = f"{copies} x rows x V x 2 bytes, the gradient in their place"
    pieces = 2.0 * piece_bytes(logits_bytes(student, rows), "cuda")
    return [
        ("logits", "loss", logits_bytes(student, rows, copies), how),
        ("float32 pieces of logits", "loss", pieces, "two of a 64th of the logits"),
    ]


def _activations(student: costs.Shape, rows: int, checkpointed: bool) -> list[Row]:
    """Rows of what layers keep for their gradient, in bf16.

    Inside a layer that is 34 bytes per row and unit of the hidden size.
    """
    unit = rows * student.hidden
    if not checkpointed:
        return [
            ("activations", "update", 34 * unit * student.layers, f"{rows} rows x 34 h L bytes")
        ]
    return [
        ("inputs of all layers", "update", 2 * unit * student.layers, f"bf16, {rows} rows x h L"),
        ("inside of one layer", "layers", 34 * unit, f"made again, {rows} rows x 34 h bytes"),
    ]


def _copies(temperature: float) -> int:
    """Count the logits a pass holds: verl makes a second tensor by a temperature other than 1."""
    return 1 if temperature == 1 else 2


def _teaching(ref: DictConfig, teacher: costs.Shape, values: Values, copies: int) -> list[Row]:
    """Rows of the teacher in the worker group."""
    rows = _rows(
        ref.log_prob_use_dynamic_bsz,
        ref.log_prob_max_token_len_per_gpu,
        ref.log_prob_micro_batch_size_per_gpu,
        values,
    )
    gpus, dtype = values["GPUs of the training"], ref.fsdp_config.model_dtype
    home = "CPU" if ref.fsdp_config.forward_only or ref.fsdp_config.param_offload else "always"
    weights, logits = (
        costs.weight_bytes(teacher, dtype, gpus),
        logits_bytes(teacher, rows, copies),
    )
    return [
        ("teacher's logits", "scoring", logits, f"{copies} x {rows} rows x V x 2 bytes"),
        ("teacher's weights, sharded", home, weights, f"{dtype} / {gpus} GPUs"),
    ]


def _rollout(rollout: DictConfig, student: costs.Shape, values: Values) -> list[Row]:
    """Rows of weights and cache of the rollout's engine."""
    replica = rollout.tensor_model_parallel_size
    at_once = (
        values["prompts per step"]
        * values["responses per prompt"]
        * replica
        / values["GPUs of the training"]
    )
    weights, token = costs.weight_bytes(student, "bf16", replica), student.cache_bytes / replica
    everything = at_once * (values["prompt_length"] + values["limit"]) * token
    room = values["gpu_memory"] * costs.GB * rollout.gpu_memory_utilization - weights
    return [
        ("rollout's weights", "rollout", weights, f"bf16 / {replica} GPUs"),
        ("cache of one token", "rollout", token, "2 x 2 x L x G x d bytes"),
        ("cache of all responses at the limit", "rollout", everything, "all in memory at once"),
        ("cache there is room for", "rollout", room, "share of memory less weights"),
    ]


def payload_bytes(tokens: float, k: int, strategy: Strategy) -> tuple[float, float]:
    """Bytes of the top-k blocks of a step: (scores of both models, candidates of the update).

    A block is K int32 ids or K float32 log-probs per response token.

    Args:
        tokens: of all responses.
        k: K.
        strategy: whose needs are scored, and whose candidates are trained on.
    """
    both_ways = 2 + 2  # ids and log-probs of each model's own top k
    at_ids = len({"teacher_on_student", "student_on_teacher"} & {*strategy.needs})
    scores, candidates = k * (both_ways + at_ids), 3 * _columns(strategy, k)
    return tokens * 4 * scores, tokens * 4 * candidates


def _columns(strategy: Strategy, k: int) -> int:
    """Count the candidates that a strategy has at a position, by asking it about one."""
    own = TopK(torch.arange(k).view(1, 1, k), torch.zeros(1, 1, k))
    sampled = Sampled(torch.zeros(1, 1), torch.zeros(1, 1))
    token = torch.zeros(1, 1, dtype=torch.long)
    scores = Scores(token, own, own, own.log_probs, own.log_probs, sampled)
    return strategy.candidates(scores).ids.shape[-1]


def _payload(prune_opd: PruneOPDConfig, tokens: float) -> list[Row]:
    """Rows of the top-k blocks of a step."""
    scores, candidates = payload_bytes(tokens, prune_opd.topk, prune_opd.rules.strategy)
    return [
        ("top-k scores of a step, all GPUs", "CPU", scores, f"{tokens:,.0f} tokens, both models"),
        ("candidates of a step, all GPUs", "CPU", candidates, "ids, old log-probs, advantages"),
    ]


def _gate(prune_opd: PruneOPDConfig, teacher: costs.Shape) -> Row:
    """Row of the teacher's copy on a server of its own."""
    parallel = prune_opd.teacher.server.tensor_model_parallel_size
    weights = costs.weight_bytes(teacher, "bf16", parallel)
    return ("teacher server of the gate", "gate", weights, f"bf16 / {parallel} GPUs of its own")
