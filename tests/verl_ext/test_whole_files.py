"""A file is written whole or stays as it was, and JSON is read to a depth that all code takes."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_ext.files import DEEPEST, parse_json, replaced, write_whole

LONG = "x" * 5000


def only(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_is_replaced_by_another(tmp_path):
    file = tmp_path / "a.txt"
    for text in ("first", "Größe \ud800"):
        write_whole(file, text)
    assert file.read_bytes() == "Größe ?".encode()
    assert only(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("content", ["good", None])
def test_a_full_disk_leaves_what_was_there(tmp_path, full_disk, content):
    file = tmp_path / "a.txt"
    if content:
        file.write_text(content)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_whole(file, LONG)
    assert only(tmp_path) == (["a.txt"] if content else [])
    assert not content or file.read_text() == content


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("good")
    with pytest.raises(ZeroDivisionError), replaced(file) as partial:
        partial.write_text(str(1 / 0))
    assert (file.read_text(), only(tmp_path)) == ("good", ["a.txt"])


WRITE_ON = """
import sys
from itertools import cycle
from pathlib import Path
from verl_ext.files import write_whole
for letter in cycle("ab"):
    write_whole(Path(sys.argv[1]), letter * 4_000_000)
"""


@pytest.mark.parametrize("kill", range(4))
def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path, kill):
    """SIGKILL, on which nothing is cleaned up, once the next file is seen half written."""
    file = tmp_path / "a.txt"
    file.write_text("a" * 4_000_000)
    process = subprocess.Popen([sys.executable, "-c", WRITE_ON, str(file)])
    try:
        seen, deadline = 0, time.monotonic() + 240
        while seen <= 5 * kill and time.monotonic() < deadline:
            seen += any(tmp_path.glob(".*.partial"))
    finally:
        process.kill()
        process.wait(30)
    assert seen > 5 * kill
    text = file.read_text()
    assert text in ("a" * 4_000_000, "b" * 4_000_000)
    write_whole(file, "next")
    assert file.read_text() == "next"


def test_a_link_stays_one(tmp_path):
    file, link = tmp_path / "a.txt", tmp_path / "link"
    link.symlink_to(file)
    write_whole(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, device])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    path = tmp_path / "there"
    make(path)
    kind = stat.S_IFMT(path.stat().st_mode)
    with pytest.raises(ValueError, match="there is no regular file, allowed: a file or nothing"):
        write_whole(path, "new")
    assert stat.S_IFMT(path.stat().st_mode) == kind
    assert only(tmp_path) == ["there"]


def test_a_long_name_is_written_to(tmp_path):
    file = tmp_path / ("n" * 255)
    write_whole(file, "new")
    assert file.read_text() == "new"


# --------------------------------------------------------------------------------------------- JSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES)
def test_json_is_read_as_it_was_written(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value


def nested(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "lists" else '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("kind", ["lists", "objects"])
def test_a_depth_is_allowed_and_one_more_is_not(kind):
    assert parse_json(nested(DEEPEST, kind))
    for depth in (DEEPEST + 1, 500, 100_000):
        with pytest.raises(ValueError, match=rf"no JSON that can be read .* than {DEEPEST}\)"):
            parse_json(nested(depth, kind))


@pytest.mark.parametrize("text", ["", "{", "nope", b"\xff", b'"\xff\xfe"', "9" * 5000])
def test_what_is_no_json_is_one_line(text):
    with pytest.raises(ValueError, match=r"^no JSON in UTF-8 \(") as error:
        parse_json(text)
    assert "\n" not in str(error.value)
