"""Time and memory of small pieces of work, on machines that others use too."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path

import torch

Work = Callable[[], object]


def seconds(work: Work, device: str) -> float:
    """Seconds of this process's own computing, which others on the machine do not lengthen much;
    on a GPU those until it has finished."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(
    works: Mapping[str, Callable[[], Work]], device: str, rounds: int
) -> dict[str, tuple[float, float]]:
    """Median and least seconds of several works, in turn, so that a disturbance meets them all.

    Args:
        works: name -> function that prepares the work, which is not timed, and returns it.
        device: "cpu" or "cuda".
        rounds: of all works, after one that is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, prepare in works.items():
            found[name].append(seconds(prepare(), device))
    return {name: (statistics.median(all_[1:]), min(all_[1:])) for name, all_ in found.items()}


def allocations(work: Work) -> list[int]:
    """Bytes of every allocation of torch's, and, negative, of every release, in order; CPU."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]


def peak_bytes(work: Work, device: str) -> int:
    """Most bytes held at once beyond those at the beginning."""
    if device == "cpu":
        return max(accumulate(allocations(work)), default=0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
