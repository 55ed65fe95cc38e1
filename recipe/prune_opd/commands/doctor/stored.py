"""Findings from configurations: the padding token, the dtype, what a GPU must hold."""

from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.doctor.arguments import Arguments
from recipe.prune_opd.commands.estimate import costs, footprint
from recipe.prune_opd.commands.pair.findings import ERROR, OK, WARNING, Finding
from recipe.prune_opd.commands.pair.models import Pair


def padding(student: Model) -> Finding:
    """Check that the padding token is one of the model's."""
    name, pad = "padding token", student.tokenizer.pad_token_id
    if pad is None:
        evidence = "the student's tokenizer has none; verl pads with the end token"
        change = "set pad_token in the student's tokenizer to a token that ends nothing"
        return Finding(name, WARNING, evidence, change)
    if pad >= student.vocab_size:
        evidence = f"id {pad} has no row in the embedding"
        return Finding(name, ERROR, evidence, "set pad_token to a known one")
    return Finding(name, OK, student.names([pad]))


def stored_dtype(pair: Pair, dtype: str) -> Finding:
    """Name the dtypes that weights are stored in, and the one that is computed in."""
    ours, theirs = (
        str(getattr(model.config, "dtype", None)).removeprefix("torch.")
        for model in (pair.student, pair.teacher)
    )
    evidence = f"stored as {ours} and {theirs}; computed in {dtype}"
    if dtype == "float16":
        change = "float16 ends at 65,504 and overflows easily: compute in bfloat16"
        return Finding("dtype", WARNING, evidence, change)
    return Finding("dtype", OK, evidence)


def memory(pair: Pair, args: Arguments) -> Finding:
    """Memory that a GPU must have at least; the whole table: ``estimate``."""
    shapes = []
    for model in (pair.student, pair.teacher):
        try:
            shapes.append(costs.model_shape(model.config))
        except ValueError as error:
            return Finding("memory", ERROR, f"{model.key}: {error}", "take a causal language model")
    ours, theirs = shapes
    state = footprint.training_bytes(ours, "fp32", args.gpus)
    gathered = footprint.gathered_bytes(ours)
    logits = footprint.logits_bytes(ours, args.longest)
    least = state + logits + gathered
    size = costs.readable
    evidence = (
        f"{ours.parameters:,} and {theirs.parameters:,} parameters; the update takes at least"
        f" {size(least)} on each of {args.gpus} GPUs (weights, gradients, Adam {size(state)};"
        f" gathered weights {size(gathered)}; logits of one longest sequence {size(logits)}), the"
        f" rollout's weights {size(costs.weight_bytes(ours, 'bf16'))}, the teacher in CPU memory"
        f" {size(costs.weight_bytes(theirs, 'fp32'))} in all"
    )
    if args.gpu_memory is not None and least > args.gpu_memory * costs.GB:
        change = (
            "more GPUs, a shorter prune_opd.budget.max, sequence parallelism, or offloading; see"
            " `estimate`"
        )
        return Finding("memory", ERROR, evidence, change)
    return Finding("memory", OK, evidence)
