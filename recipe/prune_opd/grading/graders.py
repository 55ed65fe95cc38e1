"""Processes that compare answers, with limits of time and memory.

verl calls reward functions in threads of its reward workers, where signals, math-verify's own way
to stop, do not work. So answers are compared in processes of our own, each of which lets the kernel
end it when an answer takes too long: that also stops a huge power inside one C call, and a grader
whose parent is gone. They are programs started anew. The pools of libraries fork, which copies
verl's threads, or spawn, which runs the caller's main module again and breaks under verl.
"""

import contextlib
import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec

from recipe.prune_opd.grading.verdicts import RIGHT, TOO_HARD, UNPARSED

SECONDS = 5.0
"""Processor time for one comparison."""
REAL_SECONDS = 10
"""Wall-clock limit as a multiple of processor time: the machine may be busy."""
MEMORY = 4 * 2**30
"""Bytes of address space for one grader."""
FIRST = ((r"\frac{1}{2}", "0.3"), (r"2\sqrt{3}+1", r"2\sqrt{3}-\pi"), ("(1,2)", "(x^2,3)"))
"""Pairs that a grader compares before any other."""
PROCESSES = 2
"""Graders beside one process that grades, at most; verl starts ``reward.num_workers`` of those."""


def compare(answer: str, truth: str, seconds: float = SECONDS) -> str:
    """Compare an answer with the ground truth; safe in threads.

    Returns:
        ``RIGHT``, ``WRONG``, ``UNPARSED``, ``NO_TRUTH`` or ``TOO_HARD``.

    Raises:
        RuntimeError: math-verify is not installed, or no process could be started.
    """
    if _plain(answer) == _plain(truth):
        return RIGHT  # the same text is the same answer, whether or not math-verify can read it
    return _graders(os.getpid()).ask(answer, truth, seconds)


def _plain(text: str) -> str:
    """Text without dollar signs and needless white space: ``2 3/4`` is not ``23/4``."""
    spaced = " ".join(text.replace("$", " ").split())
    return re.sub(r"(?<![\w.])(?<!\d,) | (?![\w.])", "", spaced)


class _Grader:
    """A process that compares, one pair at a time."""

    def __init__(self) -> None:
        code = f"from {__name__} import serve; serve()"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if not self._read():
            installed = find_spec("math_verify") is not None
            reason = (
                f"exit code {self.process.wait()}"
                if installed
                else "math-verify is missing: pip install math-verify"
            )
            raise RuntimeError(f"no grader could be started, {reason}")

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, answer: str, truth: str, seconds: float) -> str | None:
        """Ask for the verdict; "" if the process died over it, None if it had died before."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([answer, truth, seconds]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._read()
        return json.loads(line) if line.endswith("\n") else ""

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.process.wait()


class _Graders:
    """Up to ``PROCESSES`` graders, started when needed, shared by all threads."""

    def __init__(self) -> None:
        self.free = threading.BoundedSemaphore(PROCESSES)
        self.idle: list[_Grader] = []  # append and pop are atomic

    def ask(self, answer: str, truth: str, seconds: float) -> str:
        """See ``compare``."""
        with self.free:
            try:
                grader = self.idle.pop()
            except IndexError:
                grader = _Grader()
            verdict = grader.ask(answer, truth, seconds)
            if verdict is None:  # it died while idle, which says nothing about the answer
                grader.close()
                grader = _Grader()
                verdict = grader.ask(answer, truth, seconds)
            if verdict:
                self.idle.append(grader)
            else:
                grader.close()
            return verdict or TOO_HARD


@functools.cache
def _graders(pid: int) -> _Graders:
    """Graders of this process: a fork must not share its parent's pipes."""
    return _Graders()


def serve() -> None:
    """Serve as a grader: a JSON line ``[answer, truth, seconds]`` in, a verdict out.

    The timers' signals keep their default action, which is to end the process.
    """
    from recipe.prune_opd.grading.judging import judge

    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no verdict
    # Imports and first uses of the parser take a second, which no answer should pay for.
    for pair in FIRST:
        judge(*pair)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", file=channel, flush=True)
    for line in sys.stdin:
        answer, truth, seconds = json.loads(line)
        _set_timers(seconds)
        try:
            verdict = judge(answer, truth)
        except (MemoryError, RecursionError):
            verdict = TOO_HARD
        except Exception:  # from deep inside sympy, of any kind
            verdict = UNPARSED
        _set_timers(0)
        print(json.dumps(verdict), file=channel, flush=True)


def _set_timers(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, REAL_SECONDS * seconds)
