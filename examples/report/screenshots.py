"""Pictures of the page of a run, light and dark, as wide as a laptop and as a phone.

    python examples/report/screenshots.py runs/walk/prune_opd --out shots
    python examples/report/screenshots.py runs/walk/prune_opd --widths 390 \\
        --from "Token by token" --height 1000

Takes what `report` takes, and writes its page beside the pictures; or a page that is there, of
`diagnose` for instance. Needs Chromium or Chrome (`apt-get install chromium`). It is driven over
its debugging pipe, which takes neither a port nor a package: on the command line a window cannot be
narrower than 500 pixels. Exit code 1 where something is wider than the page.
"""

import base64
import contextlib
import fcntl
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image  # matplotlib brings it
from tyro.conf import Positional, arg

from recipe.prune_opd.commands.arguments import paths
from recipe.prune_opd.commands.report.page import report
from recipe.prune_opd.commands.report.reading import read_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
PHONE = 600
"""Pages narrower than this many pixels are shown as on a phone, with touch and its idea of a
viewport."""
WIDER = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".wide, svg, .tokens"))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName.toLowerCase() + "." + e.className)"""
TOP = """[...document.querySelectorAll("h2")]
  .find(e => e.textContent === %s)?.getBoundingClientRect().top"""


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    runs: Annotated[
        Positional[tuple[Path, ...]],
        paths("folders of runs, or a page", "RUN"),
        arg(help_behavior_hint=""),
    ]
    """folders of runs, as `report` takes them; or one page, a file that ends in .html"""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("shots")
    """folder to write to"""
    widths: tuple[int, ...] = (1280, 390)
    """in pixels"""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    """colour schemes"""
    start: Annotated[
        str | None,
        arg(name="from", metavar="HEADING", help_behavior_hint="(default: at the top)"),
    ] = None
    """begin at this heading"""
    height: Annotated[int | None, arg(help_behavior_hint="(default: all)")] = None
    """pixels of the page to show"""


def _as_3_and_4(requests: int, answers: int) -> None:
    os.dup2(requests, 3)
    os.dup2(answers, 4)


class Browser:
    """Chromium with one empty page.

    Args:
        program: its executable.
        folder: a new one, for its profile.
    """

    def __init__(self, program: str, folder: str):
        theirs, ours = os.pipe(), os.pipe()
        # It reads from 3 and writes to 4. Both ends are moved up first: they may be 3 or 4
        # themselves.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs[0], ours[1])]
        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=lambda: _as_3_and_4(*ends),
        )
        for fd in (*ends, theirs[0], ours[1]):
            os.close(fd)
        self.requests, self.answers = os.fdopen(theirs[1], "wb", 0), os.fdopen(ours[0], "rb")
        self.numbers = itertools.count(1)
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {
            "sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)[
                "sessionId"
            ]
        }

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask over the DevTools protocol.

        Raises:
            RuntimeError: it refused, or ended.
        """
        number = next(self.numbers)
        request = {"id": number, "method": method, "params": params, **self.session}
        self.requests.write(json.dumps(request).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError(f"the browser ended with exit code {self.process.wait()}")
            text += byte
        return json.loads(text)

    def value(self, script: str) -> Any:
        """Evaluate an expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Load a page into a window of a width, under a colour scheme."""
        self._resize(width, 844)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", url=page.resolve().as_uri())
        ready = (
            "new Promise(done => document.readyState === 'complete' ? done() :"
            " addEventListener('load', done))"
        )
        self.call("Runtime.evaluate", expression=ready, awaitPromise=True)

    def _resize(self, width: int, height: int) -> None:
        scale, phone = (2, True) if width < PHONE else (1, False)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )

    def picture(self, width: int, top: float, height: float | None) -> Image.Image:
        """Take a picture of the page from ``top`` on, of all below where no height is given."""
        whole = self.call("Page.getLayoutMetrics")["cssContentSize"]["height"]
        self._resize(width, whole)  # what sticks to the window's edge is to stay in its place
        clip = {
            "x": 0,
            "y": top,
            "width": width,
            "height": min(height or whole, whole - top),
            "scale": 1,
        }
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(shot["data"])))

    def close(self) -> None:
        """End the browser."""
        self.session = {}
        self.call("Browser.close")
        self.process.wait()


def save(picture: Image.Image, file: Path) -> None:
    """Save a picture as PNG of 256 colours, which are enough for text and lines."""
    few = picture.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


def page_of(runs: tuple[Path, ...], out: Path) -> Path:
    """Write the page of runs into a folder, or find the one that is given.

    Raises:
        ValueError: there is no run at a path.
    """
    if len(runs) == 1 and runs[0].suffix == ".html" and runs[0].is_file():
        return runs[0]
    found = read_runs(runs)
    page = out / f"{found[0].name.replace('/', '_')}.html"
    page.write_text(report(found, ", ".join(run.name for run in found)), encoding="utf-8")
    return page


def shoot(browser: Browser, page: Path, args: Arguments) -> bool:
    """Write the pictures, and say whether everything fits into the width of the page.

    Raises:
        ValueError: the page has no such heading.
    """
    fits = True
    for width, scheme in itertools.product(args.widths, args.schemes):
        browser.open(page, width, scheme)
        top = browser.value(TOP % json.dumps(args.start)) if args.start else 0
        if top is None:
            raise ValueError(f"--from: got {args.start!r}, allowed: a heading of {page}")
        file = args.out / f"{page.stem}-{scheme}-{width}.png"
        save(browser.picture(width, top, args.height), file)
        wider = browser.value(WIDER)
        fits = fits and not wider
        print(
            f"{file}, {file.stat().st_size / 1e3:.0f} kB"
            + (f"; too wide: {', '.join(wider)}" if wider else "")
        )
    return fits


def run(args: Arguments) -> int:
    """Take the pictures, and return the exit code.

    Raises:
        ValueError: there is no browser, no run, or no such heading.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        raise ValueError(f"no browser, needed: one of {', '.join(BROWSERS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    page = page_of(args.runs, args.out)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.closing(Browser(program, folder)) as browser,
    ):
        return 0 if shoot(browser, page, args) else 1


def main() -> int:
    """Run the command line, and return its exit code."""
    args = tyro.cli(Arguments, description=__doc__, config=(tyro.conf.HelptextFromCommentsOff,))
    try:
        return run(args)
    except ValueError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
