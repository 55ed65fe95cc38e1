"""Prompts of a file in verl's format, and the ids a model reads for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipe.prune_opd.checks.data import Data, check_file, read_prompts
from recipe.prune_opd.checks.models import Model, render
from recipe.prune_opd.checks.sources import read_rows
from recipe.prune_opd.commands.pair.arguments import PairArguments


def read_chats(args: PairArguments, most: int) -> tuple[Data, list[Any]]:
    """Read ``--data``.

    Args:
        args: of the command, with a file.
        most: prompts to read.

    Returns:
        What the file is, looked at as a whole; the chat messages of its first ``most`` prompts.

    Raises:
        ValueError: the file is not in verl's format; names the row.
    """
    assert args.data is not None
    data = check_file("--data", args.data, args.prompt_key)
    return data, read_prompts(args.data, args.prompt_key, most)


def read_chat_rows(args: PairArguments, most: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read ``--data`` with other columns, those that it has.

    Args:
        args: of the command, with a file.
        most: rows to read.
        columns: names beside that of the prompts.

    Raises:
        ValueError: see ``read_chats``.
    """
    assert args.data is not None
    check_file("--data", args.data, args.prompt_key)
    return read_rows(args.data, tuple(dict.fromkeys((args.prompt_key, *columns))), most)


def prompt_ids(model: Model, prompt: Any, template: Mapping[str, Any]) -> list[int]:
    """Ids of a prompt as verl makes them; of its words alone where there is no chat template.

    Args:
        model: whose tokens they are.
        prompt: chat messages.
        template: ``data.apply_chat_template_kwargs``.
    """
    text = rendered(model, prompt, template)
    text = content(prompt) if text is None else text
    return model.tokenizer.encode(text, add_special_tokens=False)


def content(prompt: Any) -> str:
    """Words of a chat, without a template."""
    return "\n".join(str(turn["content"]) for turn in prompt)


def rendered(
    model: Model, messages: Any, template: Mapping[str, Any], prompt: bool = True
) -> str | None:
    """Text of a chat, or None where the model has no template or its template refuses the chat.

    Args:
        model: whose template.
        messages: turns with role and content.
        template: ``data.apply_chat_template_kwargs``.
        prompt: whether the beginning of an answer follows.
    """
    try:
        return render(model, messages, template, prompt)
    except ValueError:
        return None
