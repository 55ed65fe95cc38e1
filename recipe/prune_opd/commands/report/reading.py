"""Files that runs left behind, read: verl's logger's, which any run has, and our records."""

import bisect
import os
import re
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable, lfs_pointer
from recipe.prune_opd.commands.report.forms import LARGEST, Record, fault
from recipe.prune_opd.commands.report.runs import TRAINED, Run, is_number, reckoned
from recipe.prune_opd.records.files import STEPS, read_lines, read_steps
from verl_ext.files import parse_json

FIRST = 5
"""Lines by which a log is known: the first of them may be torn."""


def read_run(path: Path, name: str) -> Run:
    """Read a run out of a folder, or out of one file of verl's logger.

    Args:
        path: what the run wrote into, or a folder above it.
        name: to call it by.

    Raises:
        ValueError: there is nothing of a run there, or of several.
    """
    if not os.path.isdir(path):  # says no where pathlib raises
        check_readable("", path, "a folder that a run wrote into, or a file of verl's logger")
    logs = _parts([path] if path.is_file() else _logs(path), path)
    records = _only([file.parent for file in _find(path, STEPS) if file.parent.is_dir()], path)
    if not logs and not records:
        for file in filter(lfs_pointer, _find(path, "*.jsonl")):
            check_readable("", file, "a file of verl's logger")
        raise ValueError(
            f"{path} holds neither a log nor records of a run, allowed: a folder with the file of"
            " verl's logger "
            '(trainer.logger=[console,file]: lines with "step" and "data") or with'
            f" {STEPS} (prune_opd.records.dir)"
        )
    lines, faults = _read_logs(logs)
    recorded, wrong = _read_records(records) if records else ({}, [])
    run = Run(name, merged(lines), recorded, records, (*faults, *wrong))
    if not run.logged and not run.recorded:
        raise ValueError(
            f"{path} holds the log of a run that has not finished a step, allowed: one that has"
        )
    return run


def _read_logs(logs: list[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of verl's logger out of the files of one run, and what was wrong with them."""
    lines, faults = [], []
    for log in logs:
        found, wrong = read_lines(log)
        logged = [line for line in found if _is_logged(line)]
        if not logged and (found or wrong):
            raise ValueError(
                f"{log} is no file of verl's logger, allowed: one (trainer.logger=[console,file]),"
                ' which has lines with "step" and "data", or the folder that the run wrote into'
            )
        lines += logged
        faults += wrong
    return lines, faults


def _read_records(folder: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Records by step, and what was wrong with their file."""
    check_readable("", folder / STEPS, "records of a run")
    found, faults = read_steps(folder)
    wrong = {number: fault(Record, record) for number, record in enumerate(found)}
    whole = {record["step"]: record for number, record in enumerate(found) if not wrong[number]}
    strange = [str(record["step"]) for number, record in enumerate(found) if wrong[number]]
    if strange:
        steps = ", ".join(f"{step:.20}" for step in strange[:5])
        faults.append(
            f"{folder / STEPS} has {len(strange)} records of another form, of steps {steps},"
            " left out"
        )
    return whole, faults


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs, and name them by the last part of their paths, or by all of it to tell them apart.

    Raises:
        ValueError: see ``read_run``.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # links keep their names
    short = [path.stem if os.path.isfile(path) else path.name for path in absolute]
    names = [
        name if short.count(name) == 1 else str(path)
        for path, name in zip(paths, short, strict=True)
    ]
    return [read_run(path, _as_text(name)) for path, name in zip(paths, names, strict=True)]


def _as_text(name: str) -> str:
    """Replace bytes of a path that are no UTF-8, which could neither be printed nor drawn."""
    return os.fsencode(name).decode(errors="replace")


def merged(lines: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Collect metrics by step.

    A step that was trained again replaces itself and what came after it; a validation is added.
    """
    steps: dict[int, dict[str, float]] = {}
    order: list[int] = []  # the steps, sorted, so that those from one on are at the end
    for line in lines:
        given = line["data"].items()
        step, data = line["step"], {k: reckoned(v) for k, v in given if is_number(v)}
        while TRAINED in data and order and order[-1] >= step:
            del steps[order.pop()]
        if step not in steps:
            bisect.insort(order, step)
        steps[step] = steps.get(step, {}) | data
    return {step: steps[step] for step in order}


def _find(path: Path, pattern: str) -> list[Path]:
    """Find files in a folder and two more below it, no further: checkpoints are deep and large."""
    if path.is_file():
        return []
    return sorted(
        file
        for depth in ("", "*/", "*/*/")
        for file in path.glob(depth + pattern)
        if file.is_file()
    )


def _logs(path: Path) -> list[Path]:
    return [file for file in _find(path, "*.jsonl") if _starts_as_log(file)]


def _starts_as_log(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        return any(_is_logged(_parsed(line)) for line in islice(lines, FIRST))


def _parsed(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _is_logged(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("data"), dict):
        return False
    return type(line.get("step")) is int and 0 <= line["step"] <= LARGEST


def _parts(files: list[Path], path: Path) -> list[Path]:
    """Sort the files of one run's log: a file, or NAME.jsonl, NAME.2.jsonl, ... of its starts."""

    def key(file: Path) -> tuple[str, int]:
        found = re.fullmatch(r"(.+?)(?:\.(\d+))?\.jsonl", file.name)
        return (str(file.parent / found[1]), int(found[2] or 0)) if found else (str(file), 0)

    groups = [
        list(group) for _, group in groupby(sorted(files, key=key), lambda file: key(file)[0])
    ]
    if len(groups) > 1:
        names = ", ".join(str(group[0]) for group in groups[:4])
        raise ValueError(
            f"{path} holds the logs of {len(groups)} runs ({names}), allowed: one run; name its"
            " file"
        )
    return groups[0] if groups else []


def _only(folders: list[Path], path: Path) -> Path | None:
    if len(folders) > 1:
        names = ", ".join(map(str, folders[:4]))
        raise ValueError(
            f"{path} holds the records of {len(folders)} runs ({names}), allowed: one run"
        )
    return folders[0] if folders else None
