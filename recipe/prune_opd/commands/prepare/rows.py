"""Rows in verl's format, and parquet whose bytes depend on them alone."""

from pathlib import Path
from typing import Any

from recipe.prune_opd.commands.files import writing
from recipe.prune_opd.commands.prepare.datasets import Dataset
from recipe.prune_opd.commands.prepare.problems import Problem


def verl_row(problem: Problem, dataset: Dataset, split: str, suffix: str | None) -> dict[str, Any]:
    """Make a row in verl's format.

    Args:
        problem: with the bare question.
        dataset: whose it is.
        split: for ``extra_info.split``.
        suffix: end of the prompt; None for the dataset's own head and tail.
    """
    head, tail = (dataset.head, dataset.tail) if suffix is None else ("", suffix)
    messages = [*problem.before, ("user", f"{head}{problem.question}{tail}")]
    return {
        "data_source": dataset.source,
        "prompt": [{"content": content, "role": role} for role, content in messages],
        "ability": "math",
        "reward_model": {"ground_truth": problem.answer, "style": "rule"},
        "extra_info": {"index": problem.id, "split": split},
    }


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write parquet whose bytes depend on the rows and the version of pyarrow alone.

    Never leaves half a file.
    """
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    schema = pyarrow.schema(
        {
            "data_source": text,
            "prompt": pyarrow.list_(pyarrow.struct({"content": text, "role": text})),
            "ability": text,
            "reward_model": pyarrow.struct({"ground_truth": text, "style": text}),
            "extra_info": pyarrow.struct({"index": text, "split": text}),
        }
    )
    table = pyarrow.Table.from_pylist(rows, schema)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {file} cannot be written ({error})") from error
    with writing(file) as partial:
        parquet.write_table(
            table,
            partial,
            version="2.6",
            compression="snappy",
            row_group_size=4096,
            store_schema=False,
        )
