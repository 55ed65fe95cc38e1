"""The recorder: a step's line by hand, its samples, and that a full disk costs the record alone."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from recipe.prune_opd.config import (
    DriftConfig,
    PruneOPDConfig,
    RecordsConfig,
    TeacherConfig,
)
from recipe.prune_opd.method.reward import Scores, TopK
from recipe.prune_opd.records.files import read_samples, read_steps
from recipe.prune_opd.records.recorder import Recorder, Sample, step_record
from recipe.prune_opd.records.tally import RECORDED

# ------------------------------------------------------------------------------- the line of a step

LONGEST = 2048  # buckets of four positions, at first
MEANS = [name for name in RECORDED if name != "trained"]


def test_a_step_by_hand(tally_of):
    """One ended by itself, one was cut by the limit, one was stopped by the gate, of one nothing
    was scored."""
    tally = tally_of(
        {"tokens": 3, "effective_length": 3, "ended": 1},
        {"tokens": 6, "effective_length": 5, "missing": 1},
        {"tokens": 4, "effective_length": 4, "gate_stopped": 1, "gate_generated": 7},
        {"tokens": 0, "missing": 7},
        longest=LONGEST,
    )
    record = step_record(tally, limit=7, next_limit=9)
    assert record["responses"] == 4
    assert (record["limit"], record["next_limit"]) == (7, 9)
    assert record["share"] == {"ended": 0.25, "gate": 0.25, "limit": 0.5}
    assert record["tokens"] == {
        "generated": 3 + 7 + 7 + 7,
        "scored": 3 + 6 + 4,
        "trained": 13,
        "reliable": 3 + 5 + 4,
        "saved": (LONGEST - 7) * 3,  # the first would not have been longer
    }
    assert {name: record["length"][name] for name in ("min", "max", "mean")} == {
        "min": 3,
        "max": 7,
        "mean": 5.25,
    }
    assert record["lengths"] == [3, 4, 7, 7]
    # As the budget counts: without the one of which nothing is known.
    assert record["effective_length"]["mean"] == 4
    assert record["effective_length"]["q50"] == 4
    assert record["positions"] == {
        "edges": [0, 4, 8],  # what nobody reached is not written
        "tokens": [11, 2],
        "overlap": [0.5, 0.5],
        "events": [0, 0],
        "weight": [1, 1],
        "reward": [-1, -1],
        "student_entropy": [0.693147, 0.693147],
        "teacher_entropy": [0.693147, 0.693147],
    }


def test_of_a_large_batch_lengths_are_kept_evenly(tally_of):
    """1000 responses of 1 to 1000 tokens, in any order: 256 lengths with the same distribution."""
    tokens = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) + 1
    record = step_record(tally_of(*({"tokens": int(n)} for n in tokens)), 1000, 1000)
    lengths = record["lengths"]
    assert len(lengths) == 256
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[1], lengths[-1]) == (2, 6, 999)
    assert sum(lengths) / 256 == pytest.approx(500.5, abs=1)
    json.dumps(record, allow_nan=False)


def test_of_cached_responses_nothing_was_generated_and_nothing_saved(tally_of):
    tally = tally_of({"tokens": 3, "effective_length": 2}, longest=LONGEST)
    tokens = step_record(tally, 7, 7)["tokens"]
    cached = step_record(tally, 7, 7, generated_for_step=0)["tokens"]
    assert cached == tokens | {"generated": 0, "saved": 0}
    assert step_record(tally, 7, 7, generated_for_step=90)["tokens"]["generated"] == 90


def test_a_step_in_which_nothing_was_scored_is_no_error(tally_of):
    record = step_record(tally_of({"tokens": 0, "missing": 4}), 7, 7)
    assert record["effective_length"] is None
    assert record["positions"] == {"edges": [0]} | {name: [] for name in MEANS}
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_becomes_null(tally_of, value):
    record = step_record(tally_of({"tokens": 4}, longest=LONGEST, reward=value), 7, 7)
    assert record["positions"]["reward"] == [None]
    json.dumps(record, allow_nan=False)


# -------------------------------------------------------------------------------------- writing it

TOKENIZER = SimpleNamespace(decode=lambda ids, **_: " ".join(f"<{int(i)}>" for i in ids))


def recorder_of(folder, **records: int) -> Recorder:
    given = RecordsConfig(dir=str(folder / "records"), **records)
    drift, teacher = DriftConfig(w_drop=0.25), TeacherConfig(path="T")
    return Recorder(
        PruneOPDConfig(teacher=teacher, drift=drift, topk=2, records=given), lambda: TOKENIZER
    )


def sampled(index: int) -> Sample:
    """Three tokens, at the second the models' candidates are disjoint; the third has no score."""
    ids, log_probs = torch.tensor([[[7, 8]] * 3]), torch.full((1, 3, 2), math.log(0.5))
    teacher = torch.tensor([[[7, 8], [1, 2], [7, 8]]])
    scores = Scores(torch.tensor([[7, index, 8]]), TopK(ids, log_probs), TopK(teacher, log_probs))
    mask = torch.tensor([[True, True, False]])
    return Sample(torch.tensor([5, 6]), scores, mask, mask)


def fetch(rows: list[int]) -> list[Sample]:
    return [sampled(row) for row in rows]


def test_a_step_and_its_samples_are_written(tally_of, tmp_path, caplog):
    """Which responses are fetched goes by their effective lengths."""
    recorder = recorder_of(tmp_path, samples=2, topk=1)
    tally = tally_of(
        {"tokens": 3, "effective_length": 2, "gate_stopped": 1},
        {"tokens": 3, "effective_length": 3, "ended": 1, "limit": 9},
        {"tokens": 3, "effective_length": 1},
    )
    recorder.write(1, tally, (9, 11), fetch)
    ((line,), faults) = read_steps(tmp_path / "records")
    written = {name: value for name, value in line.items() if name not in ("step", "time")}
    assert (line["step"], written, faults) == (1, step_record(tally, 9, 11), [])
    first, second = read_samples(tmp_path / "records", 1)
    assert [first["tokens"][1], second["tokens"][1]] == [2, 1]
    assert second == {
        "limit": 9,
        "effective_length": 3,
        "stopped": 0,
        "ended": 1,
        "prompt": "<5> <6>",
        "tokens": [7, 1, 8],
        "overlap": [1, 0, None],
        "events": [1],
        "weight": [1, 0.75, 0.75],
        "student_ids": [[7]] * 3,
        "student_log_probs": [[-0.693]] * 3,
        "teacher_ids": [[7], [1], [7]],
        "teacher_log_probs": [[-0.693]] * 3,
        "pieces": {"1": "<1>", "7": "<7>", "8": "<8>"},
    }
    assert caplog.messages == []


def test_nothing_is_fetched_where_no_sample_is_due(tally_of, tmp_path, caplog):
    recorder = recorder_of(tmp_path, every=20)
    recorder.write(2, tally_of({"tokens": 3}), (9, 9), lambda rows: pytest.fail("fetched"))
    assert [line["step"] for line in read_steps(tmp_path / "records")[0]] == [2]
    assert read_samples(tmp_path / "records", 2) == caplog.messages == []


def full(*_) -> None:
    raise OSError(28, "No space left on device")


def not_finite(rows: list[int]) -> list[Sample]:
    raise ValueError("Out of range float values are not JSON compliant")


@pytest.mark.parametrize(("samples", "reason"), [(full, "OSError"), (not_finite, "ValueError")])
def test_samples_that_cannot_be_written_are_a_warning_and_the_step_is_kept(
    tally_of, tmp_path, caplog, samples, reason
):
    recorder_of(tmp_path).write(1, tally_of({"tokens": 3}), (9, 9), samples)
    (message,) = caplog.messages
    assert message.startswith(f"step 1: its records are not in {tmp_path}/records ({reason}: ")
    assert [line["step"] for line in read_steps(tmp_path / "records")[0]] == [1]


@pytest.mark.parametrize("place", ["file", "n" * 300, "a\0b"])
def test_a_folder_that_cannot_be_made_is_a_warning_at_every_step(tally_of, tmp_path, caplog, place):
    """And not an error in the trainer's constructor: the training goes on."""
    (tmp_path / "file").write_text("")
    recorder = recorder_of(tmp_path / place)
    for step in (1, 2):
        recorder.write(step, tally_of({"tokens": 3}), (9, 9), fetch)
    for step, message in zip((1, 2), caplog.messages, strict=True):
        assert message.startswith(f"step {step}: its records are not in {tmp_path}")


def test_a_folder_that_is_back_gets_the_steps_that_follow(tally_of, tmp_path, caplog):
    (tmp_path / "records").write_text("")
    recorder = recorder_of(tmp_path)
    recorder.write(1, tally_of({"tokens": 3}), (9, 9), fetch)
    (tmp_path / "records").unlink()
    recorder.write(2, tally_of({"tokens": 3}), (9, 9), fetch)
    assert len(caplog.messages) == 1
    assert [line["step"] for line in read_steps(tmp_path / "records")[0]] == [2]


def test_a_full_disk_is_a_warning(tally_of, tmp_path, caplog):
    recorder = recorder_of(tmp_path)
    recorder.files.step = full
    recorder.write(1, tally_of({"tokens": 3}), (9, 9), fetch)
    (message,) = caplog.messages
    assert (
        f"not in {tmp_path}/records (OSError: [Errno 28] No space left on device); the training"
        " goes on" in message
    )
