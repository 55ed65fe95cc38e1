"""Known teachers get their verdict: whose signal survives drift, and whose is lost after it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import bigrams
import pytest
import torch

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.commands.diagnose.gradients import Cosines
from recipe.prune_opd.commands.diagnose.recovery import Cut, Recovery, cuts_of, gap_for
from recipe.prune_opd.commands.diagnose.signal import (
    AGREEMENT,
    COSINE,
    LOST,
    RECOVERY,
    STEADINESS,
    SURVIVES,
    UNKNOWN,
    Evidence,
    View,
    judge_signal,
    of_gradients,
    of_recovery,
    of_view,
)
from recipe.prune_opd.commands.pair.sides import rejection_rates, separation, sides_of


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("bigrams")
    data, reward = bigrams.save_data(folder)
    tables = {
        "student": bigrams.student(),
        "healing": bigrams.healing(1),
        "other_healing": bigrams.healing(2),
        "lost": bigrams.lost(1),
        "other_lost": bigrams.lost(2),
    }
    paths = {name: bigrams.save(folder / name, probs) for name, probs in tables.items()}
    return SimpleNamespace(data=data, reward=reward, folder=folder, **paths)


SMALL = [
    *("--prompts", "16", "--samples", "2", "--max-response-length", "32", "--seed", "0"),
    *("--max-prompt-length", "8", "--topk", "8", "--topks", "8", "--thresholds", "0.7"),
    *("--gates", "off", "--steps", "9", "--batch", "16", "--recovery-gap", "1"),
]


def answer_of(made, capsys, teacher: str, *args: str) -> dict:
    given = [made.student, getattr(made, teacher), "--data", made.data, *SMALL, *args, "--json"]
    assert main(["diagnose", *given]) == 0
    return json.loads(capsys.readouterr().out)


def evidence(answer: dict) -> dict[str, dict]:
    return {one["name"]: one for one in answer["signal"]["evidence"]}


# ----------------------------------------------------------------------------------- whole verdicts


def test_a_teacher_that_heals_any_slip_has_a_signal_that_survives(made, capsys):
    found = answer_of(made, capsys, "healing", "--reward-function", made.reward)
    assert found["signal"]["name"] == SURVIVES
    recovery = evidence(found)[RECOVERY]
    assert recovery["before"] > 0.95
    assert recovery["after"] > 0.95
    assert recovery["low"] > 0.8
    assert "plain OPD" in found["signal"]["advice"]


def test_a_teacher_that_is_sure_of_anything_after_a_slip_has_none(made, capsys):
    other = ("--other-teacher", made.other_lost)
    found = answer_of(made, capsys, "lost", "--reward-function", made.reward, *other)
    assert found["signal"]["name"] == LOST
    pieces = evidence(found)
    assert pieces[RECOVERY]["before"] > 0.95
    assert pieces[RECOVERY]["after"] < 0.4  # the student itself has come back in some prefixes
    assert pieces[AGREEMENT]["before"] > 0.95
    assert pieces[AGREEMENT]["high"] < 0.5
    assert "+recipe=prune_opd_gate" in found["signal"]["advice"]
    sides = next(iter(found["signal"]["advice_table"].values()))
    assert sides["after"]["teacher_certainty"] > 0.99  # it is sure all the same
    assert sides["before"]["accepted"] > 0.8
    assert sides["after"]["accepted"] < 0.6


def test_the_other_teacher_alone_tells_them_apart(made, capsys):
    for teacher, name in (("healing", SURVIVES), ("lost", LOST)):
        other = ("--other-teacher", getattr(made, f"other_{teacher}"))
        found = answer_of(made, capsys, teacher, *other)
        assert found["signal"]["name"] == name
        assert RECOVERY not in evidence(found)
        assert any("--reward-function" in reason for reason in found["signal"]["missing"])


def test_gradients_point_to_right_solutions_after_a_slip_only_where_the_teacher_heals(made, capsys):
    given = ("--recoveries", "0", "--solutions", "extra_info.solution", "--gradients", "32")
    healing, lost = (answer_of(made, capsys, one, *given)["signal"] for one in ("healing", "lost"))
    kept = [
        {one["name"]: one["kept"] for one in signal["evidence"]}[COSINE]
        for signal in (healing, lost)
    ]
    assert kept[0] > 0.5
    assert healing["name"] != LOST
    assert kept[1] < 0.3
    assert lost["name"] == LOST


def test_one_model_without_answers_cannot_tell_and_says_what_would(made, capsys):
    found = answer_of(made, capsys, "lost")
    assert found["signal"]["name"] == UNKNOWN
    reason = found["signal"]["reason"]
    assert "give --reward-function" in reason
    assert "no --solutions" in reason
    assert "no --other-teacher" in reason


def test_overlap_that_separates_nothing_is_told_with_the_metric_that_does(made, capsys):
    found = answer_of(made, capsys, "lost")
    (note,) = [note for note in found["notes"] if "separates nothing" in note]
    assert "prune_opd.drift.metric=teacher_top_p_accept" in note
    rates = found["signal"]["separation"]
    nucleus = rates["teacher_top_p_accept"]
    assert rates["before"] == pytest.approx(rates["after"], abs=0.1)
    assert nucleus["after"] > 4 * nucleus["before"]


@pytest.mark.parametrize(("teacher", "status"), [("lost", "warning"), ("student", "ok")])
def test_doctor_tells_of_overlap_that_separates_nothing(made, capsys, teacher, status):
    given = [made.student, getattr(made, teacher), "--data", made.data, "--tokens", "40"]
    lengths = ["--max-prompt-length", "8", "--max-response-length", "40", "--topk", "8"]
    main(["doctor", *given, *lengths, "--json"])
    findings = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    found = findings["drift metric"]
    assert found["status"] == status
    assert ("drift.metric=teacher_top_p_accept" in found["change"]) == (status == "warning")
    assert "share 0.12" in findings["vocabulary"]["evidence"]


def test_settings_go_with_the_metric_that_is_planned(made, capsys):
    found = answer_of(made, capsys, "lost", "--metric", "teacher_top_p_accept")
    settings = found["recommended"]["settings"]
    assert settings["drift.metric"] == "teacher_top_p_accept"
    assert settings["drift.top_p"] == 0.95
    assert "drift.threshold" not in settings
    assert {cell["threshold"] for cell in found["grid"]} == {0.9, 0.95, 0.99}
    rates = found["signal"]["separation"]
    assert found["events"]["mean"] > rates["teacher_top_p_accept"]["before"]
    assert not any("separates nothing" in note for note in found["notes"])


def test_what_was_sampled_is_graded_again_from_its_file(made, tmp_path, capsys):
    reward = ("--reward-function", made.reward)
    first = answer_of(made, capsys, "healing", *reward, "--out", str(tmp_path))
    file = str(tmp_path / "diagnosis.rollouts.jsonl")
    given = [made.student, made.healing, "--rollouts", file, *SMALL, *reward, "--json"]
    assert main(["diagnose", *given]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["signal"] == first["signal"]
    page = (tmp_path / "diagnosis.html").read_text()
    assert "signal survives drift" in page
    assert "two samples of the teacher agree" in page


def test_what_cannot_be_used_is_named_before_weights_are_loaded(made, tmp_path, capsys):
    short = bigrams.save_data(tmp_path, rows=16)[0]
    cases = {
        ("--solutions", "nothing"): "--solutions: got nothing, which holds 'None'",
        ("--solutions", "extra_info.solution", "--data", short): "no row beyond the 16",
        ("--other-teacher", "nowhere/at/all"): "--other-teacher: nowhere/at/all does not exist",
        ("--reward-function", made.reward, "--reward-name", "x"): "--reward-function: 'x' cannot",
    }
    for args, message in cases.items():
        given = [made.student, made.lost, "--data", made.data, *SMALL, *args]
        assert main(["diagnose", *given]) == 2
        assert message in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- parts


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


def test_a_response_is_parted_at_its_first_event():
    events, mask = bools("00101", "00000", "10001"), bools("11111", "11100", "11111")
    sides = sides_of(events, mask)
    assert torch.equal(sides.before, bools("11000", "11100", "00000"))
    assert torch.equal(sides.first, bools("00100", "00000", "10000"))
    assert torch.equal(sides.after, bools("00011", "00000", "01111"))
    found = rejection_rates(events, sides)
    assert found.before == 2 / 7  # two first ones among 2 + 3 + 0 tokens before and themselves
    assert found.after == 2 / 6


def test_a_metric_separates_nothing_where_it_has_as_many_events_before_as_after():
    events = torch.zeros(1, 101).bool()
    events[0, 50] = True
    sides = sides_of(events, torch.ones(1, 101).bool())
    half = (torch.arange(101) % 2 == 0).unsqueeze(0)
    assert separation(half, sides).none
    assert not separation(half & sides.after, sides).none
    assert not separation(torch.zeros_like(half), sides).none  # it never fires


def test_prefixes_are_of_many_prompts_and_leave_something_to_write():
    events = bools("0100000", "0100000", "0000010", "0010000", "0000000")
    sides = sides_of(events, torch.ones(5, 7).bool())
    groups = torch.tensor([0, 0, 1, 1, 2])
    assert cuts_of(sides, groups, 2, 9) == [Cut(0, 1, 4), Cut(3, 2, 5), Cut(1, 1, 4)]
    assert cuts_of(sides, groups, 2, 2) == [Cut(0, 1, 4), Cut(3, 2, 5)]
    assert [gap_for(limit) for limit in (8, 60, 155, 2048, 12288)] == [1, 3, 9, 64, 64]


def recovered(before: list[bool], after: list[bool]) -> Evidence:
    cuts = [Cut(row, 1, 3) for row in range(len(before))]
    return of_recovery(Recovery(cuts, before, after, (0, 0)), torch.arange(len(before)), 0)


def test_recovery_speaks_when_its_whole_interval_is_beyond_a_bound():
    yes, no = [True] * 16, [False] * 16
    assert recovered(yes, yes).says == SURVIVES
    assert recovered(yes, no).says == LOST
    assert recovered(yes, yes[:12] + no[:4]).says == UNKNOWN  # 75 %
    assert recovered(yes[:7], no[:7]).says == UNKNOWN  # few prompts
    rare = recovered(yes[:2] + no[:14], no)
    assert rare.says == UNKNOWN
    assert "rarely reaches the answer even from before" in str(rare)


def test_a_second_view_counts_where_the_teacher_pushes():
    events = torch.zeros(10, 30).bool()
    events[:, 9] = True
    sides = sides_of(events, torch.ones(10, 30).bool())
    same = ~(sides.after & (torch.arange(30) % 4 == 0))  # disagrees at every fourth token after
    weight = torch.where(same, 0.01, 1.0)  # which is where it pushes
    groups = torch.arange(10)
    assert of_view(View(AGREEMENT, same, torch.ones(10, 30)), sides, groups, 0).says == UNKNOWN
    found = of_view(View(AGREEMENT, same, weight), sides, groups, 0)
    assert found.says == LOST
    assert found.after == pytest.approx(0.15 / 5.15)  # 15 that agree, 5 that do not


def test_gradients_that_say_nothing_before_drift_say_nothing():
    noise = torch.tensor([0.1, -0.1] * 8, dtype=torch.float64)
    assert of_gradients(Cosines(noise, noise, list(range(16))), torch.arange(16), 0).fault
    clear = of_gradients(Cosines(noise + 1, 0 * noise, list(range(16))), torch.arange(16), 0)
    assert clear.says == LOST
    grown = of_gradients(Cosines(noise, noise + 0.5, list(range(16))), torch.arange(16), 0)
    assert grown.says == SURVIVES  # nothing to learn before, and right things to learn after


KEPT = {SURVIVES: (0.9, 1.1), LOST: (0.1, 0.3), UNKNOWN: (0.5, 0.9)}


def piece(name: str, says: str) -> Evidence:
    low, high = KEPT[says]
    return Evidence(name, 1.0, (low + high) / 2, low, high, 16)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({RECOVERY: SURVIVES, STEADINESS: UNKNOWN}, SURVIVES),
        ({RECOVERY: LOST, STEADINESS: LOST}, LOST),
        ({RECOVERY: LOST, STEADINESS: SURVIVES}, UNKNOWN),
        ({RECOVERY: LOST, AGREEMENT: SURVIVES}, UNKNOWN),
        ({RECOVERY: LOST, AGREEMENT: LOST}, LOST),
        ({RECOVERY: LOST, COSINE: SURVIVES}, SURVIVES),
        ({RECOVERY: UNKNOWN, AGREEMENT: LOST}, LOST),
        ({COSINE: LOST, AGREEMENT: SURVIVES}, UNKNOWN),
        ({RECOVERY: SURVIVES, COSINE: LOST}, UNKNOWN),
        ({STEADINESS: LOST}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_evidence_speaks_with_one_voice_or_not_at_all(given, verdict):
    found = [piece(name, says) for name, says in given.items()]
    assert judge_signal(found, ["something is missing"], 9).name == verdict


def test_a_fault_silences_a_piece_of_evidence():
    assert replace(piece(RECOVERY, LOST), fault="few").says == UNKNOWN
    assert Evidence(RECOVERY, 1.0, 0.1, math.nan, math.nan, 1).says == UNKNOWN


def test_responses_without_a_rejected_token_are_told():
    assert "no response has a token" in judge_signal([], ["no --solutions"], 0).reason


def test_the_reward_function_may_give_an_object(tmp_path: Path):
    from recipe.prune_opd.commands.diagnose.arguments import Arguments
    from recipe.prune_opd.commands.diagnose.grading import grade_of
    from recipe.prune_opd.commands.diagnose.questions import Question

    file = tmp_path / "reward.py"
    file.write_text("def f(**given): return {'score': -1.0, 'acc': given['solution_str'] == 'x'}")
    args = Arguments("", "", reward_function=str(file), reward_name="f")
    question = Question([1], "s", "x")
    grade, _ = grade_of(args, [question])
    assert grade is not None
    assert [grade(question, text) for text in "xy"] == [True, False]
    assert grade_of(args, [Question([1])])[0] is None


def test_mathematical_answers_are_graded_without_a_reward_function():
    from recipe.prune_opd.commands.diagnose.arguments import Arguments
    from recipe.prune_opd.commands.diagnose.grading import grade_of
    from recipe.prune_opd.commands.diagnose.questions import Question

    question = Question([1], "math_dapo", "34")
    grade, _ = grade_of(Arguments("", ""), [question])
    assert grade is not None
    assert grade(question, r"so it is \boxed{34}")
    assert not grade(question, r"so it is \boxed{35}")
