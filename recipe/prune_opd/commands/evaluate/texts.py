"""Grades and lengths of responses, out of their texts where a dump does not have them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recipe.prune_opd.commands.files import TEXT_FILES, check_model


def regrade(rows: list[dict[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    """The rows with our own grades.

    Raises:
        ValueError: a row has no ground truth.
    """
    from tqdm import tqdm

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
        return list(
            tqdm(
                pool.map(grade, rows),
                total=len(rows),
                desc="grading",
                unit="response",
                disable=None,
            )
        )


def count_tokens(
    rows: list[dict[str, Any]], tokenizer: str, limit: int | None
) -> list[dict[str, Any]]:
    """The rows with ``tokens`` and, under a limit, ``truncated`` where they lack them.

    Dumps hold decoded text: encoded again it may have a few tokens more or fewer than were sampled.

    Raises:
        ValueError: there is no such tokenizer.
    """
    from tqdm import tqdm
    from transformers import AutoTokenizer

    check_model("--tokenizer", tokenizer, TEXT_FILES)
    try:
        encode = AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the tokenizers library raises plain exceptions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"--tokenizer: {tokenizer} cannot be loaded ({reason})") from error

    def counted() -> Iterator[dict[str, Any]]:
        for row in tqdm(rows, desc="counting tokens", unit="response", disable=None):
            tokens = row.get("tokens")
            if tokens is None:
                tokens = len(encode(row["output"], add_special_tokens=False)["input_ids"])
            truncated = row.get("truncated")
            if truncated is None and limit is not None:
                truncated = tokens >= limit
            yield {**row, "tokens": tokens, "truncated": truncated}

    return list(counted())


