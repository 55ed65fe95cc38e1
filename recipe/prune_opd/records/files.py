"""Files that a run writes beside verl's logs: a line per step, and now and then some responses
token by token.

The folder holds ``steps.jsonl``, appended to after every step, and ``samples/step_N.jsonl.gz``. A
run may be killed at any moment and goes on in the same folder when it is resumed;
``docs/records.md`` says what the values mean.
"""

import gzip
import json
import os
import zlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from verl_ext.files import parse_json, replaced

STEPS, SAMPLES = "steps.jsonl", "samples"


class Records:
    """Writes the records of one run.

    Args:
        folder: made when something is written, if it does not exist.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def step(self, number: int, record: dict[str, Any]) -> None:
        """Append a step; it is in the file, not in a buffer of this process, when this returns.

        Raises:
            OSError: the folder or the file cannot be written.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = _line({"step": number, "time": now, **record})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / STEPS).open("ab+") as steps:
            if _is_torn(steps):  # by a kill or a full disk: ours is not to be a part of that line
                steps.write(b"\n")
            steps.write(line.encode())

    def samples(self, number: int, responses: list[dict[str, Any]]) -> None:
        """Write a step's samples; those of the same step from before a resume go, and half a file
        is never seen.

        Raises:
            OSError: the folder or the file cannot be written.
        """
        file = samples_file(self.folder, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as partial, gzip.open(partial, "wt", encoding="utf-8") as lines:
            lines.writelines(map(_line, responses))


def _is_torn(file: BinaryIO) -> bool:
    """Tell whether a file's last line has no end."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"


def samples_file(folder: Path, step: int) -> Path:
    """Path of a step's sampled responses."""
    return folder / SAMPLES / f"step_{step}.jsonl.gz"


def read_lines(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Objects of a file with one per line, and a sentence about each line that is none.

    A run that is killed leaves half a line. It is the last one, or a resumed run wrote on after it.
    """
    found, faults = [], []
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                found.append(record)
            else:
                faults.append(
                    f"{file}, line {number} is no JSON object and was skipped (half a line of a"
                    " killed run?)"
                )
    return found, faults


def rewound(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records in the order of their steps, as of a run that was never interrupted.

    A step that is not after the one before it is one that a resumed run did again: from there on,
    what had been written before is of steps that the run no longer stands on, and goes.
    """
    course: list[dict[str, Any]] = []
    for record in records:
        while course and course[-1]["step"] >= record["step"]:
            course.pop()
        course.append(record)
    return course


def read_steps(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Records of a run's steps, and what was wrong with the file, see ``read_lines`` and
    ``rewound``."""
    records, faults = read_lines(folder / STEPS)
    return (
        rewound(
            [
                record
                for record in records
                if type(record.get("step")) is int and "positions" in record
            ]
        ),
        faults,
    )


def read_samples(folder: Path, step: int) -> list[dict[str, Any]]:
    """Responses of a step that were kept token by token; none if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    file = samples_file(folder, step)
    if not file.is_file():
        return []
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return [parse_json(line) for line in lines]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); allowed: a file that a run wrote, or none"
        ) from error


def sampled_steps(folder: Path) -> list[int]:
    """Steps of which there are samples, in order."""
    names = [
        file.name.removesuffix(".jsonl.gz") for file in (folder / SAMPLES).glob("step_*.jsonl.gz")
    ]
    numbers = [name.removeprefix("step_") for name in names]
    return sorted(int(number) for number in numbers if number.isdecimal())
