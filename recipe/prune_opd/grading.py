r"""Grades of mathematical answers: a reward function for verl that reads the last ``\boxed{}`` and asks math-verify.

``reward.custom_reward_function.path=pkg://recipe.prune_opd.grading``; ``+recipe=prune_opd_eval`` sets it.

verl calls reward functions in threads of its reward workers, where signals, math-verify's own way to stop, do not work.
So answers are compared in processes of our own, each of which lets the kernel end it when an answer takes too long:
that also stops a huge power inside one C call, and a grader whose parent is gone.
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
from typing import Any

TOKENS, TRUNCATED = "response_tokens", "truncated"
"""Keys of a validation response's ``extra_info``, set by our agent loop: its tokens, and whether the limit cut it."""

SECONDS = 5.0
"""Processor time for one comparison."""
REAL_SECONDS = 10
"""Wall-clock time for one comparison, as a multiple of its processor time: the machine may be busy."""
MEMORY = 4 * 2**30
"""Bytes of address space for one grader."""
PROCESSES = 2
"""Most graders beside one process that grades. verl starts ``reward.num_workers`` such processes, 8 by default."""
LONGEST = 2000
"""Characters of an answer. No ground truth of the paper's data has more than 200."""
SHOWN = 200
"""Characters of an answer that are kept in the result."""

NO_BOX, UNCLOSED, EMPTY, TOO_LONG = "no box", "unclosed box", "empty box", "too long"
UNPARSED, TOO_HARD = "not parsed", "too hard"
UNREAD = (NO_BOX, UNCLOSED, EMPTY, TOO_LONG, UNPARSED, TOO_HARD)
"""Why an answer could not be read. ``too hard``: math-verify ran out of time or memory."""
RIGHT, WRONG = "right", "wrong"

ANSWER_LINES = ("math_dapo",)
"""``data_source`` of prompts that ask for a last line ``Answer: ...`` instead of a box."""

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a brace behind a backslash is a set's, not LaTeX's
ANSWER_LINE = re.compile(r"(?i)\banswer\s*:[ \t*]*([^\n]*)")
PERCENT = re.compile(r"(.+?)\s*\\?%", re.DOTALL)
SCIENTIFIC = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)")
MIXED = re.compile(r"([+-]?\d+)(?:\s|~|\\[ ,;:])+(\d+)\s*/\s*(\d+)")
SEPARATOR = r"(?:\\[,;:! ]|\{,\})"
THOUSANDS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{SEPARATOR}\d{{3}})+(?!\d)")

UNIT = re.compile(r"(.*)\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}\s*(?:\^\s*\{?\s*(\\circ|\d+)\s*\}?)?", re.DOTALL)
"""What comes before a unit that ends an answer, its name, its power."""
NUMBER = re.compile(r"\d|\\pi")
POWERS = {"square": "2", "sq": "2", "sq.": "2", "cubic": "3", "cu": "3", "cu.": "3"}
SYMBOLS = {
    **{"millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m"},
    **{"kilometer": "km", "kilometre": "km", "inch": "in", "inches": "in", "foot": "ft", "feet": "ft", "yard": "yd"},
    **{"mile": "mi", "gram": "g", "kilogram": "kg", "pound": "lb", "liter": "L", "litre": "L", "degree": "°"},
    **{"second": "s", "minute": "min", "hour": "h"},
}
"""Names of units that are as common as their symbols."""

SET = re.compile(r"(?:\\left)?\s*\\\{[^()\[\]]*,[^()\[\]]*\\\}", re.DOTALL)
TUPLE = re.compile(r"(?:\\left)?\s*[(\[][^()\[\]]*,[^()\[\]]*[)\]]", re.DOTALL)
"""A set, and a pair or interval, without others inside: those may be a set of pairs."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    seconds: float = SECONDS,
    **kwargs: Any,
) -> dict[str, Any]:
    """Grade one response, by the interface of ``reward.custom_reward_function``.

    Nothing that a model writes makes it raise.

    Args:
        data_source: the row's field of that name.
        solution_str: the response as text.
        ground_truth: the row's ``reward_model.ground_truth``.
        extra_info: the row's field of that name, with ``TOKENS`` and ``TRUNCATED`` where our agent loop generated it.
        seconds: processor time for the comparison; ``reward.custom_reward_function.reward_kwargs.seconds``.
        **kwargs: what verl passes besides; not used.

    Returns:
        ``score`` 1.0 or 0.0; ``acc`` the same as bool; ``pred`` the answer's first 200 characters; ``unread`` one of
        ``UNREAD`` or ""; ``data_source``, and ``tokens`` and ``truncated`` (None where not known), because verl's
        validation dumps hold nothing of them but what the reward function returns.

    Raises:
        RuntimeError: math-verify is not installed, or no process could be started.
    """
    answer, unread = read_answer(solution_str, data_source)
    if not unread:
        verdict = compare(answer, str(ground_truth), seconds)
        unread = verdict if verdict in UNREAD else ""
        right = verdict == RIGHT
    else:
        right = False
    known = extra_info or {}
    return {
        "score": float(right),
        "acc": right,
        "pred": answer[:SHOWN],
        "unread": unread,
        "data_source": data_source,
        "tokens": known.get(TOKENS),
        "truncated": known.get(TRUNCATED),
    }


def read_answer(response: str, data_source: str = "") -> tuple[str, str]:
    r"""The answer a response gives.

    Args:
        response: text of any length.
        data_source: with one of ``ANSWER_LINES`` the last line ``Answer: ...`` counts before the last box.

    Returns:
        Content of the last ``\boxed{}`` and "", or "" and why there is none.
    """
    if data_source in ANSWER_LINES:
        lines = ANSWER_LINE.findall(response)
        if lines and not BOX.search(lines[-1]):
            return _checked(lines[-1].strip().strip("*").strip().removesuffix("."), EMPTY)
    return last_box(response)


def last_box(text: str) -> tuple[str, str]:
    r"""Content of the last ``\boxed{}`` or ``\fbox{}``, and "" or why it cannot be read. Linear in the text."""
    start = None
    for match in BOX.finditer(text):
        start = match.end()
    if start is None:
        return "", NO_BOX
    depth = 1
    for brace in BRACE.finditer(text, start, start + LONGEST + 1):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return _checked(text[start : brace.start()], EMPTY)
    return "", TOO_LONG if len(text) - start > LONGEST else UNCLOSED


def _checked(answer: str, empty: str) -> tuple[str, str]:
    answer = answer.strip().strip("$").strip()
    if not answer:
        return "", empty
    return ("", TOO_LONG) if len(answer) > LONGEST else (answer, "")


def compare(answer: str, truth: str, seconds: float = SECONDS) -> str:
    """``RIGHT``, ``WRONG``, ``UNPARSED`` or ``TOO_HARD``; safe in threads.

    Raises:
        RuntimeError: math-verify is not installed, or no process could be started.
    """
    if _plain(answer) == _plain(truth):
        return RIGHT  # the same text is the same answer, whether or not math-verify can read it
    return _graders(os.getpid()).ask(answer, truth, seconds)


def _plain(text: str) -> str:
    """Text without dollar signs and white space, but where that keeps apart: ``2 3/4`` is not ``23/4``, nor ``1, 234``
    a number.
    """
    spaced = " ".join(text.replace("$", " ").split())
    return re.sub(r"(?<![\w.])(?<!\d,) | (?![\w.])", "", spaced)


def judge(answer: str, truth: str) -> str:
    """``compare`` by math-verify, without limits of time or memory: runs in a grader."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy import nan, zoo

    latex = LatexExtractionConfig()
    gold = parse(as_latex(truth), (latex,), parsing_timeout=None)
    found = parse(as_latex(answer), (ExprExtractionConfig(), latex), parsing_timeout=None)
    if all(isinstance(expression, str) for expression in found):
        return UNPARSED
    if any(expression in (nan, zoo) for expression in gold):
        return WRONG  # a time as 3:00 reads as a division by 0, which equals any other; only the same text is right
    if other_unit(answer, truth) or set_for_tuple(answer, truth):
        return WRONG
    return RIGHT if verify(gold, found, timeout_seconds=None) else WRONG


def as_latex(answer: str) -> str:
    r"""An answer as math-verify reads it.

    math-verify 0.9.0 cannot parse a percent sign inside a box or formula, but knows one behind it; it takes ``2e3`` for
    a product with Euler's number, and reads neither ``2 3/4`` nor the spaces of ``5\,000``.
    """
    answer = THOUSANDS.sub(lambda number: re.sub(SEPARATOR, "", number[0]), answer)
    mixed = MIXED.fullmatch(answer.strip())
    if mixed:
        answer = rf"{mixed[1]}\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    scientific = SCIENTIFIC.fullmatch(answer)
    if scientific:
        answer = rf"{scientific[1]}\times 10^{{{scientific[2]}}}"
    percent = PERCENT.fullmatch(answer)
    if percent and "%" not in percent[1]:
        return f"${percent[1]}$%"
    return rf"\boxed{{{answer}}}"


def other_unit(answer: str, truth: str) -> bool:
    r"""Whether both end in a unit, ``5\text{ m}``, and in different ones: math-verify drops units."""
    found, right = unit(answer), unit(truth)
    return found != right and "" not in (found, right)


def unit(answer: str) -> str:
    r"""The unit that ends a number, ``cm^2`` for ``5\text{ square centimeters}``; "" where there is none."""
    match = UNIT.fullmatch(answer.strip())
    if not match or not NUMBER.search(match[1]):
        return ""
    words, power = match[2].split(), match[3] or ""
    if len(words) > 1 and words[0].lower() in POWERS:
        power = POWERS[words.pop(0).lower()]
    words = [_symbol(word) for word in words]
    return " ".join(words) + (f"^{power}" if words and power else "")


def _symbol(word: str) -> str:
    if word not in SYMBOLS and len(word) > 4 and word.endswith("s"):
        word = word.removesuffix("s")
    return SYMBOLS.get(word, word)


def set_for_tuple(answer: str, truth: str) -> bool:
    r"""Whether one is a set ``\{1,2\}`` and the other a pair or interval ``(1,2)``: math-verify takes them for one."""
    one, other = answer.replace(r"\right", "").strip(), truth.replace(r"\right", "").strip()
    return any(SET.fullmatch(a) and TUPLE.fullmatch(b) for a, b in ((one, other), (other, one)))


class _Grader:
    """A process that compares, one pair at a time."""

    def __init__(self) -> None:
        code = f"from {__name__} import serve; serve()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
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
                f"exit code {self.process.wait()}" if installed else "math-verify is missing: pip install math-verify"
            )
            raise RuntimeError(f"no grader could be started, {reason}")

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, answer: str, truth: str, seconds: float) -> str | None:
        """Verdict; "" if the process has died over it, None if it had died before."""
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
    """The graders of this process: a fork must not share its parent's pipes."""
    return _Graders()


def serve() -> None:
    """Main loop of a grader: a JSON line ``[answer, truth, seconds]`` in, a verdict out.

    The timers' signals keep their default action, which is to end the process.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no verdict
    judge("1", "2")  # imports and the first use of the parser take a second, which no answer should pay for
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
