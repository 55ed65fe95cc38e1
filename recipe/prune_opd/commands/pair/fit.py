"""Fit of two models by their files: one vocabulary, one end, room for the responses.

The rules are those of ``checks.models``, which the start of a training goes by. Here they become
findings.
"""

from recipe.prune_opd.checks.models import (
    Model,
    different_tokens,
    scaled_context,
    without_row,
    wrong_ends,
)
from recipe.prune_opd.commands.pair.findings import ERROR, OK, WARNING, Finding
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.prompts import rendered

SMALL_VOCABULARY = 64
"""Tokens for each of the k candidates up to which the overlap of two top k may be chance: both
models give most of so many next to no probability, and rank them by chance."""


def fit(pair: Pair, k: int, longest: int) -> list[Finding]:
    """Find whether two models can be a pair at all.

    Args:
        pair: the models.
        k: ``prune_opd.topk``.
        longest: tokens of the longest prompt and response together.
    """
    return [vocabulary(pair, k), token_ids(pair), end_tokens(pair), context(pair, longest)]


def vocabulary(pair: Pair, k: int) -> Finding:
    """Compare the rows of the embeddings with the tokenizers and k."""
    student, teacher = pair.student, pair.teacher
    ids = {model.key: max(model.tokens, default=-1) + 1 for model in (student, teacher)}
    evidence = (
        f"tokens: {ids[student.key]:,} and {ids[teacher.key]:,}; rows of the embeddings:"
        f" {student.vocab_size:,} and {teacher.vocab_size:,}; k = {k}"
    )
    if k < pair.vocabulary <= SMALL_VOCABULARY * k:
        evidence += (
            f", of which rankings that have nothing to do with each other share"
            f" {k / pair.vocabulary:.2f}: whether overlap tells anything here, diagnose says"
        )
    change = ""
    for model in (student, teacher):
        if not change and without_row(model, model.vocab_size):
            change = f"{model.key} has tokens without a row: resize its embedding and save it"
    if not change and without_row(student, teacher.vocab_size):
        change = (
            f"the student can write {ids[student.key] - teacher.vocab_size:,} tokens the teacher"
            " has no row for: take a teacher with the same tokenizer"
        )
    if not change and k > pair.vocabulary:
        change = f"lower prune_opd.topk to at most {pair.vocabulary:,}"
    return Finding("vocabulary", ERROR if change else OK, evidence, change)


def token_ids(pair: Pair) -> Finding:
    """Check that an id means the same token to both."""
    student, teacher = pair.student.tokens, pair.teacher.tokens
    name, common = "token ids", len(student.keys() & teacher.keys())
    different = different_tokens(pair.student, pair.teacher)
    if different:
        shown = ", ".join(f"{i}: {student[i]!r} and {teacher[i]!r}" for i in different[:3])
        evidence = f"{len(different):,} of {common:,} ids mean different tokens: {shown}"
        change = "take a teacher with the student's tokenizer; there is no cross-tokenizer mode"
        return Finding(name, ERROR, evidence, change)
    alone = sorted(student.keys() ^ teacher.keys())
    if alone:
        shown = ", ".join(f"{i} ({student.get(i) or teacher[i]!r})" for i in alone[:3])
        evidence = f"{common:,} ids agree, {len(alone):,} are known to one model only: {shown}"
        change = "make sure the prompts do not hold these tokens, or take models with one tokenizer"
        return Finding(name, WARNING, evidence, change)
    return Finding(name, OK, f"all {common:,} ids mean the same token")


def end_tokens(pair: Pair) -> Finding:
    """Compare the tokens that end a response, and what the chat template puts at its end."""
    student, teacher, name = pair.student, pair.teacher, "end tokens"
    evidence = f"student: {student.names(student.ends)}; teacher: {teacher.names(teacher.ends)}"
    if not student.ends:
        change = (
            "nothing ends the student's responses: set eos_token in its tokenizer and eos_token_id"
            " in generation_config.json"
        )
        return Finding(name, ERROR, evidence, change)
    outside = wrong_ends(student)
    if outside:
        change = f"ids {outside} are no tokens of the student: correct them"
        return Finding(name, ERROR, evidence, change)
    if student.ends != teacher.ends:
        change = (
            "the teacher rates the student's end as unlikely, so responses grow until the limit"
            " cuts them: give both the same eos_token_id in generation_config.json, or fine-tune"
            " the student on the teacher's format first"
        )
        return Finding(name, WARNING, evidence, change)
    turn = _turn_end(student)
    if turn is not None and turn not in student.ends:
        evidence += f"; the chat template ends a turn with {student.names([turn])}"
        change = (
            "add this id to eos_token_id in the student's generation_config.json, or generation"
            " runs past its answer"
        )
        return Finding(name, WARNING, evidence, change)
    return Finding(name, OK, evidence)


def _turn_end(model: Model) -> int | None:
    """Special token that the chat template puts right after the assistant's words, or None."""
    mark = "MARK"
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": mark}]
    text = rendered(model, turns, {}, prompt=False)
    if text is None:
        return None
    after = model.tokenizer.encode(text.rpartition(mark)[2], add_special_tokens=False)
    return after[0] if after and after[0] in model.tokenizer.all_special_ids else None


def context(pair: Pair, longest: int) -> Finding:
    """Check that prompt and response fit into what the models were made for."""
    mine, other = pair.student.context, scaled_context(pair.teacher)
    shown = " and ".join(f"{size:,}" if size else "unknown" for size in (mine, other))
    evidence = f"contexts of {shown} tokens; needed: {longest:,}"
    if mine is not None and mine < longest:
        change = "the run does not start: lower the lengths, or take a student with more context"
        return Finding("context", ERROR, evidence, change)
    if other is not None and other < longest:
        change = (
            f"what the teacher says beyond {other:,} tokens is extrapolated, and the gate's servers"
            " refuse it: lower prune_opd.budget.max, or take a teacher with more context"
        )
        return Finding("context", WARNING, evidence, change)
    return Finding("context", OK, evidence)
