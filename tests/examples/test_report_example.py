"""Pictures are of the page of a run, of all of it, and tell what does not fit."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "report"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
browser = pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="there is no Chromium")


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def page(file: Path, body: str) -> Path:
    head = (
        '<!doctype html><meta name="viewport" content="width=device-width"><body style="margin:0">'
    )
    file.write_text(head + body)
    return file


def folder_of_a_run(folder: Path, steps: int) -> Path:
    """What verl's file logger leaves of a run."""
    folder.mkdir()
    lines = [
        {"step": step, "data": {"training/global_step": step, "actor/grad_norm": 1 / step}}
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_gets_its_page_and_a_page_is_taken_as_it_is(tmp_path):
    spec = importlib.util.spec_from_file_location("screenshots", FOLDER / "screenshots.py")
    screenshots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(screenshots)
    one, two = (folder_of_a_run(tmp_path / name, 3) for name in ("one", "two"))
    written = screenshots.page_of((one, two), tmp_path)
    assert written == tmp_path / "one.html"
    assert "<title>one, two</title>" in written.read_text()
    assert "Gradient norm" in written.read_text()
    assert screenshots.page_of((written,), tmp_path / "elsewhere") == written


@browser
def test_pictures_of_a_run(tmp_path):
    source = folder_of_a_run(tmp_path / "one", 3)
    done = run("screenshots.py", source, "--out", tmp_path / "shots", "--widths", 800)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "shots").iterdir()) == [
        "one-dark-800.png",
        "one-light-800.png",
        "one.html",
    ]


@browser
def test_pictures_are_as_wide_as_was_asked_and_follow_the_scheme(tmp_path):
    from PIL import Image

    style = "<style>@media (prefers-color-scheme: dark) { html { background: #000 } }</style>"
    file = page(tmp_path / "a.html", style + '<div style="height:1500px"></div><h2>End</h2>')
    done = run("screenshots.py", file, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = {shot.name: Image.open(shot).convert("RGB") for shot in tmp_path.glob("*.png")}
    assert sorted(found) == [
        "a-dark-1280.png",
        "a-dark-390.png",
        "a-light-1280.png",
        "a-light-390.png",
    ]
    assert found["a-light-1280.png"].width == 1280
    assert found["a-light-390.png"].width == 2 * 390
    assert found["a-light-390.png"].height > 2 * 1500
    assert found["a-light-1280.png"].getpixel((5, 5)) == (255, 255, 255)
    assert found["a-dark-390.png"].getpixel((5, 5)) == (0, 0, 0)


@browser
def test_pictures_say_what_is_wider_than_the_page(tmp_path):
    file = page(tmp_path / "a.html", '<div class="broad" style="width:500px">x</div>')
    done = run("screenshots.py", file, "--out", tmp_path, "--schemes", "light")
    assert done.returncode == 1
    wide, narrow = done.stdout.splitlines()
    assert "too wide" not in wide
    assert "too wide: div.broad" in narrow


@browser
def test_a_heading_that_is_not_there_is_one_sentence(tmp_path):
    done = run(
        "screenshots.py", page(tmp_path / "a.html", "x"), "--out", tmp_path, "--from", "Nothing"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--from: got 'Nothing', allowed: a heading of" in done.stderr


@browser
def test_a_run_that_is_not_there_is_one_sentence(tmp_path):
    done = run("screenshots.py", tmp_path / "none", "--out", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "none does not exist" in done.stderr


def test_without_a_browser_one_sentence_says_what_is_needed(tmp_path):
    command = [sys.executable, str(FOLDER / "screenshots.py"), str(tmp_path)]
    surroundings = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=surroundings)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no browser, needed: one of chromium" in done.stderr
