"""Rows of data files, parquet or JSON, read in parts and only in the columns that are asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import reason_of
from recipe.prune_opd.checks.shapes import regular

BATCH = 10_000
"""Rows that are read together."""


@dataclass(frozen=True)
class Source:
    """File that can be read in parts."""

    schema: Any
    """Columns and types, Arrow's."""
    rows: int
    batches: Callable[[list[str]], Iterator[tuple[int, dict[str, Any]]]]
    """Reader of columns in parts: number of the first row, column -> Arrow array or list."""


def read_rows(file: Path, columns: Sequence[str], most: int) -> list[dict[str, Any]]:
    """Read some columns of the first ``most`` rows of a file that ``check_file`` has passed.

    Args:
        file: .parquet, .json or .jsonl.
        columns: names; a column that the file does not have is left out of the rows.
        most: rows.
    """
    source, rows = open_source("--data", file), list[dict[str, Any]]()
    known = [name for name in columns if name in source.schema.names]
    for _, batch in source.batches(known):
        lists = [
            values if isinstance(values, list) else values.to_pylist()
            for values in (batch[name] for name in known)
        ]
        rows += [dict(zip(known, values, strict=True)) for values in zip(*lists, strict=True)]
        if len(rows) >= most:
            break
    return rows[:most]


def open_source(key: str, file: Path) -> Source:
    """Open a file, by its ending.

    Args:
        key: what the file was given as, for messages.
        file: .parquet, .json or .jsonl.

    Raises:
        ValueError: it is none of these, or no such file; raised later for a broken part of one.
    """
    if file.suffix == ".parquet":
        return _open_parquet(key, file)
    if file.suffix in (".json", ".jsonl"):
        return _open_json(key, file)
    raise ValueError(f"{key}: {file} ends in {file.suffix!r}, allowed: .parquet, .json, .jsonl")


def _open_parquet(key: str, file: Path) -> Source:
    import pyarrow
    from pyarrow import parquet

    def unreadable(error: Exception) -> ValueError:
        return ValueError(f"{key}: {file} is no readable parquet file ({reason_of(error)})")

    def batches(columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        start = 0
        try:
            for batch in opened.iter_batches(BATCH, columns=columns):
                yield start, {name: batch.column(name) for name in columns}
                start += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(error) from error

    try:
        opened = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(error) from error
    return Source(opened.schema_arrow, opened.metadata.num_rows, batches)


def _open_json(key: str, file: Path) -> Source:
    """Open a JSON file as verl does, by ``datasets``, which keeps a copy as Arrow in its cache."""
    import datasets

    try:
        rows = datasets.load_dataset("json", data_files=str(file), split="train")
    except (
        datasets.exceptions.DatasetGenerationError,
        RecursionError,
        StopIteration,
        ValueError,
    ) as error:
        reason = reason_of(error.__cause__ or error)
        raise ValueError(
            f"{key}: {file} is no readable JSON file, or an empty one ({reason})"
        ) from error
    schema = rows.features.arrow_schema

    def batches(columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        read = rows.select_columns(columns)
        arrow = read.with_format("arrow")
        mixed = [name for name in columns if not regular(schema.field(name).type)]
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            table, decoded = arrow[part], read[part] if mixed else {}
            values = {name: table.column(name).combine_chunks() for name in columns}
            yield start, values | {name: decoded[name] for name in mixed}

    return Source(schema, len(rows), batches)
