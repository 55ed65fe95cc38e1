"""Files of the records: what a killed or resumed run leaves is read as the steps it stands on."""

import gzip
import math

import pytest

from recipe.prune_opd.records.files import (
    STEPS,
    Records,
    read_lines,
    read_samples,
    read_steps,
    rewound,
    sampled_steps,
)

SAMPLE = {"tokens": [7, 8, 7], "overlap": [1.0, 0.5, None], "prompt": "Why?"}


def line(value: float = 0.0) -> dict:
    return {"positions": {}, "value": value}


def steps(folder) -> list[tuple[int, float]]:
    return [(record["step"], record["value"]) for record in read_steps(folder)[0]]


def test_a_step_is_in_the_file_at_once(tmp_path):
    records = Records(tmp_path / "a" / "b")
    records.step(1, line(0.5))
    (found,), faults = read_steps(tmp_path / "a" / "b")
    assert (found["step"], found["value"], faults) == (1, 0.5, [])
    assert found["time"].endswith("+00:00")


def test_a_torn_last_line_is_skipped_and_named(tmp_path):
    records = Records(tmp_path)
    for step in (1, 2):
        records.step(step, line())
    file = tmp_path / STEPS
    file.write_text(file.read_text()[:-9])
    found, faults = read_steps(tmp_path)
    assert [record["step"] for record in found] == [1]
    (fault,) = faults
    assert "line 2" in fault
    assert str(file) in fault


def test_a_resumed_run_writes_after_a_torn_line(tmp_path):
    Records(tmp_path).step(1, line())
    file = tmp_path / STEPS
    file.write_text(file.read_text() + '{"step":2,"ti')
    Records(tmp_path).step(2, line(7))
    assert steps(tmp_path) == [(1, 0), (2, 7)]
    assert len(read_steps(tmp_path)[1]) == 1


def test_a_line_that_a_full_disk_tore_costs_that_step_alone(tmp_path):
    records = Records(tmp_path)
    records.step(1, line())
    with (tmp_path / STEPS).open("a") as file:  # what was written until the disk was full
        file.write('{"step":2,"ti')
    records.step(3, line(7))
    assert steps(tmp_path) == [(1, 0), (3, 7)]


def test_steps_repeated_after_a_resume_supersede_the_earlier_ones(tmp_path):
    first = Records(tmp_path)
    for step in (1, 2, 3, 4, 5):
        first.step(step, line(1))
    second = Records(tmp_path)
    for step in (4, 5, 6):
        second.step(step, line(2))
    assert steps(tmp_path) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]


def test_a_resumed_run_that_has_not_caught_up_stands_where_it_is():
    course = rewound([{"step": step} for step in (1, 2, 3, 4, 5, 3, 4)])
    assert [record["step"] for record in course] == [1, 2, 3, 4]
    assert rewound([{"step": 7}, {"step": 1}]) == [{"step": 1}]


@pytest.mark.parametrize("text", ["", "\n\n", "[1]\n", "null\n", "\x00\x00\n", '{"other": 1}\n'])
def test_lines_of_something_else_are_no_steps(tmp_path, text):
    (tmp_path / STEPS).write_text(text)
    assert read_steps(tmp_path)[0] == []


def test_text_that_is_no_utf8_is_no_error(tmp_path):
    (tmp_path / STEPS).write_bytes(b'\xff\xfe{"step"\n{"step":1,"positions":{}}\n')
    found, faults = read_lines(tmp_path / STEPS)
    assert [record["step"] for record in found] == [1]
    assert len(faults) == 1


def test_samples_of_a_step_are_replaced_as_a_whole(tmp_path):
    records = Records(tmp_path)
    records.samples(20, [SAMPLE, SAMPLE])
    records.samples(20, [SAMPLE])
    records.samples(3, [])
    assert read_samples(tmp_path, 20) == [SAMPLE]
    assert sampled_steps(tmp_path) == [3, 20]
    assert read_samples(tmp_path, 4) == []
    assert not list(tmp_path.rglob("*.partial"))


def test_samples_that_cannot_be_written_leave_the_file_of_before(tmp_path):
    records = Records(tmp_path)
    records.samples(20, [SAMPLE])
    with pytest.raises(ValueError, match="JSON"):
        records.samples(20, [{"weight": math.nan}])
    assert read_samples(tmp_path, 20) == [SAMPLE]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_damaged_file_of_samples_is_an_error_that_names_it(tmp_path):
    Records(tmp_path).samples(1, [SAMPLE])
    (file,) = tmp_path.rglob("*.gz")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"step_1\.jsonl\.gz"):
        read_samples(tmp_path, 1)
    file.write_bytes(gzip.compress(b"no json"))
    with pytest.raises(ValueError, match=r"step_1\.jsonl\.gz"):
        read_samples(tmp_path, 1)
