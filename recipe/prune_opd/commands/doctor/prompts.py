"""Findings about the data's prompts: their form and lengths, and what both models make of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from recipe.prune_opd.checks.data import Data
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.doctor.arguments import Arguments
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.prompts import content, prompt_ids, read_chats, rendered

TEXTS = (
    "What is 17 times 23? Show your work.",
    "Let f(x) = x^2 - 4x + 7. Find the smallest value of f.",
    "A bag holds 3 red and 5 blue balls. What is the chance that two drawn balls are both red?",
)
"""Prompts where there is no data."""
COMPARED = 64
"""Prompts whose tokens are compared."""


def prompts(student: Model, args: Arguments) -> tuple[Finding, list[Any], list[Any]]:
    """Check the data's prompts, and how long they are.

    Returns:
        Finding; chat messages to look at, built-in ones where the data has none; and of the data's
        prompts one of every set of roles and shapes.
    """
    ours = [[{"role": "user", "content": text}] for text in TEXTS]
    if args.data is None:
        return Finding("prompts", SKIPPED, "not checked: no --data"), ours, []
    try:
        data, messages = read_chats(args, args.max_rows)
    except ValueError as error:
        change = "bring the file into verl's format, or give --prompt-key"
        return Finding("prompts", ERROR, str(error), change), ours, []
    kinds = [prompt.messages for prompt in data.prompts]
    return _prompt_lengths(student, data, messages, args), messages, kinds


def _prompt_lengths(
    student: Model, data: Data, messages: Sequence[Any], args: Arguments
) -> Finding:
    bar = tqdm(messages, desc="prompts", unit=" prompts", disable=len(messages) < 1000)
    lengths = [len(prompt_ids(student, prompt, args.template)) for prompt in bar]
    long = sum(length > args.max_prompt_length for length in lengths)
    first = "" if data.rows == len(messages) else f"the first {len(messages):,} of "
    evidence = (
        f"{first}{data.rows:,} prompts: {sum(lengths) / len(lengths):,.0f} tokens on average,"
        f" {max(lengths):,} at most; {long:,} above {args.max_prompt_length:,}"
    )
    if long:
        change = (
            "verl cuts off their beginning: set data.filter_overlong_prompts=true or raise"
            " data.max_prompt_length"
        )
        return Finding("prompts", WARNING, evidence, change)
    return Finding("prompts", OK, evidence)


def tokenization(pair: Pair, messages: Sequence[Any]) -> Finding:
    """Check that both cut a text into the same tokens."""
    texts = [content(prompt) for prompt in messages[:COMPARED]]
    ours, theirs = (
        [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        for model in (pair.student, pair.teacher)
    )
    different = [
        text for text, mine, other in zip(texts, ours, theirs, strict=True) if mine != other
    ]
    if not different:
        return Finding("tokenization", OK, f"{len(texts)} texts give the same ids")
    evidence = (
        f"{len(different)} of {len(texts)} texts give other ids, the first: {different[0][:60]!r}"
    )
    change = (
        "the teacher reads the student's ids, cut as it never saw them: compare the tokenizer.json"
        " of both"
    )
    return Finding("tokenization", WARNING, evidence, change)


def chat_template(pair: Pair, messages: Sequence[Any], template: Mapping[str, Any]) -> Finding:
    """Check that the student's template takes these prompts, and the teacher's agrees."""
    name = "chat template"
    if not pair.student.tokenizer.chat_template:
        evidence = "the student's tokenizer has none, so verl cannot build its prompts"
        change = "copy the teacher's chat_template.jinja into the student's folder"
        return Finding(name, ERROR, evidence, change)
    if not pair.teacher.tokenizer.chat_template:
        evidence = "the teacher's tokenizer has none; it reads the student's prompts as they are"
        change = "make sure the teacher was trained on the student's format"
        return Finding(name, WARNING, evidence, change)
    ours, theirs = (
        [rendered(model, prompt, template) for prompt in messages]
        for model in (pair.student, pair.teacher)
    )
    if None in ours:
        evidence = f"the student's refuses {str(messages[ours.index(None)])[:80]!r}"
        return Finding(name, ERROR, evidence, "correct the prompts or the template")
    for mine, other in zip(ours, theirs, strict=True):
        if mine != other:
            evidence = f"the same prompt becomes {_shorten(mine)} and {_shorten(other)}"
            change = (
                "the teacher reads the student's form: give both one template, or a student of the"
                " teacher's family"
            )
            return Finding(name, WARNING, evidence, change)
    same = pair.student.tokenizer.chat_template == pair.teacher.tokenizer.chat_template
    alike = "identical" if same else "different as text"
    return Finding(name, OK, f"{len(messages)} prompts come out alike; the templates are {alike}")


def _shorten(text: str | None, most: int = 90) -> str:
    if text is None:
        return "nothing (refused)"
    return repr(text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}")
