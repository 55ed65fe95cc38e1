"""With several teachers every response is scored by that of its row: in the worker group, and on
servers while it grows.

What is real: verl, Ray, TransferQueue and the rollout engine. Two ranks, two teachers, one start.
"""

from collections.abc import Iterator
from typing import Any

import harness
import pandas as pd
import pytest
import torch
from contract import K, log_probs_of
from harness import finished
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.prune_opd.records.tally import COLUMNS

pytestmark = pytest.mark.e2e

NAMES = ["noisy", "permuted"]
STEPS, PROMPTS, EACH = 2, 7, 2


@pytest.fixture(scope="session")
def several(inputs, tmp_path_factory) -> harness.Run:
    """A teacher that drifts from the student late, one that does at once, in a column of their
    own; padding rows, validation without teachers."""
    folder = tmp_path_factory.mktemp("several")
    rows = pd.read_parquet(inputs / "data/train.parquet")
    rows["teacher"] = [NAMES[number % 3 > 0] for number in range(len(rows))]
    rows.to_parquet(folder / "train.parquet")
    models = ",".join(f"{name}:{inputs / name}" for name in reversed(NAMES))
    settings = {
        "prune_opd.teacher.path": None,
        "prune_opd.teacher.models": f"{{{models}}}",
        "prune_opd.teacher.key": "teacher",
        "data.train_files": folder / "train.parquet",
        "trainer.n_gpus_per_node": 2,
        "data.train_batch_size": PROMPTS,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.actor.optim.lr": 1e-8,  # the student stays what transformers loads
        "trainer.total_training_steps": STEPS,
        "trainer.val_before_train": True,
        "prune_opd.gate.enable": True,
        "prune_opd.gate.chunk": 16,
        "prune_opd.teacher.server.block_size": 16,
        "prune_opd.drift.w_drop": 0.1,
    }
    return finished(harness.run(inputs, folder, settings))


def responses(run: harness.Run, step: int) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Real responses of a step: fields of each, cut to its tokens, and its teacher's place."""
    for dump in run.dump(step):
        for row, length in enumerate(dump["lengths"].tolist()):
            if dump["response_mask"][row].any():
                fields = {
                    name: value[row, :length]
                    for name, value in dump.items()
                    if name.startswith(("student_", "teacher_", "responses"))
                }
                place = int(dump["prune_opd_sums"][row, COLUMNS.index("teacher")])
                yield fields | {"prompt": dump["prompts"][row]}, place


def rendered(inputs: Any, run: harness.Run) -> list[tuple[list[int], str]]:
    """Prompt ids and the teacher of every row of the data."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "student")
    rows = pd.read_parquet(run.folder / "train.parquet")
    texts = (
        tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
        for prompt in rows["prompt"]
    )
    ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return list(zip(ids, rows["teacher"], strict=True))


def asked_of(prompts: list[tuple[list[int], str]], given: torch.Tensor) -> tuple[list[int], str]:
    """The row of the data that a prompt, filled up with 0, is of."""
    found = given.tolist()
    (one,) = [
        (ids, name)
        for ids, name in prompts
        if found[: len(ids)] == ids and not any(found[len(ids) :])
    ]
    return one


def test_a_response_has_the_scores_of_its_rows_teacher_as_transformers_gives_them(several, inputs):
    models = {name: AutoModelForCausalLM.from_pretrained(inputs / name).eval() for name in NAMES}
    prompts, seen = rendered(inputs, several), set()
    close = {"atol": 1e-4, "rtol": 0}
    for step in range(1, STEPS + 1):
        found = list(responses(several, step))
        assert len(found) == PROMPTS * EACH
        for fields, place in found:
            prompt, name = asked_of(prompts, fields["prompt"])
            assert NAMES[place] == name
            seen.add(name)
            log_probs = log_probs_of(models[name], prompt, fields["responses"].tolist())
            ids, own = (fields[f"{of}_topk_ids"].long() for of in ("student", "teacher"))
            top = fields["teacher_topk_log_probs"]
            torch.testing.assert_close(top, log_probs.topk(K).values, **close)
            torch.testing.assert_close(top, log_probs.gather(1, own), **close)
            on_student = fields["teacher_on_student_ids"]
            torch.testing.assert_close(on_student, log_probs.gather(1, ids), **close)
            (other,) = set(NAMES) - {name}
            theirs = log_probs_of(models[other], prompt, fields["responses"].tolist())
            assert (theirs.gather(1, ids) - on_student).abs().max() > 0.1
    assert seen == set(NAMES)


def test_the_gate_asked_the_same_teacher(several):
    """Servers and trainer find the same events, of two teachers that find different ones."""
    for logged in several.steps:
        assert logged["prune_opd/gate/event_agreement"] == 1
        assert logged["prune_opd/gate/failed_answers"] == logged["prune_opd/gate/given_up"] == 0
        assert logged["prune_opd/gate/stopped_ratio"] > 0


def test_each_is_logged_for_itself(several):
    for step, logged in enumerate(several.steps, 1):
        lengths: dict[str, list[int]] = {name: [] for name in NAMES}
        for fields, place in responses(several, step):
            lengths[NAMES[place]].append(len(fields["responses"]))
        for name, own in lengths.items():
            assert logged[f"prune_opd/teacher/{name}/responses"] == len(own) > 0
            assert logged[f"prune_opd/teacher/{name}/generated_tokens"] == sum(own)
        near, far = (logged[f"prune_opd/teacher/{name}/overlap_ratio"] for name in NAMES)
        assert near > far + 0.1


def test_validation_needs_no_teacher(several):
    assert (several.folder / "validation/0.jsonl").read_text().count("\n") == 8
