"""Files that are there whole or not at all, and JSON whose nesting has a bound."""

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEEPEST = 64
"""Lists and objects inside each other that ``parse_json`` takes: what writes files here needs few,
and code that walks through a value, ``repr`` or ``json.dumps``, recurses once for each."""


@contextlib.contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Give a path beside a file to write to, and put what is there into the file's place at the
    end.

    Where writing fails, on a full disk for instance, the file is as it was. A link stays one.

    Raises:
        ValueError: in the file's place is something else, a device for instance.
        OSError: it cannot be written.
    """
    file = Path(os.path.realpath(file))
    if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
        raise ValueError(f"{file} is no regular file, allowed: a file or nothing in its place")
    partial = file.with_name(f".{uuid.uuid4().hex[:12]}.partial")  # short: the name may be long
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all, see ``replaced``; half a surrogate pair, which
    UTF-8 does not have, becomes ``?``."""
    with replaced(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; bytes are of UTF-8, with a byte order mark or without.

    Raises:
        ValueError: it is none, or nested deeper than ``DEEPEST``; its message goes on with what the
            text ``is``, in one line.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise ValueError(f"no JSON in UTF-8 ({str(error).splitlines()[0]})") from error
    level = [value]
    for _ in range(DEEPEST):
        inside = (inner for outer in level for inner in _inside(outer))
        level = [inner for inner in inside if isinstance(inner, (dict, list))]
        if not level:
            return value
    raise _too_deep()


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()  # the outermost may be a number


def _too_deep() -> ValueError:
    return ValueError(f"no JSON that can be read (nested deeper than {DEEPEST})")
