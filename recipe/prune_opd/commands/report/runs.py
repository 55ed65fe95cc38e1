"""What training runs left behind, read: the file of verl's logger, which any run has, and our
records.

A step of a ``Run`` is a training step, counted from 1; step 0 is what was validated before
training.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable, lfs_pointer
from recipe.prune_opd.records.files import (
    STEPS,
    read_lines,
    read_samples,
    read_steps,
    sampled_steps,
    samples_file,
)

TRAINED = "training/global_step"
"""What verl logs with a training step, and not with a validation alone."""


@dataclass(frozen=True)
class Run:
    """One run, maybe interrupted and resumed."""

    name: str
    logged: dict[int, dict[str, float]]
    """Step -> metrics of verl's logger."""
    recorded: dict[int, dict[str, Any]]
    """Step -> record. Empty for a run without records."""
    records: Path | None
    """Folder of the records."""
    faults: tuple[str, ...]
    """What could not be read, in sentences."""

    def metric(self, name: str) -> dict[int, float]:
        """Step -> value of a logged metric, where it was logged."""
        return {step: metrics[name] for step, metrics in self.logged.items() if name in metrics}

    def record(self, *path: str) -> dict[int, float]:
        """Step -> value of a record under nested keys, where there is one."""
        found = {}
        for step, record in self.recorded.items():
            value: Any = record
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if _is_number(value):
                found[step] = value
        return found

    @property
    def last(self) -> int:
        """Number of the last training step; 0 if there was none."""
        trained = [step for step, metrics in self.logged.items() if TRAINED in metrics]
        return max([*trained, *self.recorded], default=0)

    def accuracies(self) -> dict[str, dict[int, float]]:
        """Benchmark -> step -> Avg@N of verl's validation."""
        names = sorted(
            {
                name
                for metrics in self.logged.values()
                for name in metrics
                if re.search(ACCURACY, name)
            }
        )
        return {re.search(ACCURACY, name)[1]: self.metric(name) for name in names}  # type: ignore[index]

    def generated(self) -> dict[int, float]:
        """Step -> tokens that the rollout generated for training.

        Of a run without records: what its metrics say; for another recipe's the share of the
        responses in all tokens, which is exact but for padding rows.
        """
        found = {}
        for step, metrics in self.logged.items():
            if "prune_opd/generated_tokens" in metrics:
                overshoot = metrics.get("prune_opd/gate/overshoot_tokens", 0)
                found[step] = metrics["prune_opd/generated_tokens"] + overshoot
            elif TOKENS.keys() <= metrics.keys():
                total, response, prompt = (metrics[name] for name in TOKENS)
                found[step] = total * response / max(response + prompt, 1)
        return found | self.record("tokens", "generated")

    def along(self, axis: str) -> dict[int, float]:
        """Step -> where it ends on an axis of ``AXES``: its number, tokens generated or hours
        trained until then.

        Empty where that cannot be known, because steps are missing at the beginning; up to the
        first one missing later.
        """
        steps = {0, *self.logged, *self.recorded}
        if axis == "step":
            return {step: float(step) for step in steps}
        each = self.generated() if axis == "tokens" else self.metric("timing_s/step")
        scale = 1e6 if axis == "tokens" else 3600.0
        course, total = {0: 0.0}, 0.0
        for step in range(1, self.last + 1):
            if not math.isfinite(each.get(step, math.nan)):
                break
            total += each[step]
            course[step] = total / scale
        return course if len(course) > 1 else {}

    def sampled(self) -> list[int]:
        """Steps whose tokens were kept; those that a run of before left in the folder are none of
        this run's."""
        return (
            [step for step in sampled_steps(self.records) if step in self.recorded]
            if self.records
            else []
        )

    def samples(self, step: int) -> list[dict[str, Any]]:
        """Responses of a step, token by token.

        Raises:
            ValueError: their file is damaged, or holds something else.
        """
        if not self.records or step not in self.sampled():
            return []
        file = samples_file(self.records, step)
        check_readable("", file, "samples of a run")
        samples = read_samples(self.records, step)
        for number, sample in enumerate(samples, 1):
            if not _is_sample(sample):
                raise ValueError(
                    f"{file}, line {number} is no sample of a run, allowed: lines that a run wrote"
                )
        return samples


PER_TOKEN = (
    "tokens",
    "overlap",
    "weight",
    "student_ids",
    "student_log_probs",
    "teacher_ids",
    "teacher_log_probs",
)
"""Lists of a sample with an entry per token."""
PER_SAMPLE = ("limit", "effective_length", "stopped", "ended", "prompt", "events", "pieces")
ACCURACY = r"^val-core/(.+)/[^/]+/mean@\d+$"
TOKENS = dict.fromkeys(("perf/total_num_tokens", "response_length/mean", "prompt_length/mean"))
AXES = {"step": "step", "tokens": "tokens generated, millions", "hours": "hours of training"}
"""What runs can be aligned by -> its label."""


def read_run(path: Path, name: str) -> Run:
    """A run out of a folder, or out of one file of verl's logger.

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
    recorded, wrong = _read_records(records) if records else ({}, [])
    run = Run(name, merged(lines), recorded, records, (*faults, *wrong))
    if not run.logged and not run.recorded:
        raise ValueError(
            f"{path} holds the log of a run that has not finished a step, allowed: one that has"
        )
    return run


def _read_records(folder: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Records by step, and what was wrong with their file."""
    check_readable("", folder / STEPS, "records of a run")
    found, faults = read_steps(folder)
    whole = {record["step"]: record for record in found if _is_record(record)}
    strange = [str(record["step"]) for record in found if not _is_record(record)]
    if strange:
        steps = ", ".join(strange[:5])
        faults.append(
            f"{folder / STEPS} has {len(strange)} records of another form, of steps {steps},"
            " left out"
        )
    return whole, faults


def _is_record(record: dict[str, Any]) -> bool:
    where = record["positions"]
    if (
        record["step"] < 1
        or not isinstance(where, dict)
        or not isinstance(where.get("edges"), list)
    ):
        return False
    buckets = max(len(where["edges"]) - 1, 0)
    return all(
        isinstance(where.get(name), list)
        and len(where[name]) == buckets
        and all(value is None or _is_number(value) for value in where[name])
        for name in ("tokens", "overlap", "events", "weight", "student_entropy", "teacher_entropy")
    )


def _is_sample(sample: Any) -> bool:
    if not isinstance(sample, dict) or not sample.keys() >= {*PER_TOKEN, *PER_SAMPLE}:
        return False
    lists = [sample[name] for name in PER_TOKEN]
    alike = all(isinstance(values, list) and len(values) == len(lists[0]) for values in lists)
    pieces = sample["pieces"]
    return (
        alike
        and isinstance(pieces, dict)
        and all(str(token) in pieces for token in sample["tokens"])
    )


def read_runs(paths: list[Path]) -> list[Run]:
    """Runs under names that tell them apart: the last part of their paths, or all of it where that
    is the same.

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
    """Bytes of a path that are no UTF-8 could neither be printed nor drawn."""
    return os.fsencode(name).decode(errors="replace")


def merged(lines: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Metrics by step. A step that was trained again replaces itself and what came after it; a
    validation is added."""
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        step, data = line["step"], {k: v for k, v in line["data"].items() if _is_number(v)}
        if TRAINED in data:
            steps = {number: metrics for number, metrics in steps.items() if number < step}
        steps[step] = steps.get(step, {}) | data
    return dict(sorted(steps.items()))


def _find(path: Path, pattern: str) -> list[Path]:
    """Files of a run's folder and of two levels of folders below it: no further, checkpoints are
    deep and large."""
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
    with file.open(encoding="utf-8", errors="replace") as lines:
        line = lines.readline()
    try:
        return _is_logged(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _is_logged(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("data"), dict):
        return False
    return isinstance(line.get("step"), int) and line["step"] >= 0


def _is_number(value: Any) -> bool:
    """Whether it can be reckoned with: NaN can, as a gap in a curve; a whole number of 400 digits
    cannot."""
    return isinstance(value, (int, float)) and not abs(value) > 1e300


def _parts(files: list[Path], path: Path) -> list[Path]:
    """The log of one run: a file, or NAME.jsonl, NAME.2.jsonl, ... of its starts."""

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
