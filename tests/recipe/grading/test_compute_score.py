"""Grades: ground truths against themselves, near misses, hostile answers, and the processes that compare."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recipe.prune_opd import grading
from recipe.prune_opd.grading import (
    EMPTY,
    NO_BOX,
    TOO_HARD,
    TOO_LONG,
    UNCLOSED,
    UNPARSED,
    compare,
    compute_score,
    judge,
    last_box,
)

pytest.importorskip("math_verify")
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FILES = ("aime24", "aime25", "amc23", "hmmt24", "hmmt25", "math_500", "dapo_math_17k")


def grade(response: str, truth: str, source: str = "AIME24", **kwargs) -> dict:
    return compute_score(data_source=source, solution_str=response, ground_truth=truth, **kwargs)


RIGHT = [
    (r"\boxed{+5}", "5"),
    (r"\boxed{025}", "25"),
    (r"\boxed{25}", "025"),
    (r"\boxed{142}", "142.0"),
    (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}"),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}"),
    (r"\boxed{1/2}", r"\frac{1}{2}"),
    (r"\boxed{0.5}", r"\frac{1}{2}"),
    (r"\boxed{1\frac{1}{2}}", r"\frac{3}{2}"),
    (r"\boxed{\frac{1}{-2}}", r"-\frac{1}{2}"),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{5 \text{ cm}^2}", "5"),
    (r"\boxed{\$12.50}", "12.5"),
    (r"\boxed{12{,}500}", "12500"),
    (r"\boxed{12,500}", "12500"),
    (r"\boxed{90}", r"90^\circ"),
    (r"\boxed{25\%}", "0.25"),
    (r"\boxed{0.125}", r"12.5\%"),
    (r"\boxed{2e3}", "2000"),
    (r"\boxed{2.5E-3}", "0.0025"),
    (r"\boxed{2\times 10^{3}}", "2000"),
    (r"\boxed{2, 1}", "1, 2"),
    (r"\boxed{\{2, 1\}}", r"\{1, 2\}"),
    (r"\boxed{\pm 2}", "2, -2"),
    (r"\boxed{i\sqrt{6}, 0, -i\sqrt{6}}", r"0,i\sqrt{6},-i\sqrt{6}"),
    (r"\boxed{(3,\infty)\cup(-\infty,2)}", r"(-\infty,2)\cup(3,\infty)"),
    (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\boxed{\text{evelyn}}", r"\text{Evelyn}"),
    (r"\boxed{Evelyn}", r"\text{Evelyn}"),
    (r"\boxed{\text{(C)}}", r"\text{C}"),
    (r"\boxed{3:00}", "3:00"),
    (r"first \boxed{4}, then I see it: \boxed{5}", "5"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{{{{{5}}}}}", "5"),
    (r"\fbox{5}", "5"),
    (r"\boxed {$5$}", "5"),
    (r"\boxed{2 3/4}", r"2\frac{3}{4}"),
    (r"\boxed{2\ 3/4}", "11/4"),
    (r"\boxed{2.75}", "2 3/4"),
    (r"\boxed{-2 3/4}", r"-\frac{11}{4}"),
    (r"\boxed{1 / 2 + x}", "1/2+x"),
    (r"\boxed{(1, 2)}", "(1,2)"),
    (r"\boxed{\frac 34}", r"\frac34"),
    (r"\boxed{5\,000}", "5000"),
    (r"\boxed{5\;000}", "5000"),
    (r"\boxed{5\ 000}", "5000"),
    (r"\boxed{5\!000}", "5000"),
    (r"\boxed{5{,}000}", "5000"),
    (r"\boxed{5000}", r"5\,000"),
    (r"\boxed{(1\,000, 12\,345\,678)}", "(1000,12345678)"),
    (r"\boxed{5\text{ m}}", r"5\,\mathrm{m}"),
    (r"\boxed{5\text{ miles  per hour}}", r"5\text{ mile per hour}"),
    (r"\boxed{864 \text{ square inches}}", r"864 \mbox{ inches}^2"),
    (r"\boxed{15 \mathrm{ cm}^{2}}", r"15\mbox{ cm}^2"),
    (r"\boxed{15 \text{ centimeters}^2}", r"15\mbox{ cm}^2"),
    (r"\boxed{\{(1,2),(3,4)\}}", "(1,2),(3,4)"),
    ("x" * 10**6 + r" \boxed{5}", "5"),
]
WRONG = [
    (r"\boxed{-5}", "5"),
    (r"\boxed{50}", "5"),
    (r"\boxed{5.1}", "5"),
    (r"\boxed{5,1}", "5"),
    (r"\boxed{-\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{2\sqrt{3}}", r"2\sqrt{2}"),
    (r"\boxed{2.828}", r"2\sqrt{2}"),
    (r"\boxed{3.14}", r"\pi"),
    (r"\boxed{q - p}", "p - q"),
    (r"\boxed{(x-1)^2}", "x^2+2x+1"),
    (r"\boxed{x = 6}", "5"),
    (r"\boxed{0.25}", "25"),
    (r"\boxed{26\%}", "0.25"),
    (r"\boxed{2e3}", "2001"),
    (r"\boxed{2\times 10^{-3}}", "2000"),
    (r"\boxed{(1,2)}", "[1,2]"),
    (r"\boxed{[1,2)}", "(1,2]"),
    (r"\boxed{(2,1)}", "(1,2)"),
    (r"\boxed{\{1,2,3\}}", r"\{1,2\}"),
    (r"\boxed{1}", "1, 2"),
    (r"\boxed{2}", r"\pm 2"),
    (r"\boxed{42 \text{ or } 43}", "42"),
    (r"\boxed{(-\infty,2]\cup(3,\infty)}", r"(-\infty,2)\cup(3,\infty)"),
    (r"\boxed{\left(3, \frac{\pi}{3}\right)}", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\boxed{\begin{pmatrix}1&3\\2&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\boxed{\text{Angela}}", r"\text{Evelyn}"),
    (r"\boxed{\text{odd}}", r"\text{even}"),
    (r"\boxed{D}", "C"),
    (r"\boxed{1011_2}", "1101_2"),
    (r"\boxed{-\infty}", r"\infty"),
    (r"\boxed{4:00}", "3:00"),  # both a division by 0
    (r"\boxed{5}, no, \boxed{4}", "5"),
    (r"\boxed{2 3/4}", "23/4"),
    (r"\boxed{23/4}", "2 3/4"),
    (r"\boxed{2 3/4}", "5/4"),
    (r"\boxed{1 2}", "12"),
    (r"\boxed{1$ $2}", "12"),
    (r"\boxed{3^2 1}", "3^21"),
    (r"\boxed{1. 5}", "1.5"),
    (r"\boxed{1, 234}", "1,234"),
    (r"\boxed{5\,000}", "5"),
    (r"\boxed{5\,00}", "500"),
    (r"\boxed{5\text{ m}}", r"5\text{ cm}"),
    (r"\boxed{5\text{ M}}", r"5\text{ m}"),
    (r"\boxed{15\text{ cm}^3}", r"15\mbox{ cm}^2"),
    (r"\boxed{20^\circ\text{C}}", r"20^\circ\text{F}"),
    (r"\boxed{\{1,2\}}", "(1,2)"),
    (r"\boxed{\left[1,2\right]}", r"\left\{1,2\right\}"),
    (r"\boxed{(1,2,3)}", r"\{1,2,3\}"),
    (r"\boxed{100000000000000000001}", "100000000000000000000"),
]
MISSES = [
    # math-verify drops units: where one side has none, any will do. Two spellings that we do not know are two units.
    (r"\boxed{5\text{ m}}", "5", True),
    (r"\boxed{5\text{ mph}}", r"5\text{ miles per hour}", False),
    # It drops a number's base, unless the ground truth has another value.
    (r"\boxed{10_3}", "10", True),
    # In plain text a space may mean thousands or a missing comma.
    (r"\boxed{5 000}", "5000", False),
    # An open interval and a pair look alike to it, and so do a set and a list.
    (r"\boxed{1,2}", r"\{1,2\}", True),
    # Floats are equal to six decimals, however small they are, and a percentage equals the bare number.
    (r"\boxed{0.00000049}", "0.0000001", True),
    (r"\boxed{0.333333}", r"\frac{1}{3}", True),
    (r"\boxed{25}", r"25\%", True),
    # Letters are factors, in any order.
    (r"\boxed{BA}", "AB", True),
    # It takes degrees for numbers, and the i of an exponent for a variable.
    (r"\boxed{\sin 30^\circ}", r"\frac{1}{2}", False),
    (r"\boxed{\frac{\pi}{2}}", r"90^\circ", False),
    (r"\boxed{e^{i\pi}}", "-1", False),
    # An inequality is no interval, unless the ground truth is the inequality.
    (r"\boxed{x<2}", r"(-\infty,2)", False),
]
"""What comes out wrong or is decided one way where people differ: as it is, so that a new version shows."""
UNREADABLE = [
    ("The answer is 5.", NO_BOX),
    ("", NO_BOX),
    (r"\boxed 5", NO_BOX),
    (r"so \boxed{\frac{1}{2", UNCLOSED),
    (r"\boxed{5}, no: \boxed{6", UNCLOSED),
    (r"\boxed{" * 100_000, UNCLOSED),
    (r"\boxed{}", EMPTY),
    (r"\boxed{ $ $ }", EMPTY),
    (r"\boxed{" + "7" * 10**6 + "}", TOO_LONG),
    (r"\boxed{" + "7" * 10**6, TOO_LONG),
    (r"\boxed{\frac}", UNPARSED),
    (r"\boxed{\left\{1\right.}", UNPARSED),
]


@pytest.mark.parametrize(("response", "truth"), RIGHT, ids=lambda text: text[:40])
def test_right_answers_are_right(response, truth):
    found = grade(response, truth)
    assert (found["score"], found["acc"], found["unread"]) == (1.0, True, "")


@pytest.mark.parametrize(("response", "truth"), WRONG, ids=lambda text: text[:40])
def test_near_misses_are_wrong(response, truth):
    found = grade(response, truth)
    assert (found["score"], found["acc"], found["unread"]) == (0.0, False, "")


@pytest.mark.parametrize(("response", "truth", "right"), MISSES)
def test_what_math_verify_is_known_to_decide(response, truth, right):
    assert grade(response, truth)["acc"] is right


@pytest.mark.parametrize(("response", "reason"), UNREADABLE, ids=lambda text: text[:40])
def test_an_answer_that_cannot_be_read_says_why(response, reason):
    found = grade(response, "5")
    assert (found["score"], found["acc"], found["unread"]) == (0.0, False, reason)
    assert len(found["pred"]) <= grading.SHOWN


@pytest.mark.parametrize("name", FILES)
def test_every_ground_truth_is_right(name):
    file = DATA / f"{name}.parquet"
    if not file.is_file():
        pytest.skip(f"{name}.parquet is not beside the repository, in ../shared/data")
    from pyarrow import parquet

    truths = sorted({row["ground_truth"] for row in parquet.read_table(file)["reward_model"].to_pylist()})
    # judge, because compare takes the same text without asking math-verify
    assert [truth for truth in truths if judge(truth, truth) != "right"] == []
    assert [truth for truth in truths if last_box(rf"so \boxed{{{truth}}}.") != (truth.strip(), "")] == []


def test_the_box_ends_at_its_own_brace():
    assert last_box(r"\boxed{\frac{1}{\{2\}}} and } more") == (r"\frac{1}{\{2\}}", "")
    assert last_box(r"\boxed{\left\{ x \right.}") == (r"\left\{ x \right.", ""), "a set's brace is not LaTeX's"


@pytest.mark.parametrize(
    ("response", "truth"),
    [
        ("Answer: 34", "34"),
        ("so\nAnswer: $34$.\n", "34"),
        ("Answer: 33\nno,\n**Answer:** 34", "34"),
        (r"Answer: \boxed{34}", "34"),
        (r"\boxed{34}", "34"),
    ],
)
def test_dapo_asks_for_a_last_line(response, truth):
    assert grade(response, truth, "math_dapo")["acc"]
    assert grade(response, truth)["acc"] is ("boxed" in response)


def test_an_empty_last_line_is_unread():
    assert grade("Answer:\n", "34", "math_dapo")["unread"] == EMPTY


def test_the_result_is_what_verl_logs_and_dumps():
    extra = {grading.TOKENS: 7, grading.TRUNCATED: False, "num_turns": 2}
    found = grade(r"\boxed{6}", "5", extra_info=extra, reward_router_address=None)
    assert found == {
        "score": 0.0,
        "acc": False,
        "pred": "6",
        "unread": "",
        "data_source": "AIME24",
        "tokens": 7,
        "truncated": False,
    }
    assert json.loads(json.dumps(found)) == found
    assert (grade(r"\boxed{6}", "5")["tokens"], grade(r"\boxed{6}", "5")["truncated"]) == (None, None)


@pytest.mark.parametrize("hostile", ["9^{9^{9^9}}", "1000000000!", r"\sum_{k=1}^{10^9} \frac{1}{k^3}", "(" * 900])
def test_a_hard_answer_costs_no_more_than_its_time(hostile):
    start = time.monotonic()
    found = grade(rf"\boxed{{{hostile}}}", "5", seconds=0.5)
    assert found["unread"] in (TOO_HARD, UNPARSED)
    assert time.monotonic() - start < 15, "ten times half a second, and a new process"
    assert grade(r"\boxed{5.0}", "5")["acc"], "the next answer finds a new grader"


@pytest.mark.parametrize("odd", ["\x00", "\ud800", "\u202e5", "{", "}", "\\", "%", "$$", "&\\\\&", "５", "😀" * 500])
def test_no_text_makes_it_raise(odd):
    for response in (odd, rf"\boxed{{{odd}}}", odd + r"\boxed{5" + odd + "}"):
        for source in ("AIME24", "math_dapo"):
            assert grade(response, "5", source)["score"] in (0.0, 1.0)


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
    assert len(grading._graders(os.getpid()).idle) <= grading.PROCESSES


def test_a_grader_that_has_died_is_replaced():
    compare("1", "1.0")
    for grader in grading._graders(os.getpid()).idle:
        grader.process.send_signal(signal.SIGKILL)
        grader.process.wait()
    assert [compare("1", "1.0") for _ in range(grading.PROCESSES + 1)] == ["right"] * (grading.PROCESSES + 1)


@pytest.mark.parametrize(
    ("answer", "unit"),
    [
        (r"5\text{ m}", "m"),
        (r"5\text{ cm}^{2}", "cm^2"),
        (r"\frac{270}7\text{ degrees}", "°"),
        (r"5\text{ sq. feet}", "ft^2"),
        (r"\pi\,\mathrm{gas}", "gas"),  # no plural
        (r"5\text{}^2", ""),
        (r"\text{(C)}", ""),
        (r"x = \text{odd}", ""),
        (r"42\text{ or }43", ""),
    ],
)
def test_units_by_hand(answer, unit):
    assert grading.unit(answer) == unit


def test_without_math_verify_it_says_so(monkeypatch):
    monkeypatch.setattr(grading.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="exit code 1"):
        grading._Grader()
    monkeypatch.setattr(grading, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install math-verify"):
        grading._Grader()


def test_graders_end_with_their_parent():
    code = "import os; from recipe.prune_opd import grading as g; g.compare('1', '1.0'); " + (
        "print(g._graders(os.getpid()).idle[0].process.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{done.stdout.strip()}/cmdline").exists() and time.monotonic() < deadline:
        if "serve" not in Path(f"/proc/{done.stdout.strip()}/cmdline").read_text():
            return  # a zombie that nobody reaps, or another process with its number
        time.sleep(0.1)
    assert time.monotonic() < deadline
