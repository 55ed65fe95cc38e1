"""No response makes ``compute_score`` raise, and its result is what verl logs and dumps."""

import importlib.util
import json
from pathlib import Path

import pytest

from recipe.prune_opd import grading
from recipe.prune_opd.grading import compute_score
from recipe.prune_opd.grading.verdicts import EMPTY, NO_BOX, NO_TRUTH, TOO_LONG, UNCLOSED, UNPARSED

pytest.importorskip("math_verify")


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
DECIDED = [
    # Where one side has no unit, any will do. Two spellings that we do not know are two units.
    (r"\boxed{5\text{ m}}", "5", True),
    (r"\boxed{5\text{ mph}}", r"5\text{ miles per hour}", False),
    # The same with a number's base.
    (r"\boxed{10_3}", "10", True),
    # A space may mean thousands or a missing comma.
    (r"\boxed{5 000}", "5000", False),
    # A list without brackets may be a set or a tuple.
    (r"\boxed{1,2}", r"\{1,2\}", True),
    (r"\boxed{1,2}", "(1,2)", True),
    # A decimal that agrees in six decimals and six digits stands for a number whose own do not end.
    (r"\boxed{0.333333}", r"\frac{1}{3}", True),
    (r"\boxed{3.1415926}", r"\pi", True),
    (r"\boxed{0.33333}", r"\frac{1}{3}", False),
    (r"\boxed{0.001953}", r"\frac{1}{512}", False),
    (r"\boxed{0.00000049}", "0.0000001", False),
    # A percentage equals the bare number.
    (r"\boxed{25}", r"25\%", True),
    # Letters are factors, in any order and in both cases.
    (r"\boxed{BA}", "AB", True),
    (r"\boxed{\pi R^2}", r"\pi r^2", True),
    # \log is to base 10.
    (r"\boxed{\log 2}", r"\ln 2", False),
    # 1/2x is one over 2x.
    (r"\boxed{1/2x}", r"\frac{x}{2}", False),
    # An equation counts for its right side, also where that side is all it says.
    (r"\boxed{2x+3=7}", "7", True),
]
"""What is decided one way where people differ; ``docs/evaluation.md`` says so."""
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


@pytest.mark.parametrize(("response", "truth", "right"), DECIDED)
def test_what_is_decided_one_way(response, truth, right):
    assert grade(response, truth)["acc"] is right


@pytest.mark.parametrize(("response", "reason"), UNREADABLE, ids=lambda text: text[:40])
def test_an_answer_that_cannot_be_read_says_why(response, reason):
    found = grade(response, "5")
    assert (found["score"], found["acc"], found["unread"]) == (0.0, False, reason)
    assert len(found["pred"]) <= grading.SHOWN


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
    assert (grade(r"\boxed{6}", "5")["tokens"], grade(r"\boxed{6}", "5")["truncated"]) == (
        None,
        None,
    )


@pytest.mark.parametrize(
    "odd", ["\x00", "\ud800", "\u202e5", "{", "}", "\\", "%", "$$", "&\\\\&", "５", "😀" * 500]
)
def test_no_text_makes_it_raise(odd):
    for response in (odd, rf"\boxed{{{odd}}}", odd + r"\boxed{5" + odd + "}"):
        for source in ("AIME24", "math_dapo"):
            assert grade(response, "5", source)["score"] in (0.0, 1.0)


@pytest.mark.parametrize("truth", ["", " ", "$$", r"\frac", r"\frac{1}{0}", "???", None])
def test_a_case_without_a_right_answer_is_unread(truth):
    for response in (r"\boxed{5}", r"\boxed{}", "no box"):
        found = grade(response, truth)
        assert (found["score"], found["acc"]) == (0.0, False)
        assert found["unread"] == NO_TRUTH or (truth and response != r"\boxed{5}")


def test_verl_loads_it_by_its_package_path():
    package = importlib.util.find_spec("verl")  # importing verl itself takes half a minute
    if package is None:
        pytest.skip("verl is not installed")
    file = Path(package.origin).parent / "utils" / "import_utils.py"
    spec = importlib.util.spec_from_file_location("import_utils", file)
    imports = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imports)
    assert (
        imports.load_extern_object("pkg://recipe.prune_opd.grading", "compute_score")
        is compute_score
    )
