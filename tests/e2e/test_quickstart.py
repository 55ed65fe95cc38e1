"""A newcomer who follows the quickstart gets a pair, two runs with their commands, a table and
curves."""

import re
import subprocess
import sys

import harness
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

RECIPES = ["opd", "prune_opd_gate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def output(folder):
    command = [sys.executable, harness.EXAMPLES / "quickstart" / "run.py", "--out", folder]
    command += ["--steps", "2", "--engine", harness.ENGINE]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=1700, env=harness.WIDE
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def cells(output: str, name: str) -> list[str]:
    """What a row of the table says of each run."""
    (line,) = (line for line in output.splitlines() if name in line)
    return [cell.strip() for cell in re.split("[│|]", line)[2:-1]]


def shares(output: str, name: str) -> list[float]:
    """The first percentage in each cell of a row."""
    return [float(re.match(r"(\d+\.\d)%", cell)[1]) for cell in cells(output, name)]


def test_each_run_leaves_its_folder(output, folder):
    for recipe in RECIPES:
        assert (folder / recipe / "metrics.jsonl").is_file()
        assert (folder / recipe / "train.log").is_file()
        assert (folder / recipe / "checkpoints/global_step_2").is_dir()
    assert (folder / "prune_opd_gate/checkpoints/global_step_2/prune_opd.json").is_file()


def test_the_curves_are_a_picture(output, folder):
    assert (folder / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert "progress.png" in output


def test_the_printed_commands_name_the_recipes_and_their_guard(output):
    assert len(re.findall(r"python\S* -m verl.trainer.main_ppo", output)) == len(RECIPES)
    for recipe in RECIPES:
        assert f"+recipe={recipe} " in output
    assert output.count(" prune_opd.teacher.path=") == len(RECIPES)


def test_the_table_has_a_column_per_recipe(output):
    header = next(line for line in output.splitlines() if re.search(r"opd\s+[┃|]", line))
    assert [cell.strip() for cell in re.split("[┃|]", header)[2:-1]] == RECIPES


def test_the_student_leaves_the_route_early(output):
    start = shares(output, "progress before the first wrong word, at the start")
    assert all(2 <= share <= 30 for share in start)
    assert start[0] == pytest.approx(start[1], abs=1)  # the same student, greedy


def test_the_table_says_what_the_runs_came_to(output):
    end, best = shares(output, "progress, at the end"), shares(output, "progress, at its best")
    assert all(0 <= at_end <= at_best <= 100 for at_end, at_best in zip(end, best, strict=True))
    assert len(shares(output, "whole routes right, at the end")) == len(RECIPES)
    assert all(float(cell) > 0 for cell in cells(output, "seconds, start-up included"))


def test_the_gate_generates_fewer_tokens(output):
    plain, gated = (int(cell.replace(",", "")) for cell in cells(output, "tokens generated"))
    assert 0 < gated < plain <= 2 * 64 * 64
