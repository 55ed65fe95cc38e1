"""Questions that the student answers, what is known of their answers, and solutions of others."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.diagnose.arguments import Arguments
from recipe.prune_opd.commands.pair.prompts import prompt_ids, read_chat_rows

MOST_ROWS = 20000
"""Rows of a file that are chosen from."""


@dataclass(frozen=True)
class Question:
    """Prompt, and how an answer to it is graded."""

    ids: list[int]
    """Ids of the prompt."""
    source: str | None = None
    """``data_source`` of its row."""
    truth: Any = None
    """``reward_model.ground_truth`` of its row; None: not known."""
    extra: dict[str, Any] | None = None
    """``extra_info`` of its row."""


@dataclass(frozen=True)
class Solution:
    """Right solution of a question that the student is not asked."""

    prompt_ids: list[int]
    solution_ids: list[int]
    """With the end token."""


def choose(student: Model, args: Arguments) -> tuple[list[Question], list[Solution]]:
    """Choose prompts of the data by the seed, and pass over those that are too long.

    Args:
        student: whose tokens they become.
        args: file, number, seed, longest prompt, column of the solutions.

    Returns:
        Questions; solutions of as many other rows, none where no column is named.

    Raises:
        ValueError: the file is not in verl's format, all its prompts are too long, or it lacks what
            the solutions need.
    """
    column = args.solutions
    extra = (column.partition(".")[0],) if column else ()
    rows = read_chat_rows(args, MOST_ROWS, ("data_source", "reward_model", "extra_info", *extra))
    random.Random(args.seed).shuffle(rows)
    asked: list[Question] = []
    while rows and len(asked) < args.prompts:
        row = rows.pop(0)
        ids = prompt_ids(student, row[args.prompt_key], args.template)
        if 0 < len(ids) <= args.max_prompt_length:
            asked.append(_question(ids, row))
    if not asked:
        raise ValueError(
            f"--data: {args.data} has no prompt of at most {args.max_prompt_length} tokens"
        )
    return asked, _solutions(student, args, rows) if column else []


def _question(ids: list[int], row: dict[str, Any]) -> Question:
    reward, extra = row.get("reward_model"), row.get("extra_info")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else None
    return Question(ids, row.get("data_source"), truth, extra if isinstance(extra, dict) else None)


def _solutions(student: Model, args: Arguments, rows: Sequence[dict[str, Any]]) -> list[Solution]:
    """Solutions of rows that are not asked: a question's own begins as its response does.

    Raises:
        ValueError: there is no text in the column, or no row is left.
    """
    assert args.solutions is not None
    end = student.tokenizer.eos_token_id
    found: list[Solution] = []
    for row in rows[: args.prompts]:
        text: Any = row
        for name in args.solutions.split("."):
            text = text.get(name) if isinstance(text, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"--solutions: got {args.solutions}, which holds {str(text)[:60]!r} in a row of"
                f" {args.data}, allowed: a column of texts, or column.name of objects with one"
            )
        ids = student.tokenizer.encode(text, add_special_tokens=False)
        prompt = prompt_ids(student, row[args.prompt_key], args.template)
        found.append(Solution(prompt, ids if end is None else [*ids, end]))
    if not found:
        raise ValueError(
            f"--solutions: {args.data} has no row beyond the {args.prompts} that are asked,"
            " allowed: fewer --prompts, or more rows"
        )
    return found
