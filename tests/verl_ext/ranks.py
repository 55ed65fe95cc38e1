"""Two ranks of a test, a process each."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SECONDS = 300
"""Half a minute is enough on idle cores, nearly all of it imports."""


def answers_of(program: Path, folder: Path) -> list[dict[str, Any]]:
    """What two ranks of a program leave in ``answers_RANK.pt`` of a folder, where they meet."""
    logs = _run(
        [[sys.executable, str(program), str(folder), str(rank)] for rank in range(2)], folder
    )
    files = [folder / f"answers_{rank}.pt" for rank in range(2)]
    if not all(file.is_file() for file in files):
        pytest.fail("\n\n".join(log[-3000:] for log in logs))
    return [torch.load(file, weights_only=True) for file in files]


def _run(commands: list[list[str]], folder: Path) -> list[str]:
    """Run side by side; what each printed. None outlives this function, and one that fails ends the
    others."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    logs = [folder / f"log_{i}.txt" for i in range(len(commands))]
    processes = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        command, stdout=file, stderr=subprocess.STDOUT, env=environment
                    )
                )
        deadline = time.monotonic() + SECONDS
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [log.read_text() for log in logs]
