"""Every ground truth of the benchmarks is right in any dress, and equals no other.

Skipped where the data is not beside the repository.
"""

import itertools
import json
import re
from pathlib import Path

import pytest

from recipe.prune_opd.grading import compute_score
from recipe.prune_opd.grading.answers import last_box
from recipe.prune_opd.grading.verdicts import RIGHT

pytest.importorskip("math_verify")
DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
BENCHMARKS = ("aime24", "aime25", "amc23", "hmmt24", "hmmt25", "math_500")
ALIKE = re.compile(
    r"\\text\{.*|\\mbox\{.*|\^\\circ|\\\$|\\!|_\{?\d\}?$|^x=|^x \\in |[,() ]|\\\{|\\\}"
)
"""What may tell two ground truths apart that are taken for one: a unit, a base, brackets of a
list."""


def truths(name: str) -> list[str]:
    file = DATA / f"{name}.parquet"
    if not file.is_file():
        pytest.skip(f"{name}.parquet is not beside the repository, in ../shared/data")
    from pyarrow import parquet

    return sorted(
        {row["ground_truth"] for row in parquet.read_table(file)["reward_model"].to_pylist()}
    )


def rewritten(truth: str) -> list[str]:
    found = [
        truth,
        f"${truth}$",
        rf"\({truth}\)",
        f"{truth}.",
        f"**{truth}**",
        rf"\boxed{{{truth}}}",
    ]
    found += [
        rf"\mathbf{{{truth}}}",
        rf"\displaystyle {truth}",
        rf"\text{{The answer is }} {truth}",
    ]
    found += [
        truth.replace(r"\frac", r"\dfrac"),
        truth.replace("(", r"\left(").replace(")", r"\right)"),
    ]
    if re.fullmatch(r"-?\d+", truth):
        found += [
            f"{truth}.0",
            f"{int(truth):,}",
            f"m+n={truth}",
            f"{truth} apples",
            rf"{truth}\text{{ units}}",
        ]
    return found


@pytest.mark.parametrize("name", [*BENCHMARKS, "dapo_math_17k"])
def test_every_ground_truth_is_right_in_any_dress(name):
    from recipe.prune_opd.grading.judging import judge

    step = 40 if name == "dapo_math_17k" else 1  # integers all
    for truth in truths(name)[::step]:
        assert last_box(rf"so \boxed{{{truth}}}.") == (truth.strip(), "")
        assert [other for other in rewritten(truth) if judge(other, truth) != RIGHT] == []


def test_every_integer_is_read_exactly():
    from recipe.prune_opd.grading.reading import read

    assert [
        truth for truth in truths("dapo_math_17k") if int(read(truth)[0].expression) != int(truth)
    ] == []


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_two_ground_truths_are_one(name):
    from recipe.prune_opd.grading.equality import same
    from recipe.prune_opd.grading.reading import read

    # Integers differ.
    known = [truth for truth in truths(name) if name != "math_500" or not truth.isdigit()]
    values = {truth: read(truth)[0] for truth in known}
    for one, other in itertools.combinations(values, 2):
        if same(values[one], values[other]):
            assert (one, other) == (r"180^\circ", r"\pi") or bare(one) == bare(other)


def bare(text: str) -> list[str]:
    """What is left of a ground truth without what does not count, in any order."""
    return sorted(re.sub(r"[\s{}]", "", ALIKE.sub("", text)))


def test_pairs_of_public_reports():
    file = DATA / "trials" / "grading_cases.json"
    if not file.is_file():
        pytest.skip("grading_cases.json is not beside the repository, in ../shared/data/trials")
    wrong = [
        (row["response"][-80:], row["truth"], row["want"])
        for row in json.loads(file.read_text())
        if compute_score(row["data_source"], row["response"], row["truth"])["acc"]
        is not row["want"]
    ]
    assert wrong == []
