"""No answer stops grading: comparisons end at their limits, and no process outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recipe.prune_opd.grading import compute_score, graders
from recipe.prune_opd.grading.graders import compare
from recipe.prune_opd.grading.verdicts import TOO_HARD, UNPARSED

pytest.importorskip("math_verify")


def grade(response: str, truth: str, **kwargs) -> dict:
    return compute_score(data_source="AIME24", solution_str=response, ground_truth=truth, **kwargs)


@pytest.mark.parametrize(
    "hostile", ["9^{9^{9^9}}", "1000000000!", r"\sum_{k=1}^{10^9} \frac{1}{k^3}", "(" * 900]
)
def test_a_hard_answer_costs_no_more_than_its_time(hostile):
    start = time.monotonic()
    found = grade(rf"\boxed{{{hostile}}}", "5", seconds=0.5)
    assert found["unread"] in (TOO_HARD, UNPARSED)
    assert time.monotonic() - start < 15, "ten times half a second, and a new process"
    assert grade(r"\boxed{5.0}", "5")["acc"], "the next answer finds a new grader"


def test_threads_share_few_graders():
    """As verl calls it: from threads, where signals would not work."""
    pairs = [(str(n), f"{n + n % 2}.0") for n in range(100)]
    seen = []

    def one(pair):
        seen.append(threading.current_thread() is threading.main_thread())
        return compare(*pair)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, pairs))
    assert found == ["right" if n % 2 == 0 else "wrong" for n in range(100)]
    assert not any(seen)
    assert len(graders._graders(os.getpid()).idle) <= graders.PROCESSES


def test_a_grader_that_has_died_is_replaced():
    compare("1", "1.0")
    for grader in graders._graders(os.getpid()).idle:
        grader.process.send_signal(signal.SIGKILL)
        grader.process.wait()
    assert [compare("1", "1.0") for _ in range(graders.PROCESSES + 1)] == ["right"] * (
        graders.PROCESSES + 1
    )


def test_without_math_verify_it_says_so(monkeypatch):
    monkeypatch.setattr(graders.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="exit code 1"):
        graders._Grader()
    monkeypatch.setattr(graders, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install math-verify"):
        graders._Grader()


def test_graders_end_with_their_parent():
    code = (
        "import os; from recipe.prune_opd.grading import graders as g; g.compare('1', '1.0'); "
        + ("print(g._graders(os.getpid()).idle[0].process.pid, flush=True); os._exit(0)")
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    deadline = time.monotonic() + 20
    while Path(f"/proc/{done.stdout.strip()}/cmdline").exists() and time.monotonic() < deadline:
        if "serve" not in Path(f"/proc/{done.stdout.strip()}/cmdline").read_text():
            return  # a zombie that nobody reaps, or another process with its number
        time.sleep(0.1)
    assert time.monotonic() < deadline
