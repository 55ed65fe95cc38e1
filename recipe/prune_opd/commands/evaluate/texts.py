"""Grades and lengths of responses, out of their texts where a dump does not have them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recipe.prune_opd.commands.files import TEXT_FILES, check_model
from recipe.prune_opd.commands.terminal import progress


def regrade(rows: list[dict[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    """Grade rows with our own grader, whatever their scores are.

    Args:
        rows: of ``read_dump``.
        benchmark: name where a row has none.

    Raises:
        ValueError: a row has no ground truth.
    """
    from recipe.prune_opd import grading

    for row in rows:
        if row.get("gts") is None:
            raise ValueError("--regrade: the dump has a response without ground truth (gts)")

    def grade(row: dict[str, Any]) -> dict[str, Any]:
        found = grading.compute_score(
            row.get("data_source") or benchmark, row["output"], row["gts"]
        )
        return {**row, **{name: found[name] for name in ("score", "acc", "pred", "unread")}}

    with ThreadPoolExecutor(grading.PROCESSES) as pool:
        return list(progress(pool.map(grade, rows), "grading", "response", total=len(rows)))


def count_tokens(
    rows: list[dict[str, Any]], tokenizer: str, limit: int | None
) -> list[dict[str, Any]]:
    """Give rows ``tokens`` and, under a limit, ``truncated`` where they lack them.

    Dumps hold decoded text: encoded again it may have a few tokens more or fewer than were sampled.

    Args:
        rows: of ``read_dump``.
        tokenizer: folder or hub name.
        limit: tokens a response could have; None where not known.

    Raises:
        ValueError: there is no such tokenizer.
    """
    encode = _tokenizer(tokenizer)

    def counted(row: dict[str, Any]) -> dict[str, Any]:
        tokens, truncated = row.get("tokens"), row.get("truncated")
        if tokens is None:
            tokens = len(encode(row["output"], add_special_tokens=False)["input_ids"])
        if truncated is None and limit is not None:
            truncated = tokens >= limit
        return {**row, "tokens": tokens, "truncated": truncated}

    return [counted(row) for row in progress(rows, "counting tokens", "response")]


def _tokenizer(path: str) -> Callable[..., Any]:
    from transformers import AutoTokenizer

    check_model("--tokenizer", path, TEXT_FILES)
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the tokenizers library raises plain exceptions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"--tokenizer: {path} cannot be loaded ({reason})") from error
