"""Paths as verl takes them, and what keeps a file from being read."""

import functools
import operator
import os
import stat
from pathlib import Path

from verl_ext.texts import shown

POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the text that Git LFS leaves in the place of a file that was not fetched."""
MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHTS = ("*.safetensors", "*.bin")
"""Files that transformers reads of a model; weights of the second kind if none of the first."""


def local_path(path: str) -> str:
    """Path as verl takes it: its own code expands no ``~`` and stumbles over a trailing slash."""
    return path if is_remote(path) else str(Path(path).expanduser())


def is_remote(path: str) -> bool:
    """Tell whether a path is of a file system that verl copies from first."""
    from verl.utils.fs import is_non_local

    return is_non_local(path)


def reason_of(error: BaseException) -> str:
    """Message of an exception in one line: its first, and the one that it announces, with its class
    where that says more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    if isinstance(error, KeyError):
        return f"{first} is missing"
    if first and isinstance(error, (OSError, ValueError, RuntimeError)):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def lfs_pointer(file: Path) -> bool:
    """Tell whether a file is Git LFS's pointer to what should be there.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as start:
        return start.read(len(POINTER)) == POINTER


def check_readable(what: str, path: Path, allowed: str) -> None:
    """Refuse a path that is no file with content of its own.

    Args:
        what: beginning of the message: the option it came by, with a colon and a space, or nothing.
        path: where it should be.
        allowed: what should be there.

    Raises:
        ValueError: there is nothing, a folder, a device, something unreadable, or a Git LFS
            pointer; names the path.
    """
    if "\0" in str(path):
        raise ValueError(f"{what}{shown(str(path))} is no name of a file, allowed: {allowed}")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{what}{path} is a folder, allowed: {allowed}")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{what}{path} is a pipe or a device, allowed: {allowed}")
        if lfs_pointer(path):
            raise ValueError(
                f"{what}{path} is a Git LFS pointer, not the file itself: fetch it with git lfs"
                " pull"
            )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{what}{path} does not exist, allowed: {allowed}") from error
    except OSError as error:
        raise ValueError(
            f"{what}{path} cannot be read ({error.strerror}), allowed: {allowed}"
        ) from error


def check_place(key: str, folder: Path) -> None:
    """Refuse a folder that is not there and cannot be made, or cannot be written to.

    Raises:
        ValueError: names the key and what is in the way.
    """
    place, fault = folder.absolute(), ""
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not all(map(_is_name, folder.parts)):
        place, fault = folder.absolute(), "is no name that a folder may have"
    elif not os.path.isdir(place):
        fault = "is no folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        fault = "may not be written to"
    if fault:
        at = "" if place == folder.absolute() else f", where {shown(str(folder))} should be"
        raise ValueError(f"{key}: {shown(str(place), 200)} {fault}{at}, allowed: a folder to write")


def _is_name(part: str) -> bool:
    """Tell whether a file system of Linux takes a part of a path."""
    try:
        return "\0" not in part and len(os.fsencode(part)) <= 255
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def refuse_pointer(key: str, file: Path) -> None:
    """Refuse a file that was cloned without its content.

    Raises:
        ValueError: it is a Git LFS pointer; names the key and the file.
    """
    if lfs_pointer(file):
        raise ValueError(
            f"{key}: {file} is a Git LFS pointer, not the file itself: fetch it with git lfs pull"
        )


def refuse_pointers(key: str, folder: str, weights: bool = False) -> None:
    """Refuse a model's folder that was cloned without the content of a file that is needed.

    Args:
        key: what the folder was given as.
        folder: one of this machine; anything else passes.
        weights: look at the weights, and not at configuration and tokenizer.

    Raises:
        ValueError: names the key and the first such file.
    """
    if not os.path.isdir(folder):  # says no where pathlib raises, of a name that is too long
        return
    patterns = WEIGHTS if weights else MODEL_FILES
    found = [sorted(filter(Path.is_file, Path(folder).glob(pattern))) for pattern in patterns]
    needed = (
        next(filter(None, found), []) if weights else functools.reduce(operator.iadd, found, [])
    )
    for file in needed:
        refuse_pointer(key, file)
