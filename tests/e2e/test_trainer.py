"""The real trainer trains as the method says, reports what it did, and goes on after a kill.

What is real: verl, Ray, TransferQueue and vLLM. Models are tiny; each run takes one to two minutes.
"""

import json
import re
import shutil
from pathlib import Path

import harness
import pytest
import torch
from harness import finished
from transformers import AutoModelForCausalLM

from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.drift import overlap_events, overlap_ratio, reliability
from recipe.prune_opd.method.gates import stops
from recipe.prune_opd.method.reward import Scores, TopK, topk_reward
from recipe.prune_opd.records.files import read_samples, read_steps, sampled_steps
from recipe.prune_opd.records.tally import COLUMNS
from recipe.prune_opd.training.fields import scores_of

pytestmark = pytest.mark.e2e

EXTEND = Path(__file__).resolve().parents[2] / "examples" / "extend"
BUDGET = {"init": 32, "min": 16, "step": 16, "margin": 8}
SAME = {
    "trainer.n_gpus_per_node": 2,
    # 14 responses in mini-batches of 8: verl fills up with padding rows, and the second update has
    # a ratio of its own.
    "data.train_batch_size": 7,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    "trainer.total_training_steps": 5,
    "trainer.save_freq": 1,
    # Adam makes a step of this size out of any gradient, the rounding of a reward of 0 too.
    "actor_rollout_ref.actor.optim.lr": 1e-8,
    **{f"prune_opd.budget.{key}": value for key, value in BUDGET.items()},
}


@pytest.fixture(scope="session")
def same(inputs, tmp_path_factory):
    """Teacher = student on two data-parallel ranks, all loggers, with validation."""
    extra = {"trainer.logger": "[console,file,tensorboard,wandb]", "trainer.val_before_train": True}
    return finished(harness.run(inputs, tmp_path_factory.mktemp("same"), SAME | extra))


@pytest.fixture(scope="session")
def resumed(inputs, tmp_path_factory):
    """The same run killed once step 3 is saved, then started again."""
    folder = tmp_path_factory.mktemp("resumed")
    return finished(harness.run_killed_once(inputs, folder, SAME, saved=3))


@pytest.fixture(scope="session")
def permuted(inputs, tmp_path_factory):
    """A teacher whose vocabulary is permuted, a strategy that needs every pass, temperatures of
    both models."""
    settings = {
        "prune_opd.teacher.path": inputs / "permuted",
        "prune_opd.teacher.temperature": 2.0,
        "prune_opd.strategy": "union",
        "prune_opd.drift.w_drop": 0.1,
        "actor_rollout_ref.rollout.temperature": 0.8,
        "trainer.total_training_steps": 5,
        "prune_opd.budget.patience": 1,
        **{f"prune_opd.budget.{key}": value for key, value in (BUDGET | {"init": 64}).items()},
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("permuted"), settings))


@pytest.fixture(scope="session")
def plain(inputs, tmp_path_factory):
    """Plain OPD on the sampled tokens, without packing and with fixed micro-batches."""
    settings = {
        "prune_opd.teacher.path": inputs / "permuted",
        "prune_opd.strategy": "sampled",
        "prune_opd.drift.metric": "teacher_top_p_accept",
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.actor.use_dynamic_bsz": False,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 4,
        "trainer.total_training_steps": 2,
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("plain"), settings, recipe="opd"))


@pytest.fixture(scope="session")
def gated(inputs, tmp_path_factory):
    """A teacher that drifts from the student, a gate that stops what has, padding rows, two
    ranks."""
    settings = (
        SAME
        | harness.GATED
        | {
            "prune_opd.teacher.path": inputs / "noisy",
            "trainer.total_training_steps": 2,
            "trainer.save_freq": -1,
            "trainer.val_before_train": True,
        }
    )
    return finished(harness.run(inputs, tmp_path_factory.mktemp("gated"), settings))


@pytest.fixture(scope="session")
def extended(inputs, tmp_path_factory):
    """A drift metric, a gate and a strategy of a user's own, named on the command line."""
    settings = SAME | {
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.drift.metric": "my_rules:UnlikelyToken",
        "+prune_opd.drift.args.least": 0.02,
        "prune_opd.strategy": "my_rules:SharedHead",
        "+prune_opd.strategy_args.size": 8,
        "prune_opd.gate.enable": True,
        "prune_opd.gate.kind": "my_rules:Fading",
        "+prune_opd.gate.args.half_life": 4,
        "prune_opd.gate.rate": 0.3,
        "prune_opd.gate.chunk": 16,
        "prune_opd.budget.init": harness.MAX_RESPONSE,
        "trainer.total_training_steps": 2,
        "trainer.save_freq": -1,
    }
    path = {"PYTHONPATH": str(EXTEND)}
    return finished(harness.run(inputs, tmp_path_factory.mktemp("extended"), settings, more=path))


SERVED = SAME | {
    "prune_opd.teacher.path": "noisy",
    "prune_opd.teacher.home": "server",
    "prune_opd.teacher.server.replicas": 2,
    "prune_opd.strategy": "intersection",
    "prune_opd.drift.w_drop": 0.1,
    "trainer.total_training_steps": 8,
    "trainer.save_freq": 100,
}


@pytest.fixture(scope="session")
def orphaned(inputs, tmp_path_factory):
    """A teacher on two servers. One dies when step 1 is over, the other when step 3 is."""
    folder = tmp_path_factory.mktemp("served")

    def kill_teachers() -> bool:
        log = folder / "metrics.jsonl"
        done = len(log.read_text().splitlines()) if log.is_file() else 0
        # The rollout's, one a rank, are started last.
        servers = harness.servers()[: -SERVED["trainer.n_gpus_per_node"]]
        if (done >= 1 and len(servers) == 2) or (done >= 3 and len(servers) == 1):
            harness.kill_with_children(servers[0])
        return False

    settings = SERVED | {"prune_opd.teacher.path": inputs / "noisy"}
    return harness.run(inputs, folder, settings, kill_when=kill_teachers)


@pytest.fixture(scope="session")
def adopted(orphaned, inputs, tmp_path_factory):
    """The same run started again, its teacher being there, with a gate in front of it as well."""
    settings = SERVED | {
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.gate.enable": True,
        "prune_opd.gate.chunk": 16,
    }
    folder = tmp_path_factory.mktemp("adopted")
    shutil.copytree(orphaned.folder / "checkpoints", folder / "checkpoints")
    return finished(harness.run(inputs, folder, settings))


# -------------------------------------------------------------------------------- teacher = student


def test_a_teacher_equal_to_the_student_never_drifts(same):
    assert same.metric("overlap_ratio") == pytest.approx([1] * 5)
    assert same.metric("event_rate") == [0] * 5
    assert same.metric("loss_weight") == pytest.approx([1.5] * 5)
    assert same.metric("kept_tokens") == same.metric("generated_tokens")
    assert same.metric("student_topk_mass") == pytest.approx(same.metric("teacher_topk_mass"))
    assert same.metric("reward_mean") == pytest.approx([0] * 5, abs=1e-4)


def test_the_limit_grows_while_responses_fill_it(same):
    assert same.metric("current_max_response_length") == [32, 48, 64, 80, 96]
    assert same.metric("next_max_response_length") == [48, 64, 80, 96, 96]
    longest = [max(d["lengths"].max().item() for d in same.dump(step)) for step in range(1, 6)]
    assert longest == [32, 48, 64, 80, 96]


def test_validation_keeps_its_own_length(same):
    lines = (same.folder / "validation/0.jsonl").read_text().splitlines()
    lengths = [len(json.loads(line)["output"].split()) for line in lines]
    assert BUDGET["init"] < max(lengths) <= harness.MAX_RESPONSE


def test_the_banner_says_what_is_on(same):
    for words in (
        "Prune-OPD",
        "only_stu, student_p, k = 16",
        "γ = 0.7",
        "w_drop = 0.01",
        "32 to start",
        "gate",
    ):
        assert words in same.output


def test_every_logger_got_the_metrics(same):
    assert list((same.folder / "tensorboard").rglob("events.out.tfevents*"))
    assert list(same.folder.rglob("offline-run*/*.wandb"))
    assert "prune_opd/overlap_ratio" in same.output


def test_metrics_are_those_of_the_dumped_tensors(same, permuted):
    for run in (same, permuted):
        for step, logged in enumerate(run.steps, 1):
            ranks = run.dump(step)
            real = [
                (d, i)
                for d in ranks
                for i in range(len(d["lengths"]))
                if d["response_mask"][i].any()
            ]
            length = 0.0
            totals = dict.fromkeys(("tokens", "overlap", "events", "reward"), 0.0)
            for d, i in real:
                mask = d["response_mask"][i : i + 1]
                overlap = overlap_ratio(
                    d["student_topk_ids"][i : i + 1], d["teacher_topk_ids"][i : i + 1]
                )
                events = overlap_events(overlap, mask, 0.7)
                weights = reliability(events, mask, 0.01 if run is same else 0.1, 0.5)
                length += weights.effective_length.item()
                totals["tokens"] += mask.sum().item()
                totals["overlap"] += (overlap * mask).sum().item()
                totals["events"] += events.sum().item()
                totals["reward"] += d["candidate_advantages"][i].sum().item()
            assert logged["prune_opd/generated_tokens"] == totals["tokens"]
            assert logged["prune_opd/overlap_ratio"] == pytest.approx(
                totals["overlap"] / totals["tokens"], abs=1e-5
            )
            assert logged["prune_opd/event_rate"] == pytest.approx(
                totals["events"] / totals["tokens"], abs=1e-6
            )
            assert logged["prune_opd/pruned_reward_mean"] == pytest.approx(
                totals["reward"] / totals["tokens"], abs=1e-4
            )
            assert logged["prune_opd/effective_response_length_mean"] == pytest.approx(
                length / len(real)
            )


def test_padding_rows_count_in_nothing(same):
    rows = [len(d["lengths"]) for d in same.dump(1)]
    real = sum(int(d["response_mask"].any(-1).sum()) for d in same.dump(1))
    assert (sum(rows), real) == (16, 14)


def test_the_records_say_what_the_metrics_say(same, permuted, gated):
    """Sums by position come from the same tokens, and padding rows, which two of the runs have, are
    in neither."""
    for run in (same, permuted, gated):
        records, faults = read_steps(run.folder / "checkpoints/records")
        assert faults == []
        assert [record["step"] for record in records] == list(range(1, len(run.steps) + 1))
        for record, logged in zip(records, run.steps, strict=True):
            metric = {name.removeprefix("prune_opd/"): value for name, value in logged.items()}
            where, tokens = record["positions"], record["tokens"]
            assert record["limit"] == metric["current_max_response_length"]
            assert record["next_limit"] == metric["next_max_response_length"]
            assert record["length"]["mean"] == pytest.approx(
                metric["response_length/mean"], rel=1e-5
            )
            assert tokens["scored"] == sum(where["tokens"]) == metric["generated_tokens"]
            assert tokens["generated"] == metric["generated_tokens"] + metric.get(
                "gate/overshoot_tokens", 0
            )
            assert tokens["reliable"] == metric["kept_tokens"]
            assert record["share"]["ended"] == pytest.approx(metric["ended_ratio"])
            assert record["share"]["gate"] == pytest.approx(metric.get("gate/stopped_ratio", 0))
            means = {
                "overlap": "overlap_ratio",
                "events": "event_rate",
                "weight": "reliability_weight",
            }
            for name, mean in means.items():
                total = sum(
                    n * value for n, value in zip(where["tokens"], where[name], strict=True)
                )
                assert total / tokens["scored"] == pytest.approx(metric[mean], rel=1e-4, abs=1e-6)


def test_samples_are_rows_of_the_dumped_tensors(same, permuted):
    for run, w_drop in ((same, 0.01), (permuted, 0.1)):
        folder = run.folder / "checkpoints/records"
        assert sampled_steps(folder) == [1]
        found = read_samples(folder, 1)
        assert len(found) == 4
        rows = [(d, i, int(d["lengths"][i])) for d in run.dump(1) for i in range(len(d["lengths"]))]
        for sample in found:
            d, i, length = next(
                (d, i, length)
                for d, i, length in rows
                if d["responses"][i, :length].tolist() == sample["tokens"]
                and d["student_topk_ids"][i, :length, :5].tolist() == sample["student_ids"]
            )
            assert d["response_mask"][i].any()
            assert sample["teacher_ids"] == d["teacher_topk_ids"][i, :length, :5].tolist()
            mask = d["response_mask"][i : i + 1, :length]
            overlap = overlap_ratio(
                d["student_topk_ids"][i : i + 1, :length], d["teacher_topk_ids"][i : i + 1, :length]
            )
            events = overlap_events(overlap, mask, 0.7)
            assert sample["events"] == torch.where(events[0])[0].tolist()
            assert sample["overlap"] == pytest.approx(overlap[0].tolist(), abs=1e-4)
            assert sample["weight"] == pytest.approx(
                reliability(events, mask, w_drop, 0.5).weight[0].tolist(), abs=1e-5
            )


# ------------------------------------------------------------------------------------------- resume


def test_records_of_a_killed_run_go_on(resumed):
    records, _ = read_steps(resumed.folder / "checkpoints/records")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]


def test_a_killed_run_goes_on_with_the_same_state_and_data(same, resumed):
    for step in (3, 4, 5):
        assert resumed.budget(step) == same.budget(step)
    for step in (4, 5):
        assert resumed.prompts(step) == same.prompts(step)
    assert resumed.prompts(4) != resumed.prompts(5)
    assert [step["training/global_step"] for step in resumed.steps] == [4, 5]


def test_fed_the_same_responses_a_restored_budget_takes_the_same_course(same, resumed):
    budget = ResponseBudget(max=harness.MAX_RESPONSE, **BUDGET)
    budget.load_state_dict(resumed.budget(3))
    for step in (4, 5):
        sums = torch.cat([d["prune_opd_sums"] for d in same.dump(step)])
        real = sums[sums[:, COLUMNS.index("tokens")] > 0]
        budget.update(real[:, COLUMNS.index("effective_length")].tolist())
        assert budget.state_dict() == same.budget(step)


# --------------------------------------------------------------------------------- permuted teacher


def test_an_unrelated_teacher_takes_the_limit_down_to_min(permuted):
    assert max(permuted.metric("overlap_ratio")) < 0.3
    assert permuted.metric("current_max_response_length") == [64, 48, 32, 16, 16]
    assert max(permuted.metric("effective_response_length_max")) < 40


@torch.no_grad()
def log_probs(model, dump, i, temperature=1.0):
    """Log-probs (tokens, vocabulary) of a dumped response's positions, by transformers."""
    prompt = dump["prompts"][i]
    if model.config.pad_token_id == 0:
        prompt = prompt[: int((prompt != 0).nonzero().max()) + 1]
    response = dump["responses"][i, : int(dump["lengths"][i])].long()
    logits = model(torch.cat([prompt, response]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def test_every_pass_agrees_with_transformers(permuted, inputs):
    """First step, before any update: ids and log-probs of both models, each at its own
    temperature."""
    (dump,) = permuted.dump(1)
    student = AutoModelForCausalLM.from_pretrained(inputs / "student")
    teacher = AutoModelForCausalLM.from_pretrained(inputs / "permuted")
    for i, length in enumerate(dump["lengths"].tolist()):
        s, t = (log_probs(model, dump, i, heat) for model, heat in ((student, 0.8), (teacher, 2.0)))
        mine = {
            name: value[i, :length]
            for name, value in dump.items()
            if name.startswith(("student_", "teacher_"))
        }
        close = {"atol": 1e-4, "rtol": 0}
        torch.testing.assert_close(mine["student_topk_log_probs"], s.topk(16).values, **close)
        torch.testing.assert_close(mine["teacher_topk_log_probs"], t.topk(16).values, **close)
        torch.testing.assert_close(
            mine["student_topk_log_probs"], s.gather(1, mine["student_topk_ids"].long()), **close
        )
        torch.testing.assert_close(
            mine["teacher_on_student_ids"], t.gather(1, mine["student_topk_ids"].long()), **close
        )
        torch.testing.assert_close(
            mine["student_on_teacher_ids"], s.gather(1, mine["teacher_topk_ids"].long()), **close
        )


def test_updated_weights_reach_the_rollout_servers(permuted, inputs):
    """After four updates too the servers sample from what the trainer holds."""
    assert max(step["training/rollout_probs_diff_max"] for step in permuted.steps) < 1e-3
    before, (dump,) = AutoModelForCausalLM.from_pretrained(inputs / "student"), permuted.dump(5)
    length = int(dump["lengths"][0])
    then, now = (
        log_probs(before, dump, 0, 0.8).topk(16).values,
        dump["student_topk_log_probs"][0, :length],
    )
    assert (then - now).abs().max() > 0.1  # far from the weights they were started with


def test_the_first_loss_is_the_negative_mean_reward(permuted):
    assert_loss_is_reward(permuted)


def assert_loss_is_reward(run):
    """At ratio 1 the loss is -A, whatever the micro-batches."""
    first = run.steps[0]
    assert first["actor/pg_loss"] == pytest.approx(-first["prune_opd/pruned_reward_mean"], rel=1e-4)
    assert first["actor/grad_norm"] > 0


# ----------------------------------------------------------------------------------------- the gate


def test_what_the_gate_stops_is_what_the_trainer_would_not_trust(gated):
    """Every kept token is reliable by the trainer's own passes, and one event more would have ended
    it."""
    for step, logged in enumerate(gated.steps, 1):
        stopped, kept = 0, []
        for dump in gated.dump(step):
            for i, length in enumerate(dump["lengths"].tolist()):
                mask = dump["response_mask"][i : i + 1]
                if not mask.any():
                    continue  # padding
                overlap = overlap_ratio(
                    dump["student_topk_ids"][i : i + 1], dump["teacher_topk_ids"][i : i + 1]
                )
                events = overlap_events(overlap, mask, 0.7)
                assert reliability(events, mask, 0.2, 0.5).effective_length.item() == length
                kept.append(length)
                stopped += dump["prune_opd_sums"][i, COLUMNS.index("gate_stopped")].item()
        assert len(kept) == 14
        assert stopped > 0
        assert logged["prune_opd/gate/stopped_ratio"] == pytest.approx(stopped / 14)
        assert logged["prune_opd/gate/event_agreement"] == 1
        assert logged["prune_opd/zero_weight_ratio"] == 0
        assert logged["prune_opd/generated_tokens"] == logged["prune_opd/kept_tokens"] == sum(kept)
        assert logged["prune_opd/effective_response_length_mean"] == pytest.approx(sum(kept) / 14)
        ends = logged["prune_opd/ended_ratio"] + logged["prune_opd/gate/stopped_ratio"]
        assert logged["prune_opd/limit_hit_ratio"] == pytest.approx(1 - ends)
        assert logged["prune_opd/gate/given_up"] == logged["prune_opd/gate/failed_answers"] == 0
        assert logged["prune_opd/gate/overshoot_tokens"] > 0


def test_rules_from_outside_decide_what_is_drift_what_stops_and_what_is_rewarded(
    extended, monkeypatch
):
    """They are found in the driver, in the worker and in the agent loop, and do what they say."""
    monkeypatch.syspath_prepend(EXTEND)
    from my_rules import Fading, SharedHead, UnlikelyToken

    for part in (
        "my_rules:SharedHead",
        "UnlikelyToken(least=0.02)",
        "Fading(half_life=4, rate=0.3)",
    ):
        assert part in extended.output
    stopped = 0
    for step, logged in enumerate(extended.steps, 1):
        for dump in extended.dump(step):
            scores = scores_of(dump)
            mask = dump["response_mask"].bool()
            events = UnlikelyToken(0.02).events(scores, mask)
            reward = topk_reward(scores, SharedHead(8))
            assert torch.equal(reward.ids.int(), dump["candidate_ids"])
            weights = reliability(events, mask, 0.01, 0.5).loss_weight.unsqueeze(-1)
            torch.testing.assert_close(reward.reward * weights, dump["candidate_advantages"])
            kept = stops(Fading(4, 0.3), events, 1)
            for i, length in enumerate(dump["lengths"].tolist()):
                assert kept[i] >= length  # what is left of a response would not have been stopped
            stopped += dump["prune_opd_sums"][:, COLUMNS.index("gate_stopped")].sum().item()
        assert logged["prune_opd/gate/event_agreement"] == 1
    assert stopped > 0


def test_validation_is_not_gated(gated):
    lines = (gated.folder / "validation/0.jsonl").read_text().splitlines()
    lengths = [len(json.loads(line)["output"].split()) for line in lines]
    assert max(lengths) > max(gated.metric("gate/stop_position_mean"))


# ---------------------------------------------------------------------------------- teacher servers


def test_served_scores_agree_with_transformers(orphaned, inputs):
    """Before any update: the fields a worker group would deliver, for every token of every
    response."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(inputs / name) for name in ("student", "noisy")
    )
    checked = 0
    for dump in orphaned.dump(1):
        for i, length in enumerate(dump["lengths"].tolist()):
            if not dump["response_mask"][i].any():
                continue  # padding
            checked += 1
            s, t = (log_probs(model, dump, i) for model in (student, teacher))
            mine = {
                name: value[i, :length]
                for name, value in dump.items()
                if name.startswith("teacher_")
            }
            close = {"atol": 1e-4, "rtol": 0}
            ids = dump["student_topk_ids"][i, :length].long()
            torch.testing.assert_close(mine["teacher_topk_log_probs"], t.topk(16).values, **close)
            torch.testing.assert_close(
                mine["teacher_topk_log_probs"],
                t.gather(1, mine["teacher_topk_ids"].long()),
                **close,
            )
            torch.testing.assert_close(
                dump["student_topk_log_probs"][i, :length], s.topk(16).values, **close
            )
            overlap = overlap_ratio(ids.unsqueeze(0), mine["teacher_topk_ids"].unsqueeze(0))
            # What a worker group, which knows the teacher's log-prob of every token, would reward.
            mask = torch.ones(1, length)
            weights = reliability(overlap_events(overlap, mask, 0.7), mask, 0.1, 0.5).loss_weight
            top = ((ids, s), (t.topk(16).indices, t))
            own, theirs = (TopK(i.unsqueeze(0), of.gather(1, i).unsqueeze(0)) for i, of in top)
            scores = Scores(
                ids[:, 0].unsqueeze(0),
                own,
                theirs,
                teacher_on_student=t.gather(1, ids).unsqueeze(0),
            )
            reward = topk_reward(scores, strategy="intersection").reward
            torch.testing.assert_close(
                dump["candidate_advantages"][i, :length],
                (reward * weights.unsqueeze(-1))[0],
                **close,
            )
    assert checked == 14


def test_a_dead_teacher_server_costs_nothing(orphaned):
    """At least steps 2 and 3 had one server left."""
    assert len(orphaned.steps) >= 3
    assert set(orphaned.metric("teacher/missing_ratio")) == {0}
    assert "gets no more questions" in orphaned.output
    assert max(orphaned.metric("teacher/hidden_ratio")) > 0
    for step in range(1, len(orphaned.steps) + 1):
        sums = torch.cat([dump["prune_opd_sums"] for dump in orphaned.dump(step)])
        assert (sums[:, COLUMNS.index("tokens")] > 0).sum() == 14


def test_without_any_teacher_left_the_run_stops_with_a_checkpoint(orphaned):
    assert orphaned.returncode not in (0, None)
    message = next(
        line for line in orphaned.output.splitlines() if "lack the teacher's score" in line
    )
    done = len(orphaned.steps)
    # A response may have its score before the server is gone.
    assert float(re.search(rf"step {done + 1}: ([\d.]+)% of the tokens", message)[1]) > 50
    assert "no teacher server is left" in message
    assert f"global_step_{done}," in message
    assert (orphaned.folder / "checkpoints/latest_checkpointed_iteration.txt").read_text() == str(
        done
    )


def test_the_stopped_run_goes_on_where_it_was(same, orphaned, adopted):
    """With the prompts that an uninterrupted run has in these steps; the data's order is its
    seed's."""
    done = len(orphaned.steps)
    assert [step["training/global_step"] for step in adopted.steps] == list(range(done + 1, 9))
    assert done < 5
    for step in range(done + 1, 6):
        assert adopted.prompts(step) == same.prompts(step)
    assert set(adopted.metric("teacher/missing_ratio")) == {0}
    assert set(adopted.metric("gate/event_agreement")) == {1}
    # What the gate had asked for was not asked for again.
    for step in adopted.steps:
        by_gate = step["prune_opd/generated_tokens"] + step["prune_opd/gate/overshoot_tokens"]
        by_gate *= step["prune_opd/gate/teacher_tokens_per_token"]
        assert step["prune_opd/teacher/computed_tokens"] == pytest.approx(by_gate)


# ---------------------------------------------------------------------------------------- plain OPD


def test_plain_opd_keeps_its_limit_and_weights(plain):
    assert plain.metric("current_max_response_length") == [harness.MAX_RESPONSE] * 2
    assert plain.metric("loss_weight") == pytest.approx([1, 1])
    assert plain.metric("pruned_reward_mean") == pytest.approx(plain.metric("reward_mean"))
    assert min(plain.metric("event_rate")) > 0
    assert "plain OPD" in plain.output


def test_fixed_micro_batches_give_the_same_first_loss(plain):
    assert_loss_is_reward(plain)


def test_ray_is_gone_afterwards(gated):
    """Of every run before this test, which is the module's last."""
    import psutil

    folder = str(gated.folder.parent)
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])
    ]
