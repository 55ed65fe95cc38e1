"""Files that a command is given, refused in a sentence before anything is made of them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable

TEXT_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.txt")
"""Files of a model's folder that transformers may read for configuration and tokenizer."""
MODEL_FILES = (*TEXT_FILES, "*.safetensors", "*.bin")
"""Files of a model's folder that transformers may read, weights included."""


def check_model(key: str, path: str, names: tuple[str, ...] = MODEL_FILES) -> None:
    """Refuse a model's folder that was cloned without its files; a hub name passes.

    Args:
        key: what the path was given as.
        path: folder or hub name.
        names: patterns of the files that will be read.

    Raises:
        ValueError: a file in the place of a folder, or a file in it that cannot be read or is a Git
            LFS pointer.
    """
    folder = Path(path).expanduser()
    if os.path.isfile(folder):
        raise ValueError(f"{key}: {path} is a file, allowed: a model folder or a hub name")
    if not os.path.isdir(folder):
        return
    for file in sorted({file for name in names for file in folder.glob(name)}):
        check_readable(f"{key}: ", file, "a model's files")


def check_pair(student: str, teacher: str, data: Path | None, weights: bool = True) -> None:
    """Refuse files of ``doctor`` and ``diagnose`` that cannot be read, before a model is.

    Raises:
        ValueError: see ``check_model`` and ``check_readable``.
    """
    if data is not None:
        check_readable("--data: ", data, "a parquet or JSON file in verl's format")
    names = MODEL_FILES if weights else TEXT_FILES
    check_model("STUDENT", student, names)
    check_model("TEACHER", teacher, names)


def json_lines(what: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Read the lines of a .jsonl file that are not blank: where each is, and its value.

    Raises:
        ValueError: a line is no JSON in UTF-8; names the file and the line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{what}{path}, line {number}"
                yield where, parsed(where, line)


def parsed(where: str, text: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: it is none; begins with ``where``.
    """
    try:
        return json.loads(text.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{where} is no JSON that can be read (too deep)") from error
    except ValueError as error:
        raise ValueError(f"{where} is no JSON in UTF-8 ({error})") from error
