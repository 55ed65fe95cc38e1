"""The made-up run is one that `report` reads, and its pictures show the whole page."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.prune_opd.commands.report.runs import read_run
from recipe.prune_opd.commands.report.tokens import token_views

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


def test_report_reads_the_made_up_run(tmp_path):
    done = run("made_up.py", "--out", tmp_path / "run", "--steps", 20)
    assert done.returncode == 0, done.stderr
    found = read_run(tmp_path / "run", "made up")
    assert (found.last, found.sampled(), found.faults) == (20, [1, 20], ())
    assert list(found.accuracies()) == ["made_up"]
    stops = [one["spent"] for one in token_views([found])["samples"] if one["spent"]]
    assert min(stops) < 500 < max(stops), (
        "one at the beginning, one beyond the tokens that a page begins with"
    )


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


def test_a_page_that_is_not_there_is_one_sentence(tmp_path):
    done = run("screenshots.py", tmp_path / "none.html")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
