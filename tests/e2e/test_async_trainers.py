"""verl's asynchronous trainers train as the method says: each response is judged by the limit it
was sent out under, the limit moves once a step, and the rollout servers get the weights.

What is real: verl, Ray, TransferQueue, the engine. Models are tiny.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pandas as pd
import pytest
import torch
from harness import finished
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.drift import overlap_events, overlap_ratio, reliability
from recipe.prune_opd.records.files import read_steps
from recipe.prune_opd.records.tally import COLUMNS

pytestmark = pytest.mark.e2e

BUDGET = {"init": 32, "min": 16, "max": 96, "step": 16, "margin": 8}
GATED = ("gated_late", "hybrid")
STEPS, W_DROP = 5, 0.05
SHARED = {
    "prune_opd.drift.w_drop": W_DROP,
    "trainer.total_training_steps": STEPS,
    # Large: weights that did not arrive would be seen.
    "actor_rollout_ref.actor.optim.lr": 5e-4,
    **{f"prune_opd.budget.{key}": value for key, value in BUDGET.items()},
    "actor_rollout_ref.rollout.val_kwargs.temperature": 0,
    "trainer.test_freq": STEPS,
    "trainer.save_freq": STEPS,
    "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
}


@pytest.fixture(scope="session")
def colocated(inputs, tmp_path_factory) -> harness.Run:
    """A command of verl's with a trainer mode of verl's, and the recipe."""
    settings = SHARED | {
        "trainer.v1.trainer_mode": "colocate_async",
        "prune_opd.teacher.path": inputs / "noisy",
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("colocated"), settings))


SEPARATE = SHARED | {
    "prune_opd.trainer_mode": "separate_async",
    "trainer.v1.separate_async.parameter_sync_step": 2,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    "actor_rollout_ref.rollout.nnodes": 1,
    "actor_rollout_ref.rollout.n_gpus_per_node": 1,
}


@pytest.fixture(scope="session")
def separate(inputs, tmp_path_factory) -> harness.Run:
    """Two updates a step, a rollout with devices of its own alone, and a strategy with one more
    pass of the student after the teacher's."""
    settings = SEPARATE | {
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.strategy": "union",
        "actor_rollout_ref.hybrid_engine": False,
    }
    folder, quiet = tmp_path_factory.mktemp("separate"), {"VERL_LOGGING_LEVEL": "WARN"}
    return finished(harness.run(inputs, folder, settings, more=quiet))


@pytest.fixture(scope="session")
def gated_late(inputs, tmp_path_factory) -> harness.Run:
    """A teacher on servers, and a gate: responses are followed, put by for an update, and followed
    again."""
    settings = SHARED | {
        "prune_opd.trainer_mode": "colocate_async",
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.teacher.home": "server",
        "prune_opd.strategy": "intersection",
        "prune_opd.gate.enable": True,
        "prune_opd.gate.chunk": 16,
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("gated_late"), settings))


@pytest.fixture(scope="session")
def hybrid(inputs, tmp_path_factory) -> harness.Run:
    """A rollout that is on the training devices, too, with a gate, on two data-parallel ranks."""
    settings = SEPARATE | {
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.gate.enable": True,
        "prune_opd.gate.chunk": 16,
        "trainer.n_gpus_per_node": 2,
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("hybrid"), settings))


@pytest.fixture(scope="session", params=["colocated", "separate", *GATED])
def late(request) -> harness.Run:
    """Each of them."""
    return request.getfixturevalue(request.param)


def responses(run: harness.Run, step: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The dumped responses of a step, without padding: their tensors, and their row."""
    for dump in run.dump(step):
        for row in range(len(dump["lengths"])):
            if dump["response_mask"][row].any():
                yield dump, row


def column(dump: dict[str, Any], row: int, name: str) -> float:
    return dump["prune_opd_sums"][row, COLUMNS.index(name)].item()


def test_every_step_trains_on_a_whole_batch(late):
    assert len(late.steps) == STEPS
    assert [len(list(responses(late, step))) for step in range(1, STEPS + 1)] == [16] * STEPS


def test_events_are_counted(late):
    for step, logged in enumerate(late.steps, 1):
        events = tokens = 0.0
        for dump, row in responses(late, step):
            part, mask = slice(row, row + 1), dump["response_mask"][row : row + 1]
            overlap = overlap_ratio(dump["student_topk_ids"][part], dump["teacher_topk_ids"][part])
            found = overlap_events(overlap, mask, 0.7)
            weights = reliability(found, mask, W_DROP, 0.5)
            assert column(dump, row, "effective_length") == weights.effective_length.item()
            events, tokens = events + found.sum().item(), tokens + mask.sum().item()
        assert 0 < events <= tokens
        assert logged["prune_opd/event_rate"] == pytest.approx(events / tokens)
        assert logged["prune_opd/generated_tokens"] == tokens


def test_a_response_carries_the_limit_it_was_sent_out_under(late):
    """One batch is ahead from the start, so no prompt of a step was sent out in it."""
    limits = late.metric("current_max_response_length")
    sent_out = [limits[0], *limits]
    lengths = []
    for step, logged in enumerate(late.steps, 1):
        carried = {column(dump, row, "limit") for dump, row in responses(late, step)}
        assert carried <= set(sent_out[: step + 1])
        assert logged["prune_opd/response_limit_min"] == min(carried)
        assert logged["prune_opd/response_limit_max"] == max(carried)
        for dump, row in responses(late, step):
            lengths.append((int(dump["lengths"][row]), column(dump, row, "limit")))
    assert all(length <= limit for length, limit in lengths)
    assert any(length == limit for length, limit in lengths) or "prune_opd/gate/given_up" in logged
    late_steps = [
        step["prune_opd/response_limit_min"] < step["prune_opd/current_max_response_length"]
        for step in late.steps
    ]
    assert any(late_steps)


def test_the_limit_moves_once_a_step_by_the_limits_that_responses_carry(late):
    budget = ResponseBudget(**BUDGET)
    for step, logged in enumerate(late.steps, 1):
        rows = list(responses(late, step))
        lengths, limits = (
            [int(column(dump, row, name)) for dump, row in rows]
            for name in ("effective_length", "limit")
        )
        expected = budget.update(lengths, limits)
        assert {name: logged[name] for name in expected} == pytest.approx(expected)
    assert len(set(late.metric("next_max_response_length"))) > 1
    assert late.budget(STEPS) == budget.state_dict()


def test_the_records_have_a_line_a_step(late):
    steps, faults = read_steps(late.folder / "checkpoints/records")
    assert faults == []
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert [step["responses"] for step in steps] == [16] * STEPS
    assert [step["limit"] for step in steps] == late.metric("current_max_response_length")


def test_the_rollout_servers_have_the_trained_weights(late, inputs):
    """Greedy answers to the validation prompts are those of the last checkpoint, and no longer
    those of the starting student."""
    saved = late.folder / f"checkpoints/global_step_{STEPS}/actor/huggingface"
    lines = (late.folder / f"validation/{STEPS}.jsonl").read_text().splitlines()
    served = {line["input"]: line["output"] for line in map(json.loads, lines)}
    trained, starting = (greedy(folder, inputs) for folder in (saved, inputs / "student"))
    assert served.keys() == trained.keys()
    same = sum(served[prompt] == trained[prompt] for prompt in served)
    stale = sum(served[prompt] == starting[prompt] for prompt in served)
    assert same >= len(served) - 1  # two engines may break a tie differently
    assert stale <= len(served) // 2


def greedy(folder: Path, inputs: Path) -> dict[str, str]:
    """Answers of a model to the validation prompts, as verl's dumps have them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(inputs / "student")
    answers = {}
    for turns in pd.read_parquet(inputs / "data/validation.parquet")["prompt"]:
        text = tokenizer.apply_chat_template(
            list(turns), add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        found = model.generate(ids, do_sample=False, max_new_tokens=harness.MAX_RESPONSE)[0]
        prompt, answer = (
            tokenizer.decode(part, skip_special_tokens=True)
            for part in (found[: ids.shape[1]], found[ids.shape[1] :])
        )
        answers[prompt] = answer
    return answers


def test_both_passes_of_the_student_see_the_same_weights(separate):
    """Those that the step began with, in its second update, too: an id that is among both models'
    candidates has one log-prob of the student."""
    compared = 0
    for step in range(1, STEPS + 1):
        assert len(separate.dump(step)) == 2
        for dump, row in responses(separate, step):
            length = int(dump["lengths"][row])
            own, theirs = (dump[f"{of}_topk_ids"][row, :length] for of in ("student", "teacher"))
            shared = own.unsqueeze(-1) == theirs.unsqueeze(-2)
            top = dump["student_topk_log_probs"][row, :length].unsqueeze(-1).expand(shared.shape)
            again = dump["student_on_teacher_ids"][row, :length].unsqueeze(-2).expand(shared.shape)
            torch.testing.assert_close(top[shared], again[shared], atol=1e-4, rtol=0)
            compared += int(shared.sum())
    assert compared > 0


# ------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="session")
def interrupted(inputs, tmp_path_factory) -> harness.Run:
    """A run that is killed once step 2 is saved, with responses under way, and started again."""
    settings = SHARED | {
        "prune_opd.trainer_mode": "colocate_async",
        "prune_opd.teacher.path": inputs / "noisy",
        "trainer.v1.colocate_async.num_warmup_batches": 2,
        "trainer.save_freq": 1,
        "trainer.test_freq": -1,
    }
    folder = tmp_path_factory.mktemp("resumed")
    return finished(harness.run_killed_once(inputs, folder, settings, saved=2))


def test_a_resumed_run_loses_no_prompt_and_trains_on_none_twice(interrupted):
    """Of one epoch: what was under way is trained on first."""
    done = [
        {prompt_of(dump, row) for dump, row in responses(interrupted, step)}
        for step in range(1, STEPS + 1)
    ]
    assert [len(prompts) for prompts in done] == [8] * STEPS
    assert len(set.union(*done)) == 8 * STEPS


def prompt_of(dump: dict[str, Any], row: int) -> str:
    """Tokens of a response's prompt, without what it is padded with."""
    return str(dump["prompts"][row].tolist()).rstrip("], 0")


def test_responses_keep_their_limit_over_a_resume(interrupted):
    """Two batches are ahead: those of steps 3 and 4 were sent out before the run was killed."""
    (limit, *_), first = interrupted.metric("current_max_response_length"), interrupted.steps[0]
    assert first["training/global_step"] == 3
    assert limit == interrupted.budget(2)["limit"]
    for step, ahead in ((3, {1, 2}), (4, {1, 2})):
        sent_out = {BUDGET["init"], *(interrupted.budget(saved)["limit"] for saved in ahead)}
        carried = {column(dump, row, "limit") for dump, row in responses(interrupted, step)}
        assert carried <= sent_out
    for step in range(1, STEPS + 1):
        for dump, row in responses(interrupted, step):
            assert int(dump["lengths"][row]) <= column(dump, row, "limit")
