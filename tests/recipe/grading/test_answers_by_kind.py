"""Every answer of ``answers.json`` gets its grade, from the text of a response on."""

import json
from pathlib import Path

import pytest

from recipe.prune_opd.grading.answers import read_answer
from recipe.prune_opd.grading.verdicts import RIGHT

pytest.importorskip("math_verify")
TABLES = json.loads((Path(__file__).parent / "answers.json").read_text())


def is_right(kind: str, answer: str, truth: str) -> bool:
    from recipe.prune_opd.grading.judging import judge

    whole = kind.startswith(("answer lines", "responses"))
    source = "math_dapo" if "math_dapo" in kind else "MATH-500"
    found, unread = read_answer(answer if whole else rf"so $\boxed{{{answer}}}$.", source)
    try:
        return not unread and judge(found, truth) == RIGHT
    except (MemoryError, RecursionError):  # the graders' processes catch it
        return False


@pytest.mark.parametrize(
    ("grade", "kind"),
    [
        pytest.param(grade, kind, id=f"{grade}: {kind}")
        for grade in TABLES
        for kind in TABLES[grade]
    ],
)
def test_every_answer_has_its_grade(grade, kind):
    pairs = TABLES[grade][kind]
    assert [pair for pair in pairs if is_right(kind, *pair) is not (grade == "right")] == []
