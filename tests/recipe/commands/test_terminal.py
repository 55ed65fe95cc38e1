"""What commands print moves no cursor, whatever texts they are given, and their JSON is JSON."""

import io
import json
import logging
import math
import sys

import pytest
from rich.table import Table
from rich.text import Text

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.commands.terminal import as_json, console, progress, say
from verl_ext.logs import isolate
from verl_ext.texts import shows, visible

EVIL = "a\x1b[2J\x1b]0;title\x07b\x9b31m\x08\rc\u202ed"
OBEYED = set("\x1b\x07\x08\r\x9b\u202e")


def test_control_characters_become_what_json_writes_for_them():
    assert visible("tab\tline\n\x1b[0m\x9b\ud800é") == "tab\tline\n\\u001b[0m\\u009b\\ud800é"


def test_a_sentence(capsys):
    say(EVIL)
    assert not OBEYED & set(capsys.readouterr().out)


def test_tables_and_texts():
    out = io.StringIO()
    table = Table(EVIL, title=EVIL, caption=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    terminal = console(file=out, width=300)
    for one in (table, EVIL, Text.assemble((EVIL, "bold"), ": x")):
        terminal.print(one)
    assert not OBEYED & set(out.getvalue())
    assert out.getvalue().count("\\u001b[2J") == 7


def test_colours_stay():
    out = io.StringIO()
    console(file=out, force_terminal=True, color_system="standard").print(Text("x", style="red"))
    assert "\x1b[31m" in out.getvalue()


def test_progress(monkeypatch):
    err = io.StringIO()
    err.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", err)
    list(progress([1], EVIL, "row"))
    assert "\x07" not in err.getvalue()
    assert "\\u001b[2J" in err.getvalue()


def test_errors_of_a_command(capsys):
    assert main(["report", f"no-such-{EVIL}"]) == 2
    said = capsys.readouterr().err
    assert "no-such-a\\u001b[2J" in said
    assert not OBEYED & set(said)


def test_warnings_of_the_package(capsys):
    isolate("verl_ext")
    (handler,) = logging.getLogger("verl_ext").handlers
    record = logging.LogRecord("verl_ext", logging.WARNING, "", 0, "from %s", (EVIL,), None)
    assert not OBEYED & set(handler.format(record))


def test_json_has_null_for_what_is_no_number():
    given = {"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": None}, "e": EVIL}
    for ascii_only in (True, False):
        text = as_json(given, ascii_only)
        assert json.loads(text, parse_constant=pytest.fail) == {
            "a": None,
            "b": [None, [None, 1.5]],
            "c": {"d": None},
            "e": EVIL,
        }
        assert not OBEYED & set(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such model", False),
        ("Bearer SECRET-token-9", True),
        ("secret", True),
        ("s-e-c-r-e-t", True),
        ("secre", False),
        ("%73ecret", True),
        ("\\u0073ecret", True),
        ("&#115;ecret", True),
        ("ret-token-9 and a half", True),
    ],
)
def test_a_part_of_a_secret_is_known(text, shown):
    assert shows(text, "secret-token-9") is shown


@pytest.mark.parametrize("secret", ["a", "!!"])
def test_a_short_secret_is_known_too(secret):
    assert shows(f"x{secret}x", secret) or not secret.isalnum()
    assert not shows("nothing", "zz")
