"""Pictures of a page of `report` or `diagnose`, light and dark, as wide as a laptop and as a phone.

    python examples/report/screenshots.py report.html --out shots
    python examples/report/screenshots.py report.html --out shots --widths 390 --from "Token by
    token" --height 1000

Needs Chromium or Chrome (`apt-get install chromium`). It is driven over its debugging pipe, which
takes neither a port nor a package: on the command line a window cannot be narrower than 500 pixels.
Exit code 1 where something is wider than the page.
"""

import argparse
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
from pathlib import Path
from typing import Any

from PIL import Image  # matplotlib brings it

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--hide-scrollbars",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--remote-debugging-pipe",
    ),
)
PHONE = 600
"""Pages narrower than this many pixels are shown as on a phone, with touch and its idea of a
viewport."""
WIDER = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".wide, svg, .tokens"))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName.toLowerCase() + "." + e.className)"""
TOP = """[...document.querySelectorAll("h2")]
  .find(e => e.textContent === %s)?.getBoundingClientRect().top"""


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
        """Answer of the DevTools protocol.

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
        """What an expression in the page comes to."""
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
        """Part of the page from a height on, all of it below where no height is given."""
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
        """End it."""
        self.session = {}
        self.call("Browser.close")
        self.process.wait()


def save(picture: Image.Image, file: Path) -> None:
    """As PNG of 256 colours, which are enough for text and lines."""
    few = picture.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


def shoot(browser: Browser, args: argparse.Namespace) -> bool:
    """Write the pictures; whether everything fits into the width of the page.

    Raises:
        ValueError: the page has no such heading.
    """
    fits = True
    for width, scheme in itertools.product(args.widths, args.schemes):
        browser.open(args.page, width, scheme)
        top = browser.value(TOP % json.dumps(args.start)) if args.start else 0
        if top is None:
            raise ValueError(f"--from: got {args.start!r}, allowed: a heading of {args.page}")
        file = args.out / f"{args.page.stem}-{scheme}-{width}.png"
        save(browser.picture(width, top, args.height), file)
        wider = browser.value(WIDER)
        fits = fits and not wider
        print(
            f"{file}, {file.stat().st_size / 1e3:.0f} kB"
            + (f"; too wide: {', '.join(wider)}" if wider else "")
        )
    return fits


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="file of the page")
    parser.add_argument(
        "--out", type=Path, default=Path("shots"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[1280, 390], help="in pixels (default: 1280 390)"
    )
    parser.add_argument(
        "--schemes", nargs="+", default=["light", "dark"], choices=["light", "dark"]
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="HEADING",
        help="begin at this heading (default: at the top)",
    )
    parser.add_argument("--height", type=int, help="pixels of the page to show (default: all)")
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program or not args.page.is_file():
        found = "no browser" if not program else f"no file {args.page}"
        print(
            f"screenshots: {found}, needed: a page, and one of {', '.join(BROWSERS)}",
            file=sys.stderr,
        )
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.closing(Browser(program, folder)) as browser,
    ):
        try:
            return 0 if shoot(browser, args) else 1
        except ValueError as error:
            print(f"screenshots: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
