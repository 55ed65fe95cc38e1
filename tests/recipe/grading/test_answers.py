"""An answer is found in a response wherever models put it, or the grade says why not."""

import time

import pytest

from recipe.prune_opd.grading.answers import last_box, read_answer
from recipe.prune_opd.grading.judging import judge
from recipe.prune_opd.grading.verdicts import EMPTY, NO_BOX, RIGHT, UNCLOSED

LINES = [
    ("Answer: 34", "34"),
    ("**Final Answer:** 34", "34"),
    ("**Final Answer**: 34", "34"),
    ("### Final Answer: 34", "34"),
    ("The final answer is: $34$", "34"),
    ("The answer is 34.", "34"),
    (r"so the answer is $\boxed{34}$", "34"),
    (r"Answer: \boxed{34}.", "34"),
    (r"Answer: $\boxed{34}$.", "34"),
    (r"Answer: \(34\).", "34"),
    ("Answer:\n34", "34"),
    ("Answer:\n\n$$34$$", "34"),
    ("**Answer:**\n\\[\n34\n\\]", "34"),
    ("ANSWER: 34", "34"),
    ("answer: 34", "34"),
    ("Answer = 34", "34"),
    ("- Answer: 34", "34"),
    ("> **Answer: 34**", "34"),
    ("$Answer: 34$", "34"),
    (r"$\text{Answer: } 34$", "34"),
    (r"\text{Answer: 34}", "34"),
    ("Answer: **34**", "34"),
    ("Answer: 34<|endoftext|>", "34"),
    ("Answer: 34</s>", "34"),
    ("Answer: 34\n</answer>", "34"),
    ("<answer>34</answer>\nAnswer: 34", "34"),
    ("Answer: 34. This follows from above.", "34"),
    ("Answer: 34 (as shown above)", "34"),
    ("Answer: 34 because of symmetry", "34"),
    ("Answer: x = 34", "34"),
    ("Answer: m + n = 34", "34"),
    ("Answer: The answer is 34", "34"),
    ("Answer: 1,234", "1234"),
    ("Answer: $1{,}234$", "1234"),
    ("Answer: -5", "-5"),
    ("Answer: 33\nAnswer: 34", "34"),
    ("Answer: 34\n\nLet me double check the answer: yes it holds.", "34"),
    ("My answer: 34", "34"),
    ("Answer : 34", "34"),
    ("Answer:34", "34"),
    ("答案 Answer： 34。", "34"),
    ('Answer: "34"', "34"),
    ("Answer: 34\\", "34"),
    ("**Answer:** **34**", "34"),
    (r"Answer: 34 \quad", "34"),
    (r"Answer: 34\%", "34"),
]
OTHER_LINES = [
    ("Answer: 34!", "34"),
    ("Answer: 33", "34"),
    ("Answer: 34\nAnswer: 33", "34"),
    ("Answer: ", "34"),
    ("Answer: 3 4", "34"),
    ("Answer: 34 or 35", "34"),
    ("Answer: not 34", "34"),
    ("Answer: 340", "34"),
    ("Answer: -34", "34"),
    ("the problem says 34", "34"),
    ("Answer: see 34", "34"),
    ("\\boxed{34}\nAnswer: 33", "34"),
    ("Answer: I do not know", "34"),
]
BOXES = [
    (r"\boxed{3} and \boxed{5}", "3,5"),
    (r"$\boxed{3}$, $\boxed{5}$", "3,5"),
    (r"\boxed{3}. So \boxed{5}", "5"),
    ("\\boxed{3}\n\n\\boxed{5}", "5"),
    (r"\boxed{5}, \boxed{5}", "5"),
    (r"\boxed{x=3}, \boxed{y=5}", "x=3,y=5"),
    (r"\[\boxed{3}\] and \[\boxed{5}\]", "5,3"),
    (r"\boxed{3}\text{ and }\boxed{5}", "5,3"),
]
OTHER_BOXES = [
    (r"\boxed{3} or \boxed{5}", "3"),
    (r"\boxed{3}, then \boxed{5}", "3,5"),
]


def is_right(response: str, truth: str, source: str) -> bool:
    answer, unread = read_answer(response, source)
    return not unread and judge(answer, truth) == RIGHT


@pytest.mark.parametrize(("response", "truth"), LINES)
def test_answer_lines_in_their_many_forms(response, truth):
    assert is_right(response, truth, "math_dapo")


@pytest.mark.parametrize(("response", "truth"), OTHER_LINES)
def test_answer_lines_with_another_answer(response, truth):
    assert not is_right(response, truth, "math_dapo")


@pytest.mark.parametrize(("response", "truth"), BOXES)
def test_boxes_with_nothing_but_commas_between_are_one_answer(response, truth):
    assert is_right(response, truth, "MATH-500")


@pytest.mark.parametrize(("response", "truth"), OTHER_BOXES)
def test_boxes_of_another_answer(response, truth):
    assert not is_right(response, truth, "MATH-500")


def test_words_behind_a_label_are_no_answer_where_there_is_a_box():
    assert read_answer("so \\boxed{7}\nThe answer: as in the box", "math_dapo") == ("7", "")
    assert read_answer("Answer: 7\nNote that this answer: it is fine", "math_dapo") == ("7", "")


@pytest.mark.parametrize(
    "text", ["\n", " ", "*", "Answer:", "Answer: \n", "the answer is ", "\\boxed{1}, ", "<a>"]
)
def test_long_responses_are_read_in_time(text):
    start = time.monotonic()
    for source in ("math_dapo", "AIME24"):
        read_answer(text * (10**6 // len(text)), source)
    assert time.monotonic() - start < 20


def test_an_unclosed_or_missing_box_is_said():
    assert read_answer("Answer: $\\boxed{13$", "math_dapo") == ("", UNCLOSED)
    assert read_answer("nothing", "math_dapo") == ("", NO_BOX)


def test_the_box_ends_at_its_own_brace():
    assert last_box(r"\boxed{\frac{1}{\{2\}}} and } more") == (r"\frac{1}{\{2\}}", "")
    assert last_box(r"\boxed{\left\{ x \right.}") == (r"\left\{ x \right.", ""), (
        "a set's brace is not LaTeX's"
    )


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
    assert is_right(response, truth, "math_dapo")
    assert is_right(response, truth, "AIME24") is ("boxed" in response)


def test_an_empty_last_line_is_unread():
    assert read_answer("Answer:\n", "math_dapo") == ("", EMPTY)
