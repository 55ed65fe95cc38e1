"""A page of ``report`` shows what a run logged and recorded, and says what is missing."""

import gzip
import json
import math
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hostile import mutated
from hypothesis import given

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.commands.report import charts, curves, summary, times, tokens
from recipe.prune_opd.commands.report import page as report
from recipe.prune_opd.commands.report import positions as by_place
from recipe.prune_opd.commands.report.reading import merged, read_run, read_runs
from recipe.prune_opd.commands.report.tokens import candidates, readable, shown, token_views, view
from recipe.prune_opd.records.files import Records
from recipe.prune_opd.records.recorder import step_record
from recipe.prune_opd.records.tally import recorded_edges

VALUES = ("overlap", "events", "weight", "reward", "student_entropy", "teacher_entropy")
EVIL = "<script>alert('x')</script>&\"$x$"


def metrics(step: int, **changes: float) -> dict[str, float]:
    found = {
        "training/global_step": step,
        "prune_opd/current_max_response_length": 100 + step,
        "prune_opd/effective_response_length_mean": 50.0,
        "prune_opd/generated_tokens": 1000,
        "prune_opd/kept_tokens": 750,
        "prune_opd/overlap_ratio": 0.5 + step / 100,
        "timing_s/step": 36.0,
        "timing_s/gen": 20.0,
        "timing_s/ref": 6.0,
        "actor/grad_norm": 1.0,
    }
    return found | {name.replace("__", "/"): value for name, value in changes.items()}


def write_log(file: Path, lines: list[tuple[int, dict]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in lines)
    )
    return file


def record(step: int, overlap: float = 0.75) -> dict:
    return {
        "limit": 100 + step,
        "next_limit": 101 + step,
        "responses": 2,
        "length": {"mean": 8.0},
        "effective_length": {"mean": 50.0, "q10": 10.0, "q90": 90.0},
        "share": {"ended": 0.5, "gate": 0.0, "limit": 0.5},
        "tokens": {
            "generated": 1000,
            "scored": 1000,
            "trained": 900,
            "reliable": 800,
            "saved": 200,
        },
        "positions": {
            "edges": [0, 4, 8],
            "tokens": [6, 2],
            "overlap": [overlap, overlap / 2],
            "events": [0.1, 0.2],
            "weight": [1.0, 0.5],
            "reward": [-0.1, -0.2],
            "student_entropy": [1.0, 1.0],
            "teacher_entropy": [1.5, 2.5],
        },
    }


@pytest.fixture(scope="module")
def diverged(tally_of) -> dict:
    """A record as the trainer makes it of a step whose means are no numbers."""
    nan = {"overlap": np.nan, "reward": np.nan, "log_prob": np.nan}
    tally = tally_of({"tokens": 8}, {"tokens": 8}, longest=2048, **nan)
    return step_record(tally, limit=8, next_limit=8)


def sample(length: int = 4, text: str = " a", spent: int | None = None) -> dict:
    """The last two tokens are events; after the first of these, or from ``spent`` on, no
    reliability is left."""
    spent = length - 2 if spent is None else spent
    return {
        "limit": 9,
        "effective_length": spent,
        "stopped": 0,
        "ended": 1,
        "prompt": "Why?" + EVIL,
        "tokens": [5] * length,
        "overlap": [1.0, None, *[0.5] * (length - 2)],
        "events": [length - 2, length - 1],
        "weight": [1.0] * spent + [0.0] * (length - spent),
        "student_ids": [[5, 6]] * length,
        "student_log_probs": [[-0.1, -2.0]] * length,
        "teacher_ids": [[6, -1]] * length,
        "teacher_log_probs": [[-0.5, -99.0]] * length,
        "pieces": {"5": text, "6": EVIL},
    }


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder as a run of the examples leaves it: a log, and records beside the checkpoints."""
    folder = tmp_path / "one"
    validated = {"val-core/math/acc/mean@1": 0.25}
    lines = [(0, validated), *[(step, metrics(step)) for step in range(1, 5)]]
    lines[-1][1]["val-core/math/acc/mean@1"] = 0.5
    write_log(folder / "metrics.jsonl", lines)
    records = Records(folder / "checkpoints/records")
    for step in range(1, 5):
        records.samples(step, [sample(), sample()])
        records.step(step, record(step))
    return folder


@pytest.fixture
def baseline(tmp_path) -> Path:
    """Another recipe's run: verl's own metrics and no records."""
    own = {"perf/total_num_tokens": 3000, "response_length/mean": 100.0, "prompt_length/mean": 50.0}
    lines = [
        (step, {"training/global_step": step, "timing_s/step": 72.0, **own}) for step in range(1, 4)
    ]
    return write_log(tmp_path / "two" / "grpo.jsonl", lines).parent


# ------------------------------------------------------------------------------------------ reading


def test_a_run_out_of_its_folder(run):
    found = read_run(run, "one")
    assert found.last == 4
    assert found.records == run / "checkpoints/records"
    assert found.accuracies() == {"math": {0: 0.25, 4: 0.5}}
    assert found.metric("prune_opd/current_max_response_length") == {1: 101, 2: 102, 3: 103, 4: 104}
    assert found.record("tokens", "saved") == dict.fromkeys(range(1, 5), 200)
    assert found.record("tokens", "nothing") == found.record("limit", "deeper") == {}
    assert found.sampled() == [1, 2, 3, 4]


def test_a_run_out_of_its_log_alone(run):
    found = read_run(run / "metrics.jsonl", "log")
    assert (found.last, found.records, found.recorded) == (4, None, {})
    assert found.sampled() == []


def test_axes_by_hand(run, baseline):
    one, two = read_run(run, "one"), read_run(baseline, "two")
    assert one.along("step") == {step: step for step in range(5)}
    assert one.along("tokens") == pytest.approx({0: 0, 1: 0.001, 2: 0.002, 3: 0.003, 4: 0.004})
    assert one.along("hours") == pytest.approx({0: 0, 1: 0.01, 2: 0.02, 3: 0.03, 4: 0.04})
    assert two.generated() == {1: 2000, 2: 2000, 3: 2000}  # responses are two thirds of all tokens


def test_what_the_gate_cut_off_was_generated_too(tmp_path):
    cut = metrics(1) | {"prune_opd/gate/overshoot_tokens": 30}
    assert read_run(write_log(tmp_path / "a.jsonl", [(1, cut)]), "a").generated() == {1: 1030}


def test_without_its_first_steps_a_run_has_no_sums(tmp_path):
    log = write_log(tmp_path / "late.jsonl", [(step, metrics(step)) for step in (4, 5)])
    found = read_run(log, "late")
    assert found.along("tokens") == found.along("hours") == {}
    assert found.along("step") == {0: 0, 4: 4, 5: 5}
    assert (
        "late has no curves by hours of training: its log lacks the first steps"
        in summary.notes([found])
    )


def test_sums_end_where_a_step_is_missing(tmp_path):
    log = write_log(tmp_path / "gap.jsonl", [(step, metrics(step)) for step in (1, 2, 4)])
    found = read_run(log, "gap")
    assert list(found.along("hours")) == [0, 1, 2]
    note = "gap has curves by hours of training up to step 2 only: its log lacks the next one"
    assert note in summary.notes([found])


def test_records_fill_in_for_a_log_that_a_resume_began_anew(tmp_path):
    """verl's file logger overwrites its file; the records do not."""
    write_log(tmp_path / "metrics.jsonl", [(step, metrics(step)) for step in (3, 4)])
    records = Records(tmp_path / "records")
    for step in (1, 2, 3, 4):
        records.step(step, record(step))
    found = read_run(tmp_path, "resumed")
    assert sorted(found.along("tokens")) == [0, 1, 2, 3, 4]
    assert found.along("hours") == {}
    assert summary.summary(found)["limit"] == (101, 104)


def test_a_step_that_was_trained_again_replaces_itself_and_what_came_after():
    steps = [1, 2, 3, 2, 3]
    lines = [{"step": step, "data": metrics(step, order=i)} for i, step in enumerate(steps)]
    found = merged(lines)
    assert {step: data["order"] for step, data in found.items()} == {1: 0, 2: 3, 3: 4}
    assert list(merged(lines[:4])) == [1, 2]


def test_a_validation_is_added_to_its_step():
    lines = [
        {"step": 1, "data": metrics(1)},
        {"step": 1, "data": {"val-core/m/acc/mean@1": 1, "note": "text"}},
    ]
    found = merged(lines)
    assert found[1] == metrics(1) | {"val-core/m/acc/mean@1": 1}


def slow_merged(lines):
    """Steps as the definition has them, each time out of all before."""
    steps = {}
    for line in lines:
        step, data = line["step"], line["data"]
        if "training/global_step" in data:
            steps = {number: found for number, found in steps.items() if number < step}
        steps[step] = steps.get(step, {}) | data
    return dict(sorted(steps.items()))


def test_steps_are_merged_as_defined_in_any_order():
    for seed in range(50):
        rng = random.Random(seed)
        lines = [
            {
                "step": rng.randrange(8),
                "data": {"training/global_step": 1.0} | {rng.choice("abc"): float(i)}
                if rng.random() < 0.5
                else {rng.choice("abc"): float(i)},
            }
            for i in range(30)
        ]
        found = merged(lines)
        assert found == slow_merged(lines)
        assert list(found) == sorted(found)


class Step(int):
    """Number of a step that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        Step.compared += 1
        return int(self) < int(other)

    def __ge__(self, other):
        Step.compared += 1
        return int(self) >= int(other)


def test_a_long_log_takes_no_look_at_all_steps_for_each_line():
    """Every step comes with a validation before it, whose place the trained one takes."""
    Step.compared, lines = 0, []
    for number in range(1, 1500):
        step = Step(number)
        lines += [{"step": step, "data": {"val": 1.0}}, {"step": step, "data": metrics(number)}]
    assert len(merged(lines)) == 1499
    assert 0 < Step.compared < 30 * len(lines)


def test_a_run_is_asked_for_each_of_its_times_once(tmp_path, monkeypatch):
    lines = [(step, metrics(step)) for step in range(1, 30)]
    found = read_run(write_log(tmp_path / "metrics.jsonl", lines), "run")
    asked = []
    original = type(found).metric
    monkeypatch.setattr(
        type(found), "metric", lambda self, name: asked.append(name) or original(self, name)
    )
    split = times.seconds(found)
    assert split["rollout"] == 20
    assert len(asked) == len(set(asked))


def test_json_has_no_number_for_nan(tmp_path, capsys):
    """A hostile log, or that of a run which has diverged."""
    lines = [(1, metrics(1, prune_opd__generated_tokens=math.inf)), (2, metrics(2))]
    lines[1][1]["val-core/math/acc/mean@1"] = math.nan
    lines[0][1]["prune_opd/overlap_ratio"] = -math.inf
    write_log(tmp_path / "metrics.jsonl", lines)
    assert main(["report", str(tmp_path), "--json"]) == 0
    json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_logs_of_several_starts_are_one_run(tmp_path):
    write_log(tmp_path / "metrics.jsonl", [(step, metrics(step)) for step in (1, 2, 3)])
    write_log(tmp_path / "metrics.10.jsonl", [(step, metrics(step, last=1)) for step in (5, 6)])
    write_log(tmp_path / "metrics.2.jsonl", [(step, metrics(step)) for step in (3, 4, 5)])
    found = read_run(tmp_path, "parts")
    assert list(found.logged) == [1, 2, 3, 4, 5, 6]
    assert found.metric("last") == {5: 1, 6: 1}


def test_a_torn_line_of_the_log_is_named(run):
    log = run / "metrics.jsonl"
    log.write_text(log.read_text()[:-20])
    found = read_run(run, "one")
    assert list(found.logged) == [0, 1, 2, 3]
    (fault,) = found.faults
    assert f"{log}, line 5" in fault
    assert fault in summary.notes([found])


def test_samples_of_a_run_before_are_none_of_this_one(run):
    Records(run / "checkpoints/records").step(1, record(1))  # begun anew in the same folder
    assert read_run(run, "one").sampled() == [1]


@pytest.mark.parametrize(
    "content",
    [None, "", "no json\n", '{"input": "a", "output": "b"}\n', '{"step": "x", "data": {}}\n'],
)
def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match="neither a log nor records") as error:
        read_run(tmp_path, "a")
    assert str(tmp_path) in str(error.value)
    assert "allowed" in str(error.value)


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist, allowed: "):
        read_run(tmp_path / "nowhere", "a")


def test_a_log_without_a_step_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has not finished a step"):
        read_run(tmp_path / "a.jsonl", "a")


def test_a_folder_with_several_runs_is_refused(run, tmp_path):
    write_log(run / "other.jsonl", [(1, metrics(1))])
    with pytest.raises(ValueError, match=r"logs of 2 runs .*other.*name its file"):
        read_run(run, "a")
    (run / "other.jsonl").unlink()
    Records(run / "more/records").step(1, record(1))
    with pytest.raises(ValueError, match="records of 2 runs"):
        read_run(run, "a")


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    paths = [
        write_log(tmp_path / name / "m.jsonl", [(1, metrics(1))]).parent
        for name in ("a/x", "b/x", "c/y")
    ]
    assert [one.name for one in read_runs(paths)] == [str(paths[0]), str(paths[1]), "y"]


# ------------------------------------------------------------------------------------------ numbers


def test_a_summary_by_hand(run):
    assert summary.summary(read_run(run, "one")) == {
        "run": "one",
        "steps": 4,
        "accuracy": {"math": (0.25, 0.5)},
        "limit": (101, 104),
        "effective_length": (50, 50),
        "overlap": (0.51, 0.54),
        "tokens": {
            "generated": 4000,
            "scored": 4000,
            "trained": 3600,
            "reliable": 3000,
            "saved": 800,
        },
        "reliable_share": 0.75,
        "hours": pytest.approx(0.04),
        "counted": {name: [(1, 4)] for name in summary.SUMS},
        "faults": [],
    }
    assert summary.notes([read_run(run, "one")]) == []


@pytest.mark.parametrize("records", [True, False])
def test_with_cached_rollouts_tokens_are_counted_once(tmp_path, records):
    semi = [
        {"prune_opd__semi__frozen": 1, "prune_opd__semi__generated_tokens": n} for n in (900, 0)
    ]
    write_log(tmp_path / "x/metrics.jsonl", [(i, metrics(i, **semi[i - 1])) for i in (1, 2)])
    if records:
        written = Records(tmp_path / "x/records")
        for step, tokens in enumerate([900, 0], 1):
            line = record(step)
            written.step(step, line | {"tokens": line["tokens"] | {"generated": tokens}})
    run = read_run(tmp_path / "x", "x")
    assert run.generated() == {1: 900, 2: 0}
    if records:  # of the tokens trained on, not of those generated
        assert summary.summary(run)["reliable_share"] == 0.75


def test_sums_over_other_steps_say_so(tmp_path, capsys, few):
    """The log lacks step 3; the records, without their first, have it."""
    write_log(tmp_path / "x/metrics.jsonl", [(step, metrics(step)) for step in (1, 2, 4)])
    records = Records(tmp_path / "x/records")
    for step in (2, 3, 4):
        records.step(step, record(step))
    run = read_run(tmp_path / "x", "x")
    found = summary.summary(run)
    assert (found["tokens"]["generated"], found["tokens"]["saved"]) == (4000, 600)
    assert found["hours"] == pytest.approx(0.03)
    assert found["counted"]["hours"] == [(1, 2), (4, 4)]
    assert found["counted"]["saved"] == [(2, 4)]
    # 3050 of 4000.
    assert summary.cells(found)[-4:] == [
        "4,000",
        "600 (3 steps)",
        "76%",
        "0.03 (3 steps)",
    ]
    note = (
        "x lacks steps of its 4; summed are the steps that are known, of tokens generated, reliable"
        " tokens: 1-4; tokens scored, tokens trained on, tokens saved: 2-4; hours: 1-2, 4"
    )
    assert note in summary.notes([run])
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "x"), "--out", str(out)]) == 0
    assert f"note: {note}\n" in capsys.readouterr().out
    assert note in out.read_text()
    assert "0.03 (3 steps)" in out.read_text()


def test_a_share_is_of_the_steps_that_both_have():
    assert summary.share({1: 3.0, 2: 4.0, 5: 9.0}, {1: 4.0, 2: 6.0, 3: 100.0}) == 0.7
    assert summary.share({}, {1: 4.0}) is None


def test_ends_that_are_not_the_run_s_are_named(tmp_path):
    """Of a resumed run whose file logger began anew."""
    write_log(tmp_path / "metrics.jsonl", [(step, metrics(step)) for step in (3, 4)])
    records = Records(tmp_path / "records")
    for step in (1, 2, 3, 4):
        records.step(step, record(step))
    notes = summary.notes([read_run(tmp_path, "x")])
    assert (
        "x lacks its first or last step for what is shown of them; taken are steps: overlap from 3"
        " to 4" in notes
    )


def test_runs_of_different_length_say_so(run, baseline):
    notes = summary.notes(read_runs([run, baseline]))
    assert (
        "the runs are of different length, and their sums of so many steps: one 4, two 3" in notes
    )


def test_records_of_another_run_are_noticed(run):
    write_log(run / "metrics.jsonl", [(step, metrics(step + (step == 2))) for step in range(1, 5)])
    note = "one has records and a log that differ, in the limit of step 2: are they of one run?"
    assert note in summary.notes([read_run(run, "one")])


def test_what_is_no_number_counts_as_a_gap(tmp_path, capsys):
    lines = [
        (1, metrics(1)),
        (2, metrics(2, timing_s__step=float("nan"))),
        (3, metrics(3, prune_opd__overlap_ratio=10**400)),
    ]
    log = write_log(tmp_path / "x.jsonl", lines)
    assert main(["report", str(log), "--json"]) == 0
    printed = capsys.readouterr().out
    (found,) = json.loads(printed)
    assert "NaN" not in printed
    assert (found["hours"], found["counted"]["hours"]) == (pytest.approx(0.02), [[1, 1], [3, 3]])
    assert found["overlap"] == [0.51, 0.52]
    assert list(read_run(log, "x").along("hours")) == [0, 1]


@pytest.mark.parametrize(
    ("stretches", "text"),
    [
        ([(1, 4)], "1-4"),
        ([(2, 2), (4, 9)], "2, 4-9"),
        ([(i, i) for i in range(1, 99, 2)], "1, 3, 5, ... 97 (49 stretches)"),
    ],
)
def test_stretches_of_steps_are_named(stretches, text):
    assert summary.named(stretches) == text


def test_a_summary_of_another_recipes_run_says_what_is_not_known(baseline):
    found = summary.summary(read_run(baseline, "two"))
    assert found["tokens"] == {
        "generated": 6000,
        "scored": None,
        "trained": None,
        "reliable": None,
        "saved": None,
    }
    assert summary.cells(found) == ["two", "3", "-", "-", "-", "-", "6,000", "-", "-", "0.06"]


def test_means_by_position_weigh_every_token_alike():
    heavy = record(1) | {
        "positions": record(1)["positions"] | {"tokens": [30, 0], "overlap": [0.25, None]}
    }
    x, y = by_place.by_position([record(1), heavy], "overlap")
    assert x == [2, 6]
    assert y == pytest.approx([(6 * 0.75 + 30 * 0.25) / 36, 0.375])


def test_the_entropy_gap_by_hand(run):
    assert charts.entropy_gap(read_run(run, "one")) == pytest.approx(
        dict.fromkeys(range(1, 5), (6 * 0.5 + 2 * 1.5) / 8)
    )


def test_a_run_that_diverged_is_shown_without_what_is_no_number(tmp_path, few, diverged):
    assert diverged["positions"]["edges"] == [0, 4, 8]
    assert diverged["positions"]["overlap"] == [None, None]
    records = Records(tmp_path / "records")
    records.step(1, diverged)
    only = read_run(tmp_path, "one")
    assert charts.entropy_gap(only) == {}
    assert by_place.by_position([diverged], "overlap") == ([], [])
    assert np.isnan(by_place.grid(only, "overlap", [0, 4, 8])).all()
    assert "Every step a column" in report.report([only], "one")
    records.step(2, record(2))
    both = read_run(tmp_path, "one")
    assert list(charts.entropy_gap(both)) == [2]
    assert by_place.by_position([diverged, record(2)], "overlap") == ([2, 6], [0.75, 0.375])
    assert by_place.grid(both, "overlap", [0, 4, 8])[:, 1].tolist() == [0.75, 0.375]
    assert "Every step a column" in report.report([both], "both")


def test_a_map_has_a_column_per_step_and_gaps_where_nothing_is(run):
    found = read_run(run, "one")
    del found.recorded[2]
    values = by_place.grid(found, "weight", [0, 4, 8])
    assert values.shape == (2, 4)
    assert values[:, 0].tolist() == [1, 0.5]
    assert np.isnan(values[:, 1]).all()
    found.recorded[3]["positions"]["edges"] = [0, 5, 8]  # another budget.max
    assert np.isnan(by_place.grid(found, "weight", [0, 4, 8])[:, 2]).all()


def test_runs_of_which_nothing_was_scored_have_no_map(tmp_path, few):
    Records(tmp_path / "records").step(
        1, record(1) | {"positions": {"edges": [0], "tokens": []} | {name: [] for name in VALUES}}
    )
    assert "Every step a column" not in report.report([read_run(tmp_path, "one")], "one")


def test_long_curves_are_means_of_neighbours():
    points = [(float(i), float(i % 2)) for i in range(4 * curves.POINTS)]
    x, y = curves.thinned(points)
    assert len(x) == curves.POINTS
    assert x[:2] == [1.5, 5.5]
    assert set(y) == {0.5}
    assert curves.thinned(points[:3]) == ([0, 1, 2], [0, 1, 0])
    assert curves.thinned([(0.0, float("nan"))]) == ([], [])


def test_the_time_of_a_step_by_hand(run):
    found = {part: value for part, value in times.seconds(read_run(run, "one")).items() if value}
    assert found == {"rollout": 20, "teacher": 6, "other": 10}


# ------------------------------------------------------------------------------------------- tokens


def test_a_token_view_by_hand():
    found = view("one", 7, sample(), most=3)
    assert found["tokens"] == [(0, " a", "w10 o10"), (1, " a", "w10 u"), (2, " a", "w0 o5 e")]
    assert (found["length"], found["more"], found["spent"], found["end"]) == (
        4,
        1,
        2,
        "ended by itself",
    )


@pytest.mark.parametrize(
    ("length", "spent", "expected"),
    [
        (5, 3, [0, 1, 2, 3, 4]),
        (20, 20, [0, 1, 2, 3, 4, 5, 6, 7]),  # reliable to its end
        (20, 5, [0, 1, 2, 3, 4, 5, 6, 7]),  # the first tokens show where it is not any more
        (20, 7, [0, 1, 2, 3, 5, 6, 7, 8]),
        (20, 12, [0, 1, 2, 3, 10, 11, 12, 13]),
        (20, 19, [0, 1, 2, 3, 16, 17, 18, 19]),
    ],
)
def test_the_tokens_where_reliability_ends_are_shown(length, spent, expected):
    one = sample(length, spent=spent)
    assert shown(one, most=8) == expected
    assert [place for place, *_ in view("one", 7, one, most=8)["tokens"]] == expected
    found = candidates(one, most=8)
    assert found["position"] == expected
    assert {
        len(found[name]) for name in ("sampled", "overlap", "weight", "student", "teacher")
    } == {len(expected)}


def test_a_page_marks_what_it_leaves_out(run, few):
    Records(run / "checkpoints/records").samples(4, [sample(length=9000, spent=7000)])
    page = report.report([read_run(run, "one")], "one")
    found = [
        page.index(mark)
        for mark in ("5500 tokens left out", "R = 0 after 7000", "1500 more tokens")
    ]
    assert found == sorted(found)


def test_the_samples_of_one_step(run):
    one = read_run(run, "one")
    assert {sample["step"] for sample in token_views([one])["samples"]} == {1, 4}
    assert {sample["step"] for sample in token_views([one], step=3)["samples"]} == {3}
    with pytest.raises(ValueError, match="--step: got 5, allowed: steps with samples: 1, 2, 3, 4"):
        token_views([one], step=5)


def test_a_candidate_whose_log_prob_is_not_finite_is_left_out():
    broken = sample()
    broken["student_log_probs"][0][0] = None
    whole, found = candidates(sample(), most=1), candidates(broken, most=1)
    assert found["student"][0] == whole["student"][0][2:]
    assert found["teacher"] == whole["teacher"]


def test_candidates_by_hand():
    found = candidates(sample(), most=1)
    assert found["pieces"] == [" a", EVIL]
    assert found["sampled"] == [0]
    assert found["student"] == [[0, -10, 1, -200]]
    assert found["teacher"] == [[1, -50]]  # an id that no model has is none


def test_what_would_not_be_seen_is_made_visible():
    assert [readable(text) for text in ("\n", "", "\t", " a")] == ["↵\n", "∅", "⇥\t", " a"]


def test_a_page_holds_no_more_than_so_many_tokens(run, monkeypatch):
    monkeypatch.setattr(tokens, "TOKENS", 100)
    long = sample(length=300)
    records = Records(run / "checkpoints/records")
    records.samples(1, [long] * 9)
    records.samples(4, [long] * 9)
    monkeypatch.setattr(tokens, "LEAST", 8)
    found = token_views([read_run(run, "one"), read_run(run, "again")])
    assert len(found["samples"]) == 12
    assert sum(len(one["tokens"]) for one in found["samples"]) <= 100
    assert sum(len(one["sampled"]) for one in found["candidates"]) <= 100


@pytest.mark.parametrize(
    ("runs", "responses", "steps"), [(2, 6, {1, 4}), (4, 2, {1, 4}), (8, 1, {4})]
)
def test_with_many_runs_fewer_responses_are_shown(runs, responses, steps, run):
    Records(run / "checkpoints/records").samples(1, [sample(length=2000)] * 4)
    Records(run / "checkpoints/records").samples(4, [sample(length=2000)] * 4)
    found = token_views([read_run(run, str(number)) for number in range(runs)])["samples"]
    assert len(found) == runs * responses
    assert {one["step"] for one in found} == steps
    assert min(len(one["tokens"]) for one in found) >= 500


# --------------------------------------------------------------------------------------------- page


@pytest.fixture
def few(monkeypatch):
    """Two of the charts: drawing all of them takes seconds."""
    monkeypatch.setattr(report, "CHARTS", report.CHARTS[:2])


def test_odd_bytes_in_the_name_of_a_run_are_shown(run, tmp_path, few):
    odd = run.rename(tmp_path / os.fsdecode(b"a\x1b\x01\xff"))
    page = report.report(read_runs([odd]), "odd")
    assert page.count("a␛␁�") > 2
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)
    page.encode()


def test_what_anybody_wrote_does_not_act(run, few):
    """A model's text, a prompt, a benchmark's name, a run's name, a title."""
    records = Records(run / "checkpoints/records")
    records.samples(4, [sample(text=EVIL)])
    lines = [(step, metrics(step) | {f"val-core/{EVIL}/acc/mean@1": 0.5}) for step in range(1, 5)]
    log = write_log(run / "metrics.jsonl", lines)
    log.write_text(log.read_text() + EVIL)
    page = report.report([read_run(run, EVIL)], EVIL)
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script") == 2  # ours: the data and what shows it
    assert page.count("alert(") >= 5
    (data,) = [part for part in page.split("<script") if 'id="candidates"' in part[:50]]
    body = data[data.index(">") + 1 : data.index("</script")]
    assert EVIL in json.loads(body)[0]["pieces"]
    assert "<" not in body


def test_the_page_of_several_runs_and_one_without_records(run, baseline, few):
    page = report.report(read_runs([run, baseline]), "both")
    assert page.count('<details class="sample"') == 4
    assert '<i style="background:var(--series-1)"></i>two' in page
    only = report.report([read_run(baseline, "two")], "two")
    assert "no run has records" in only
    assert "no run kept samples" in only
    assert "<script" not in only


def test_more_runs_than_colours_are_refused(run):
    with pytest.raises(ValueError, match="got 9 runs, allowed: at most 8"):
        report.report([read_run(run, "one")] * 9, "many")


def test_a_long_run_is_a_small_page(tmp_path):
    """Two of two hundred steps, with all buckets and samples as long as can be."""
    edges = recorded_edges(12288)
    for name in ("one", "two"):
        write_log(
            tmp_path / name / "metrics.jsonl", [(step, metrics(step)) for step in range(1, 201)]
        )
        records = Records(tmp_path / name / "records")
        for step in range(1, 201):
            noise = np.random.default_rng(step).random(len(edges) - 1).tolist()
            where = {"edges": edges, "tokens": [9] * len(noise)} | dict.fromkeys(VALUES, noise)
            records.step(step, record(step) | {"positions": where})
        for step in (1, 200):
            records.samples(step, [sample(length=12288, spent=9000)] * 4)
    page = report.report(read_runs([tmp_path / "one", tmp_path / "two"]), "long")
    assert page.count("R = 0 after 9000") == 12
    assert len(page.encode()) < 3e6


# ------------------------------------------------------------------------------------------ command


def test_the_command_writes_the_page_and_prints_the_summary(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out), "--title", "Mine"]) == 0
    page = out.read_text()
    assert "<title>Mine</title>" in page
    for text in (
        "Accuracy, math",
        "Response limit",
        "Gradient norm",
        "Entropy gap",
        "time goes",
        "R = 0 after 2",
    ):
        assert text in page
    left_out = page[page.index("Left out, because no run logged it") :][:300]
    assert "Student&#39;s entropy" in left_out
    assert "://" not in page
    printed = capsys.readouterr().out
    assert "25.0% → 50.0%" in printed
    assert str(out) in printed


def test_the_summary_as_json(run, baseline, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(baseline), "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert (one["run"], one["tokens"]["saved"], two["tokens"]["saved"]) == ("one", 800, None)
    assert not (tmp_path / "report.html").exists()


def test_names_in_the_table_are_no_markup(run, tmp_path, capsys, few):
    folder = tmp_path / "x [" / "b] :smile:"
    run.rename(folder.parent.mkdir() or folder)
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert "b] :smile:" in capsys.readouterr().out


def test_the_command_shows_the_samples_of_a_step(run, tmp_path, capsys, few):
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out), "--step", "2"]) == 0
    assert out.read_text().count("<summary>one, step 2:") == 2
    assert main(["report", str(run), "--out", str(out), "--step", "9"]) == 2
    assert "--step: got 9, allowed: steps with samples: 1, 2, 3, 4" in capsys.readouterr().err


def test_a_folder_as_output_is_refused_before_the_work(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "report", None)
    assert main(["report", str(run), "--out", str(tmp_path)]) == 2
    assert f"--out: {tmp_path} is a folder, allowed: a file" in capsys.readouterr().err


def test_a_full_disk_leaves_the_page_that_was_there(run, tmp_path, capsys, few, full_disk):
    out = tmp_path / "page.html"
    out.write_text("good")
    with full_disk():
        assert main(["report", str(run), "--out", str(out)]) == 2
    assert f"--out: {out} cannot be written (File too large)" in capsys.readouterr().err
    assert out.read_text() == "good"


def test_a_device_is_no_page(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "report", None)
    out = tmp_path / "page.html"
    os.mkfifo(out)
    assert main(["report", str(run), "--out", str(out)]) == 2
    assert f"--out: {out} is a pipe or a device, allowed: a file" in capsys.readouterr().err


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b'{"step": 1, "da\n', b"\xff\n[1]\n"])
def test_a_log_with_another_beginning_is_one(start, run):
    """A byte order mark, or a line that was torn."""
    file = run / "metrics.jsonl"
    file.write_bytes(start + file.read_bytes())
    found = read_run(run, "one")
    assert sorted(found.logged) == [0, 1, 2, 3, 4]
    assert len(found.faults) == start.count(b"\n")


@pytest.mark.parametrize("step", [True, 10**400, "1", None, -1])
def test_a_line_whose_step_is_no_count_is_none(step, run):
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "data": {"training/global_step": 9}}) + "\n")
    assert max(read_run(run, "one").logged) == 4


@pytest.fixture(scope="module")
def altered(tmp_path_factory) -> Path:
    """A run of two steps, of which the first is written anew each time."""
    folder = tmp_path_factory.mktemp("altered")
    write_log(folder / "metrics.jsonl", [(step, metrics(step)) for step in (1, 2)])
    records = Records(folder / "records")
    for step in (1, 2):
        records.samples(step, [sample()])
        records.step(step, record(step))
    return folder


def drawn(folder: Path) -> None:
    """Everything of a page but its pictures, and those of which the values are odd."""
    found = read_run(folder, "one")
    summary.notes([found])
    summary.cells(summary.summary(found))
    token_views([found])
    for axis in ("step", "tokens", "hours"):
        found.along(axis)
    times.seconds(found)
    if found.recorded:
        for name in by_place.BY_POSITION:
            edges = found.recorded[min(found.recorded)]["positions"]["edges"]
            by_place.by_position(found.recorded.values(), name)
            by_place.grid(found, name, edges)


@given(line=mutated({"step": 1, **record(1)}))
def test_a_record_of_any_form_is_drawn_or_named(line, altered):
    file = altered / "records/steps.jsonl"
    lines = [line, {"step": 2, **record(2)}]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    drawn(altered)


@given(line=mutated({"step": 1, "data": metrics(1)}))
def test_a_line_of_the_log_of_any_form_is_drawn_or_named(line, altered):
    file = altered / "metrics.jsonl"
    lines = [line, {"step": 2, "data": metrics(2)}]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    drawn(altered)


@given(line=mutated(sample()))
def test_a_sample_of_any_form_is_shown_or_refused_in_a_sentence(line, altered):
    Records(altered / "records").step(1, record(1))
    file = altered / "records/samples/step_1.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(line).encode()))
    said = None
    try:
        drawn(altered)
    except ValueError as error:
        said = str(error)
    assert said is None or (said.startswith(str(file)) and "\n" not in said)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.csv",
            "step,loss\n1,0.5\n",
            "x.csv is no file of verl's logger, allowed: one (trainer.logger=[console,file])",
        ),
        ("x.bin", b"\xff\x00\n\xfe", "x.bin is no file of verl's logger"),
        ("x.jsonl", '{"input": "a", "output": "b"}\n', "x.jsonl is no file of verl's logger"),
        ("x.jsonl", '[1]\n{"step": -1, "data": {}}\n', "x.jsonl is no file of verl's logger"),
        ("x.jsonl", "[" * 100_000, "x.jsonl is no file of verl's logger"),
        ("x.jsonl", '{"step": 1, "data"', "x.jsonl is no file of verl's logger"),
        ("x.jsonl", POINTER, "x.jsonl is a Git LFS pointer"),
        ("folder/x.jsonl", POINTER, "x.jsonl is a Git LFS pointer"),
        ("folder/steps.jsonl", POINTER, "steps.jsonl is a Git LFS pointer"),
        ("x.jsonl/y", "", "neither a log nor records"),
        ("a" * 300, None, "cannot be read (File name too long)"),
    ],
)
def test_what_is_no_run_is_said(name, content, message, tmp_path, capsys):
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    given = file if file.parent == tmp_path else file.parent
    assert main(["report", str(given), "--out", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert str(tmp_path) in line


STRANGE = {
    "positions": {"positions": 5},
    "a list": {"positions": record(1)["positions"] | {"overlap": [1.0]}},
    "no edges": {"positions": {"tokens": []}},
    "text": {"positions": record(1)["positions"] | {"events": ["a", "b"]}},
    "a step below 1": {"step": 0},
}


@pytest.mark.parametrize("case", STRANGE)
def test_records_of_another_form_are_left_out_and_named(case, run, few):
    file = run / "checkpoints/records/steps.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0] |= STRANGE[case]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_run(run, "one")
    assert list(found.recorded) == [2, 3, 4]
    assert (
        f"{file} has 1 records of another form, of steps {lines[0]['step']}, left out"
        in found.faults
    )
    report.report([found], "one")


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        POINTER.encode(),
        *map(gzip.compress, (b"[1]", b'{"tokens": [1]}', b"{", b'{"tokens": ' + b"[" * 100_000)),
        gzip.compress(b"[1]" * 99)[:20] + b"\xff" * 20,
    ],
    # A compressed file holds the time it was made.
    ids=[
        "text",
        "pointer",
        "list",
        "token",
        "torn",
        "deep",
        "damaged",
    ],
)
def test_samples_that_are_none_are_one_sentence(content, run, capsys, few):
    file = run / "checkpoints/records/samples/step_4.jsonl.gz"
    file.write_bytes(content)
    (file.parent / "step_x.jsonl.gz").write_bytes(b"")
    assert main(["report", str(run), "--out", str(run / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert content != POINTER.encode() or "Git LFS pointer" in line


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--out", "missing/page.html"]])
def test_bad_input_is_one_sentence(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report: ")
    assert "allowed" in line
