"""What does the package cost before anything is computed?

    import verl    in a process of its own, with no plugins, the recipe's, and those of all
                   packages (verl's VERL_USE_EXTERNAL_PLUGINS), in turn
    --help         of every command, in a process of its own

    python benchmarks/startup.py                # some minutes
    python benchmarks/startup.py --repeats 15

Seconds of a processor, which others on the machine do not lengthen much, and of the clock. A
training imports verl in a dozen processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping

import psutil
from rich.console import Console
from rich.table import Table

from recipe.prune_opd.__main__ import COMMANDS

POLICY = "VERL_USE_EXTERNAL_PLUGINS"
IMPORT = ("-c", "import verl")
ENVIRONMENTS = {
    "import verl, no plugins": "none",
    "import verl, the recipe's": "prune_opd",
    "import verl, all plugins": "auto",
}
"""On a CPU, without the platform among all plugins verl looks for an accelerator."""


def seconds(words: tuple[str, ...], more: Mapping[str, str]) -> tuple[float, float]:
    """Seconds of a processor and of the clock that a Python process takes.

    Raises:
        SystemExit: it failed.
    """
    before, started = psutil.Process().cpu_times(), time.perf_counter()
    command = [sys.executable, *words]
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True)
    clock, after = time.perf_counter() - started, psutil.Process().cpu_times()
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip()}")
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system, clock


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="of each, after one (%(default)s)")
    args = parser.parse_args()
    cases = {name: (IMPORT, {POLICY: policy}) for name, policy in ENVIRONMENTS.items()}
    for name in ("", *COMMANDS):
        words = ("-m", "recipe.prune_opd", *filter(None, [name]), "--help")
        cases[f"{name or 'prune-opd'} --help"] = (words, {})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(args.repeats + 1):
        for name, case in cases.items():
            found[name].append(seconds(*case))
    shown = Table("process", "processor, s", "least", "clock, s", "least")
    for name, taken in found.items():
        columns = zip(*taken[1:], strict=True)
        shown.add_row(
            name, *(f"{value:.2f}" for of in columns for value in (statistics.median(of), min(of)))
        )
    Console().print(shown)
    first, *others = (
        statistics.median(used for used, _ in found[name][1:]) for name in ENVIRONMENTS
    )
    for name, used in zip([*ENVIRONMENTS][1:], others, strict=True):
        print(f"{name}: {1000 * (used - first):+.0f} ms of a processor, of {first:.1f} s")


if __name__ == "__main__":
    main()
