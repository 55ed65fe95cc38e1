"""Files that a command is given or writes, refused in a sentence before there is any work."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from verl_ext.files import parse_json, replaced

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
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where} is {error}") from error


# ------------------------------------------------------------------------------------------ written


def check_out(out: Path, allowed: str) -> None:
    """Refuse a place for a file in which something else is, before there is anything to write.

    Args:
        out: the file.
        allowed: what may be written.

    Raises:
        ValueError: it is a folder, a pipe or a device, or cannot be looked at.
    """
    try:
        mode = out.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ValueError(f"--out: {out} cannot be written ({error.strerror})") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"--out: {out} is a folder, allowed: {allowed}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"--out: {out} is a pipe or a device, allowed: {allowed}")


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Give a path to write to, whose content comes into the place of ``out`` when it is whole.

    Raises:
        ValueError: it cannot be written; what was in its place before is still there.
    """
    try:
        with replaced(out) as partial:
            yield partial
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--out: {out} cannot be written ({reason})") from error


def write_out(out: Path, text: str) -> None:
    """Write text in UTF-8, see ``writing``."""
    with writing(out) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")
