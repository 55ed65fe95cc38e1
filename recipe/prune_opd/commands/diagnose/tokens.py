"""Tokens as a reader sees them: their kinds, and responses token by token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.pair.sampling import Rollout

KINDS = ("words", "digits", "symbols", "whitespace", "special")
"""Kinds of tokens, see ``kind_of``."""
EXAMPLES, EXAMPLE_TOKENS = 4, 512
"""Responses for the page, and tokens of each."""


def kind_of(text: str, special: bool) -> str:
    """Kind of a token by what it writes: words have a letter, else digits a digit.

    Args:
        text: the token, decoded by itself.
        special: it is a special token, such as the end of a response.
    """
    if special:
        return "special"
    if not text.strip():
        return "whitespace"
    if any(map(str.isalpha, text)):
        return "words"
    return "digits" if any(map(str.isdigit, text)) else "symbols"


def kinds_of(model: Model, tokens: Tensor) -> Tensor:
    """Kind of each token, (B, T) int64 -> (B, T) int64, numbers in ``KINDS``."""
    special = {*model.tokenizer.all_special_ids, *model.ends}
    table = torch.zeros(int(tokens.max()) + 1, dtype=torch.int64)
    for token in tokens.unique().tolist():
        table[token] = KINDS.index(kind_of(model.tokenizer.decode([token]), token in special))
    return table[tokens]


def examples(model: Model, rollouts: Sequence[Rollout], events: Tensor) -> list[dict[str, Any]]:
    """Show some responses to a reader, token by token.

    Args:
        model: whose tokens they are.
        rollouts: the responses.
        events: (B, T) bool, drift events.

    Returns:
        For each: ``prompt``, ``tokens`` as pairs of text and whether it is an event, and how many
        are ``left`` out.
    """
    shown = []
    for rollout, flags in list(zip(rollouts, events.tolist(), strict=True))[:EXAMPLES]:
        ids = rollout.response_ids[:EXAMPLE_TOKENS]
        texts = [model.tokenizer.decode([token]) for token in ids]
        tokens = list(zip(texts, flags[: len(ids)], strict=True))
        left = len(rollout.response_ids) - len(ids)
        prompt = model.tokenizer.decode(rollout.prompt_ids)
        shown.append({"prompt": prompt, "tokens": tokens, "left": left})
    return shown
