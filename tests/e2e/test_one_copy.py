"""One copy of the teacher, on servers, serves events, stops and the rewards of the student's own
candidates, as the paper has them.

What is real: verl, Ray, TransferQueue and the engine. Models are tiny.
"""

import harness
import pytest
import torch
from harness import finished
from test_trainer import SAME, assert_loss_is_reward, log_probs
from transformers import AutoModelForCausalLM

from recipe.prune_opd.method.drift import overlap_events, overlap_ratio
from recipe.prune_opd.records.tally import COLUMNS
from recipe.prune_opd.training.fields import scores_of

pytestmark = pytest.mark.e2e

WIDE, GENEROUS = 48, 80
"""Most likely tokens of the teacher, out of 93."""
SETTINGS = SAME | {
    "prune_opd.teacher.home": "server",
    "prune_opd.budget.init": harness.MAX_RESPONSE,
    "trainer.save_freq": -1,
    "prune_opd.teacher.server.block_size": 16,
}
GATED = SETTINGS | {
    "prune_opd.gate.enable": True,
    "prune_opd.gate.chunk": 16,
    "prune_opd.drift.w_drop": 0.2,
    "trainer.total_training_steps": 2,
}


@pytest.fixture(scope="session")
def one_copy(inputs, tmp_path_factory):
    """The gate asks about the candidates while responses grow; padding rows, two ranks."""
    settings = GATED | {
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.teacher.server.wide_topk": WIDE,
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("one_copy"), settings))


@pytest.fixture(scope="session")
def unlike(inputs, tmp_path_factory):
    """Without a gate, a teacher unlike the student, and a strategy that needs every part."""
    settings = SETTINGS | {
        "prune_opd.teacher.path": inputs / "permuted",
        "prune_opd.teacher.server.wide_topk": GENEROUS,
        "prune_opd.strategy": "union",
        "trainer.n_gpus_per_node": 1,
        "trainer.total_training_steps": 1,
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("unlike"), settings))


@pytest.fixture(scope="session", params=["server", "worker_group"])
def reported(request, inputs, tmp_path_factory):
    """The rollout tells the student's part, whichever home the teacher has; two ranks."""
    wide = {"prune_opd.teacher.server.wide_topk": WIDE if request.param == "server" else 0}
    settings = GATED | wide | {"prune_opd.teacher.home": request.param}
    settings |= {"prune_opd.teacher.path": inputs / "noisy", "prune_opd.student": "rollout"}
    settings["actor_rollout_ref.actor.ppo_mini_batch_size"] = 7  # one, whose loss is that of all
    folder = tmp_path_factory.mktemp(f"reported_{request.param}")
    return finished(harness.run(inputs, folder, settings))


@torch.no_grad()
def outside_of(run, inputs, teacher: str, wide: int) -> tuple[int, float, int]:
    """Candidates outside of the teacher's most likely, the student's probability of them, and
    tokens; by transformers, with which all that was dumped of the first step must agree."""
    student, told = (
        AutoModelForCausalLM.from_pretrained(inputs / name) for name in ("student", teacher)
    )
    count, mass, tokens, close = 0, 0.0, 0, {"atol": 1e-4, "rtol": 0}
    for dump in run.dump(1):
        for i, length in enumerate(dump["lengths"].tolist()):
            if not dump["response_mask"][i].any():
                continue  # padding
            s, t = (log_probs(model, dump, i) for model in (student, told))
            mine = {name: dump[name][i, :length] for name in dump if name.startswith("student_")}
            ids = mine["student_topk_ids"].long()
            torch.testing.assert_close(s.gather(1, ids), s.topk(16).values, **close)
            torch.testing.assert_close(mine["student_topk_log_probs"], s.gather(1, ids), **close)
            # What lies outside is bounded by the last of the row; inside nothing is below that.
            last = t.topk(wide).values[:, -1:]
            expected = t.gather(1, ids)
            found = dump["teacher_on_student_ids"][i, :length]
            torch.testing.assert_close(found, torch.maximum(expected, last), **close)
            outside = expected < last
            count, mass = count + int(outside.sum()), mass + s.gather(1, ids).exp()[outside].sum()
            tokens += length
    return count, float(mass), tokens


def test_the_teacher_scores_the_students_candidates_while_they_are_generated(one_copy, inputs):
    outside, mass, tokens = outside_of(one_copy, inputs, "noisy", WIDE)
    assert outside, "the case is there"
    logged = one_copy.steps[0]
    assert logged["prune_opd/generated_tokens"] == tokens
    assert logged["prune_opd/teacher/outside_ratio"] == pytest.approx(
        outside / (16 * tokens), rel=1e-2
    )
    assert logged["prune_opd/teacher/outside_mass"] == pytest.approx(mass / tokens, rel=1e-2)


def test_gate_and_trainer_go_by_the_same_candidates(one_copy):
    """Whatever engine and trainer round differently: the rollout's are the student's in both."""
    stopped = 0
    for step, logged in enumerate(one_copy.steps, 1):
        assert logged["prune_opd/gate/event_agreement"] == 1
        assert logged["prune_opd/gate/failed_answers"] == 0
        assert logged["prune_opd/teacher/missing_ratio"] == 0
        stopped += logged["prune_opd/gate/stopped_ratio"]
        for dump in one_copy.dump(step):
            scores, mask = scores_of(dump), dump["response_mask"].bool()
            overlap = overlap_ratio(scores.student.ids, scores.teacher.ids)
            events = overlap_events(overlap, mask, 0.7).sum(-1).double()
            torch.testing.assert_close(dump["prune_opd_sums"][:, COLUMNS.index("events")], events)
    assert stopped > 0


def test_without_a_gate_a_finished_response_is_scored_at_them(unlike, inputs):
    outside, mass, tokens = outside_of(unlike, inputs, "permuted", GENEROUS)
    logged = unlike.steps[0]
    assert logged["prune_opd/teacher/outside_ratio"] == pytest.approx(
        outside / (16 * tokens), rel=1e-2, abs=1e-5
    )
    assert logged["prune_opd/teacher/outside_mass"] == pytest.approx(
        mass / tokens, rel=1e-2, abs=1e-5
    )
    assert logged["prune_opd/teacher/missing_ratio"] == 0


def test_the_rollout_tells_what_a_pass_of_the_student_would(reported, inputs):
    """Candidates and their log-probs, of the weights it had."""
    student = AutoModelForCausalLM.from_pretrained(inputs / "student")
    close, tokens = {"atol": 1e-4, "rtol": 0}, 0
    for dump in reported.dump(1):
        for i, length in enumerate(dump["lengths"].tolist()):
            if not dump["response_mask"][i].any():
                continue  # padding
            expected = log_probs(student, dump, i)
            ids = dump["student_topk_ids"][i, :length].long()
            found = dump["student_topk_log_probs"][i, :length]
            torch.testing.assert_close(found, expected.topk(16).values, **close)
            torch.testing.assert_close(found, expected.gather(1, ids), **close)
            tokens += length
    assert tokens == reported.steps[0]["prune_opd/generated_tokens"]


def test_no_pass_of_the_student_is_made_for_it(reported):
    """verl logs the entropy of that pass, and how the rollout's log-probs differ from it."""
    for step in reported.steps:
        assert "actor/entropy" not in step
        assert "training/rollout_probs_diff_mean" not in step
        assert step["prune_opd/gate/event_agreement"] == 1
        assert step["prune_opd/teacher/missing_ratio"] == 0
    assert_loss_is_reward(reported)
    assert "student   as the rollout reports it" in reported.output
