"""Files that a command is given: what keeps one from being read, in a sentence, before anything is made of it."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import lfs_pointer

TEXT_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.txt")
"""What transformers may read in a model's folder for configuration and tokenizer."""
MODEL_FILES = (*TEXT_FILES, "*.safetensors", "*.bin")
"""The same, and weights."""


def check_file(what: str, path: Path, allowed: str) -> None:
    """Refuse what is no file with content of its own.

    Args:
        what: beginning of the message: the option it came by, with a colon and a space, or nothing.
        path: where it should be.
        allowed: what should be there.

    Raises:
        ValueError: there is nothing, a folder, a device, something unreadable, or a Git LFS pointer; names the path.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{what}{path} is a folder, allowed: {allowed}")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{what}{path} is a pipe or a device, allowed: {allowed}")
        if lfs_pointer(path):
            raise ValueError(f"{what}{path} is a Git LFS pointer, not what it points to: fetch it with git lfs pull")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{what}{path} does not exist, allowed: {allowed}") from error
    except OSError as error:
        raise ValueError(f"{what}{path} cannot be read ({error.strerror}), allowed: {allowed}") from error


def check_model(key: str, path: str, names: tuple[str, ...] = MODEL_FILES) -> None:
    """Refuse a model's folder that was cloned without its files; a hub name passes.

    Args:
        key: what the path was given as.
        path: folder or hub name.
        names: patterns of the files that will be read.

    Raises:
        ValueError: a file in the place of a folder, or a file in it that cannot be read or is a Git LFS pointer.
    """
    folder = Path(path).expanduser()
    if os.path.isfile(folder):
        raise ValueError(f"{key}: {path} is a file, allowed: a model folder or a hub name")
    if not os.path.isdir(folder):
        return
    for file in sorted({file for name in names for file in folder.glob(name)}):
        check_file(f"{key}: ", file, "a model's files")


def check_pair(student: str, teacher: str, data: Path | None, weights: bool = True) -> None:
    """Refuse files of ``doctor`` and ``diagnose`` that cannot be read, before a model is.

    Raises:
        ValueError: see ``check_model`` and ``check_file``.
    """
    if data is not None:
        check_file("--data: ", data, "a parquet or JSON file in verl's format")
    names = MODEL_FILES if weights else TEXT_FILES
    check_model("STUDENT", student, names)
    check_model("TEACHER", teacher, names)


def json_lines(what: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Where a line is, for messages, and what it holds, of every line of a .jsonl file that is not blank.

    Raises:
        ValueError: a line is no JSON in UTF-8; names the file and the line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{what}{path}, line {number}"
                yield where, parsed(where, line)


def parsed(where: str, text: bytes) -> Any:
    """What JSON in UTF-8 holds.

    Raises:
        ValueError: it is none; begins with ``where``.
    """
    try:
        return json.loads(text.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{where} is no JSON that can be read (too deep)") from error
    except ValueError as error:
        raise ValueError(f"{where} is no JSON in UTF-8 ({error})") from error
