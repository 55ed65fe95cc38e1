"""A newcomer who follows the quickstart gets a pair, a command and a table at the end."""

import re
import subprocess
import sys

import harness
import pytest

pytestmark = pytest.mark.e2e

PERCENT = r"(\d+\.\d)%"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    command = [
        sys.executable,
        str(harness.QUICKSTART / "run.py"),
        "--out",
        str(out),
        "--steps",
        "2",
    ]
    command += ["--engine", harness.ENGINE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=harness.WIDE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (out / "metrics.jsonl").is_file()
    assert (out / "checkpoints/global_step_2/prune_opd.json").is_file()
    return done.stdout


def test_the_pair_is_what_the_method_is_for(output):
    student, teacher = (
        float(re.search(rf"{name}: {PERCENT} right greedy", output)[1])
        for name in ("student", "teacher")
    )
    assert teacher >= 95
    assert 20 <= student <= 60
    overlap, events = map(float, re.search(r"all tokens: (\S+), (\S+)", output).groups())
    assert 0.7 <= overlap <= 0.9
    buckets = [float(value) for value in re.findall(r"tokens +\d+ to +\d+: \S+, (\S+)", output)]
    assert 0.05 <= events <= 0.6
    # drift: events are denser where the student has lost its way.
    assert sum(buckets[4:7]) > 1.3 * sum(buckets[:3])


def test_the_printed_command_names_the_recipe_and_its_guard(output):
    assert re.search(r"python\S* -m verl.trainer.main_ppo", output)
    assert "+recipe=prune_opd" in output
    assert " prune_opd.teacher.path=" in output


def test_it_ends_with_a_table(output):
    before, after = (
        re.search(rf"accuracy {when}.*?{PERCENT} +\(", output)[1] for when in ("before", "after")
    )
    assert 0 <= float(before) <= 60
    assert 0 <= float(after) <= 100
    for row in (
        "response limit over the run",
        "tokens generated in training",
        "to compare with",
        "metrics of every step",
    ):
        assert row in output
