"""Does a pair of models fit each other and the data? One finding per question, each with what was
seen."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from recipe.prune_opd.checks.data import Data, check_file, read_prompts
from recipe.prune_opd.checks.files import refuse_pointer
from recipe.prune_opd.checks.models import (
    Model,
    different_tokens,
    render,
    scaled_context,
    without_row,
    wrong_ends,
)
from recipe.prune_opd.commands.estimate import costs
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding, Plan
from recipe.prune_opd.commands.pair.weights import passes

TEXTS = (
    "What is 17 times 23? Show your work.",
    "Let f(x) = x^2 - 4x + 7. Find the smallest value of f.",
    "A bag holds 3 red and 5 blue balls. What is the chance that two drawn balls are both red?",
)
"""Prompts where there is no data."""


def examine(student_path: str, teacher_path: str, plan: Plan) -> list[Finding]:
    """All findings about a pair.

    Args:
        student_path: folder or hub name.
        teacher_path: folder or hub name.
        plan: what the run is to be.

    Raises:
        ValueError: a path holds no model configuration with tokenizer, the data file does not
            exist, or there is no such device.
    """
    if plan.data is not None and not plan.data.is_file():
        raise ValueError(
            f"--data: {plan.data} does not exist, allowed: a parquet or JSON file in verl's format"
        )
    if plan.data is not None:
        refuse_pointer("--data", plan.data)
    check_device(plan.device)
    student = Model("STUDENT", student_path, plan.trust_remote_code, None, None)
    teacher = Model("TEACHER", teacher_path, plan.trust_remote_code, None, None)
    data, messages, kinds = prompts(student, plan)
    rendered = messages[:3] + [prompt for prompt in kinds if prompt not in messages[:3]]
    findings = [
        vocabulary(student, teacher, plan.topk),
        tokens(student, teacher),
        tokenization(student, teacher, messages),
        end_ids(student, teacher),
        padding(student),
        chat_template(student, teacher, rendered, plan.template_kwargs or {}),
        context(student, teacher, plan.max_prompt_length + plan.max_response_length),
        data,
        stored_dtype(student, teacher, plan.dtype),
        memory(student, teacher, plan),
    ]
    shown = [_short_prompt(student, prompt, plan.template_kwargs or {}) for prompt in messages[:3]]
    return findings + passes(student, teacher, shown, plan)


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: torch cannot put a tensor there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it is built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device: got {device}, allowed: cpu or a device of this machine ({reason})"
        ) from error


# ------------------------------------------------------------------------------------------- tokens


def vocabulary(student: Model, teacher: Model, k: int) -> Finding:
    """Rows of the embeddings against the tokenizers and k."""
    ids = {model.key: max(model.tokens, default=-1) + 1 for model in (student, teacher)}
    evidence = (
        f"tokens: {ids[student.key]:,} and {ids[teacher.key]:,}; rows of the embeddings:"
        f" {student.vocab_size:,} and {teacher.vocab_size:,}; k = {k}"
    )
    for model in (student, teacher):
        if without_row(model, model.vocab_size):
            return Finding(
                "vocabulary",
                ERROR,
                evidence,
                f"{model.key} has tokens without a row: resize its embedding and save it",
            )
    if without_row(student, teacher.vocab_size):
        return Finding(
            "vocabulary",
            ERROR,
            evidence,
            f"the student can write {ids[student.key] - teacher.vocab_size:,} tokens the teacher"
            " has no row for: take a teacher with the same tokenizer",
        )
    common = min(student.vocab_size, teacher.vocab_size)
    if k > common:
        return Finding("vocabulary", ERROR, evidence, f"lower prune_opd.topk to at most {common:,}")
    return Finding("vocabulary", OK, evidence)


def tokens(student: Model, teacher: Model) -> Finding:
    """Whether an id means the same token to both."""
    common = student.tokens.keys() & teacher.tokens.keys()
    different = different_tokens(student, teacher)
    alone = sorted(student.tokens.keys() ^ teacher.tokens.keys())
    if different:
        shown = ", ".join(
            f"{i}: {student.tokens[i]!r} and {teacher.tokens[i]!r}" for i in different[:3]
        )
        return Finding(
            "token ids",
            ERROR,
            f"{len(different):,} of {len(common):,} ids mean different tokens: {shown}",
            "take a teacher with the student's tokenizer; there is no cross-tokenizer mode",
        )
    if alone:
        shown = ", ".join(
            f"{i} ({student.tokens.get(i) or teacher.tokens[i]!r})" for i in alone[:3]
        )
        return Finding(
            "token ids",
            WARNING,
            f"{len(common):,} ids agree, {len(alone):,} are known to one model only: {shown}",
            "make sure the prompts do not hold these tokens, or take models with one tokenizer",
        )
    return Finding("token ids", OK, f"all {len(common):,} ids mean the same token")


def tokenization(student: Model, teacher: Model, messages: Sequence[Any]) -> Finding:
    """Whether both cut a text into the same tokens."""
    texts = [_content(prompt) for prompt in messages[:64]]
    cut = [
        [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        for model in (student, teacher)
    ]
    different = [text for text, ours, theirs in zip(texts, *cut, strict=True) if ours != theirs]
    if not different:
        return Finding("tokenization", OK, f"{len(texts)} texts give the same ids")
    return Finding(
        "tokenization",
        WARNING,
        f"{len(different)} of {len(texts)} texts give other ids, the first: {different[0][:60]!r}",
        "the teacher reads the student's ids, cut as it never saw them: compare the tokenizer.json"
        " of both",
    )


def end_ids(student: Model, teacher: Model) -> Finding:
    """Tokens that end a response: tokenizer, generation settings, and what the chat template puts
    there."""
    evidence = f"student: {student.names(student.ends)}; teacher: {teacher.names(teacher.ends)}"
    if not student.ends:
        return Finding(
            "end tokens",
            ERROR,
            evidence,
            "nothing ends the student's responses: set eos_token in its tokenizer and eos_token_id"
            " in generation_config.json",
        )
    outside = wrong_ends(student)
    if outside:
        return Finding(
            "end tokens",
            ERROR,
            evidence,
            f"ids {outside} are no tokens of the student: correct them",
        )
    if student.ends != teacher.ends:
        return Finding(
            "end tokens",
            WARNING,
            evidence,
            "the teacher rates the student's end as unlikely, so responses grow until the limit"
            " cuts them: give both the same eos_token_id in generation_config.json, or fine-tune"
            " the student on the teacher's format first",
        )
    turn = _turn_end(student)
    if turn is not None and turn not in student.ends:
        return Finding(
            "end tokens",
            WARNING,
            f"{evidence}; the chat template ends a turn with {student.names([turn])}",
            "add this id to eos_token_id in the student's generation_config.json, or generation"
            " runs past its answer",
        )
    return Finding("end tokens", OK, evidence)


def _turn_end(model: Model) -> int | None:
    """Special token that the chat template puts right after the assistant's words, if there is
    one."""
    mark = "MARK"
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": mark}]
    text = _render(model, turns, {}, prompt=False)
    after = (
        []
        if text is None
        else model.tokenizer.encode(text.rpartition(mark)[2], add_special_tokens=False)
    )
    return after[0] if after and after[0] in model.tokenizer.all_special_ids else None


def padding(student: Model) -> Finding:
    """The padding token, and that it is one of the model's."""
    pad = student.tokenizer.pad_token_id
    if pad is None:
        return Finding(
            "padding token",
            WARNING,
            "the student's tokenizer has none; verl pads with the end token",
            "set pad_token in the student's tokenizer to a token that ends nothing",
        )
    if pad >= student.vocab_size:
        return Finding(
            "padding token",
            ERROR,
            f"id {pad} has no row in the embedding",
            "set pad_token to a known one",
        )
    return Finding("padding token", OK, f"{student.names([pad])}")


# ------------------------------------------------------------------------------------------ prompts


def prompts(student: Model, plan: Plan) -> tuple[Finding, list[Any], list[Any]]:
    """The data's prompts, and how long they are.

    Returns:
        Finding; chat messages to look at, built-in ones where the data has none; and of the data's
        prompts one of every set of roles and shapes.
    """
    ours = [[{"role": "user", "content": text}] for text in TEXTS]
    if plan.data is None:
        return Finding("prompts", SKIPPED, "not checked: no --data"), ours, []
    try:
        data = check_file("--data", plan.data, plan.prompt_key)
    except ValueError as error:
        change = "bring the file into verl's format, or give --prompt-key"
        return Finding("prompts", ERROR, str(error), change), ours, []
    messages = read_prompts(plan.data, plan.prompt_key, plan.max_rows)
    return (
        _prompt_lengths(student, data, messages, plan),
        messages,
        [prompt.messages for prompt in data.prompts],
    )


def _prompt_lengths(student: Model, data: Data, messages: Sequence[Any], plan: Plan) -> Finding:
    lengths = _lengths(student, messages, plan.template_kwargs or {})
    long = sum(length > plan.max_prompt_length for length in lengths)
    first = "" if data.rows == len(messages) else f"the first {len(messages):,} of "
    evidence = (
        f"{first}{data.rows:,} prompts: {sum(lengths) / len(lengths):,.0f} tokens on average,"
        f" {max(lengths):,} at most; {long:,} above {plan.max_prompt_length:,}"
    )
    if long:
        change = (
            "verl cuts off their beginning: set data.filter_overlong_prompts=true or raise"
            " data.max_prompt_length"
        )
        return Finding("prompts", WARNING, evidence, change)
    return Finding("prompts", OK, evidence)


def _lengths(student: Model, messages: Sequence[Any], kwargs: dict[str, Any]) -> list[int]:
    bar = tqdm(messages, desc="prompts", unit=" prompts", disable=len(messages) < 1000)
    return [len(prompt_ids(student, prompt, kwargs)) for prompt in bar]


def prompt_ids(model: Model, prompt: Any, kwargs: dict[str, Any]) -> list[int]:
    """Ids of a prompt as verl makes them; of its words alone where there is no chat template."""
    text = _render(model, prompt, kwargs)
    return model.tokenizer.encode(
        _content(prompt) if text is None else text, add_special_tokens=False
    )


def _short_prompt(student: Model, prompt: Any, kwargs: dict[str, Any]) -> list[int]:
    """The end of a prompt, at least one token, all of them with a row in the embedding."""
    ids = [i for i in prompt_ids(student, prompt, kwargs) if i < student.vocab_size]
    return ids[-256:] or [0]


def _content(prompt: Any) -> str:
    return "\n".join(str(turn["content"]) for turn in prompt)


def _render(model: Model, messages: Any, kwargs: dict[str, Any], prompt: bool = True) -> str | None:
    """Text of a chat, or None where the model has no template or its template refuses the chat."""
    try:
        return render(model, messages, kwargs, prompt)
    except ValueError:
        return None


def chat_template(
    student: Model, teacher: Model, messages: Sequence[Any], kwargs: dict[str, Any]
) -> Finding:
    """Whether the student's template takes these prompts, and both put them into the same words."""
    name = "chat template"
    if not student.tokenizer.chat_template:
        return Finding(
            name,
            ERROR,
            "the student's tokenizer has none, so verl cannot build its prompts",
            "copy the teacher's chat_template.jinja into the student's folder",
        )
    if not teacher.tokenizer.chat_template:
        return Finding(
            name,
            WARNING,
            "the teacher's tokenizer has none; it reads the student's prompts as they are",
            "make sure the teacher was trained on the student's format",
        )
    ours, theirs = (
        [_render(model, prompt, kwargs) for prompt in messages] for model in (student, teacher)
    )
    if None in ours:
        refused = messages[ours.index(None)]
        return Finding(
            name,
            ERROR,
            f"the student's refuses {str(refused)[:80]!r}",
            "correct the prompts or the template",
        )
    for mine, other in zip(ours, theirs, strict=True):
        if mine != other:
            return Finding(
                name,
                WARNING,
                f"the same prompt becomes {_shorten(mine)} and {_shorten(other)}",
                "the teacher reads the student's form: give both one template, or a student of the"
                " teacher's family",
            )
    alike = (
        "identical"
        if student.tokenizer.chat_template == teacher.tokenizer.chat_template
        else "different as text"
    )
    return Finding(name, OK, f"{len(messages)} prompts come out alike; the templates are {alike}")


def _shorten(text: str | None, most: int = 90) -> str:
    if text is None:
        return "nothing (refused)"
    return repr(text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}")


# -------------------------------------------------------------------------------------------- sizes


def context(student: Model, teacher: Model, longest: int) -> Finding:
    """Whether prompt and response fit into what the models were made for."""
    mine, other = student.context, scaled_context(teacher)
    shown = " and ".join(f"{size:,}" if size else "unknown" for size in (mine, other))
    evidence = f"contexts of {shown} tokens; needed: {longest:,}"
    if mine is not None and mine < longest:
        return Finding(
            "context",
            ERROR,
            evidence,
            "the run does not start: lower the lengths, or take a student with more context",
        )
    if other is not None and other < longest:
        return Finding(
            "context",
            WARNING,
            evidence,
            f"what the teacher says beyond {other:,} tokens is extrapolated, and the gate's servers"
            " refuse it: lower prune_opd.budget.max, or take a teacher with more context",
        )
    return Finding("context", OK, evidence)


def stored_dtype(student: Model, teacher: Model, dtype: str) -> Finding:
    """What the weights are stored in, and what is computed in."""
    stored = [
        str(getattr(model.config, "dtype", None)).removeprefix("torch.")
        for model in (student, teacher)
    ]
    evidence = f"stored as {stored[0]} and {stored[1]}; computed in {dtype}"
    if dtype == "float16":
        return Finding(
            "dtype",
            WARNING,
            evidence,
            "float16 ends at 65,504 and overflows easily: compute in bfloat16",
        )
    return Finding("dtype", OK, evidence)


def memory(student: Model, teacher: Model, plan: Plan) -> Finding:
    """What a GPU must hold at least; the whole table: ``estimate``."""
    shapes = []
    for model in (student, teacher):
        try:
            shapes.append(costs.model_shape(model.config))
        except ValueError as error:
            return Finding("memory", ERROR, f"{model.key}: {error}", "take a causal language model")
    ours, theirs = shapes
    state = 4 * costs.weight_bytes(ours, "fp32", plan.gpus)
    longest = plan.max_prompt_length + plan.max_response_length
    logits = 2.0 * longest * ours.vocabulary
    gathered = 2.0 * (ours.root + 2 * ours.layer)
    least = state + logits + gathered
    size = costs.readable
    evidence = (
        f"{ours.parameters:,} and {theirs.parameters:,} parameters; the update takes at least"
        f" {size(least)} on each of {plan.gpus} GPUs (weights, gradients, Adam {size(state)};"
        f" gathered weights {size(gathered)}; logits of one longest sequence {size(logits)}), the"
        f" rollout's weights {size(2.0 * ours.parameters)}, the teacher in CPU memory"
        f" {size(4.0 * theirs.parameters)} in all"
    )
    if plan.gpu_memory is not None and least > plan.gpu_memory * costs.GB:
        change = (
            "more GPUs, a shorter prune_opd.budget.max, sequence parallelism, or offloading; see"
            " `estimate`"
        )
        return Finding("memory", ERROR, evidence, change)
    return Finding("memory", OK, evidence)
