"""What does the package cost before anything is computed?

    import verl    without plugins (verl's VERL_USE_EXTERNAL_PLUGINS), and then each of the
                   package's plugins, as verl loads it: alone, since a whole process differs more
                   from the next than a plugin takes
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

PLUGINS = ("verl_ext", "prune_opd")
"""The package's, by their names in ``verl.plugins``; the first sets up a CPU where there is no
accelerator."""
LOADED = """
import time
from importlib.metadata import entry_points
import verl
for name in {names}:
    (plugin,) = entry_points(group="verl.plugins", name=name)
    start = time.process_time()
    plugin.load()
    print(name, time.process_time() - start)
"""
IMPORT = {"VERL_USE_EXTERNAL_PLUGINS": "none"}


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


def plugins() -> dict[str, float]:
    """Seconds of a processor that each plugin takes in a process that has imported verl."""
    command = [sys.executable, "-c", LOADED.format(names=PLUGINS)]
    environment = {**os.environ, **IMPORT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: float(line[1]) for line in lines if line and line[0] in PLUGINS}


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="of each, after one (%(default)s)")
    args = parser.parse_args()
    cases = {"import verl, no plugins": (("-c", "import verl"), IMPORT)}
    for name in ("", *COMMANDS):
        words = ("-m", "recipe.prune_opd", *filter(None, [name]), "--help")
        cases[f"{name or 'prune-opd'} --help"] = (words, {})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    loaded = []
    for _ in range(args.repeats + 1):
        for name, case in cases.items():
            found[name].append(seconds(*case))
        loaded.append(plugins())
    shown = Table("process", "processor, s", "least", "clock, s", "least")
    for name, taken in found.items():
        columns = zip(*taken[1:], strict=True)
        shown.add_row(
            name, *(f"{value:.2f}" for of in columns for value in (statistics.median(of), min(of)))
        )
    Console().print(shown)
    for name in PLUGINS:
        each = sorted(1000 * one[name] for one in loaded[1:])
        middle = statistics.median(each)
        print(f"plugin {name}: {middle:.1f} ms of a processor ({each[0]:.1f} to {each[-1]:.1f})")


if __name__ == "__main__":
    main()
