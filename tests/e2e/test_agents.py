"""verl's tool agent trains as a single turn does: what tools say is neither scored nor trained, and
uses the limit up.

A command of verl's with a local tool, to which the recipe and a teacher are added.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from harness import finished
from transformers import AutoModelForCausalLM

from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.drift import overlap_events, reliability, turn_starts
from recipe.prune_opd.method.reward import topk_reward
from recipe.prune_opd.records.tally import COLUMNS
from recipe.prune_opd.teacher.answers import is_missing
from recipe.prune_opd.training.fields import scores_of

pytestmark = pytest.mark.e2e

W_DROP, STEPS = 0.1, 3
BUDGET = {"init": 48, "min": 16, "step": 16, "margin": 8, "max": harness.MAX_RESPONSE}
TOOLS = {
    "actor_rollout_ref.rollout.agent.default_agent_loop": "tool_agent",
    "actor_rollout_ref.rollout.multi_turn.enable": True,
    "actor_rollout_ref.rollout.multi_turn.format": "walk",
    "actor_rollout_ref.rollout.multi_turn.function_tool_path": Path(__file__).parent / "tool.py",
}
"""What a command of verl's says of tools."""
SETTINGS = TOOLS | {
    "prune_opd.drift.w_drop": W_DROP,
    "trainer.total_training_steps": STEPS,
    "trainer.save_freq": STEPS,
    "trainer.val_before_train": True,
    **{f"prune_opd.budget.{key}": value for key, value in BUDGET.items()},
}
TOLD = ["<unk>", "5", "5", "<assistant>"]
"""The tool's answer as the chat template has it; its role is no word of the task's."""


@pytest.fixture(scope="session")
def tools(inputs, tmp_path_factory) -> harness.Run:
    """A teacher in the worker group that drifts from the student."""
    settings = SETTINGS | {"prune_opd.teacher.path": inputs / "noisy"}
    return finished(harness.run(inputs, tmp_path_factory.mktemp("tools"), settings))


@pytest.fixture(scope="session")
def tools_gated(inputs, tmp_path_factory) -> harness.Run:
    """The same teacher on servers, which know responses by the gate; events count by turn."""
    settings = SETTINGS | {
        "prune_opd.teacher.path": inputs / "noisy",
        "prune_opd.teacher.home": "server",
        "prune_opd.strategy": "intersection",
        "prune_opd.gate.enable": True,
        "prune_opd.gate.chunk": 16,
        "prune_opd.drift.scope": "turn",
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("tools_gated"), settings))


@pytest.fixture(scope="session", params=["tools", "tools_gated"])
def agents(request) -> harness.Run:
    """Each of them."""
    return request.getfixturevalue(request.param)


def dumps(run: harness.Run) -> Iterator[dict[str, torch.Tensor]]:
    for step in range(1, STEPS + 1):
        yield from run.dump(step)


def column(dump: dict[str, Any], name: str) -> torch.Tensor:
    return dump["prune_opd_sums"][:, COLUMNS.index(name)]


def test_tools_are_called_and_more_turns_follow(agents):
    words, calls = harness.walk.VOCABULARY, 0
    for dump in dumps(agents):
        for row, length in enumerate(dump["lengths"].tolist()):
            mask = dump["response_mask"][row, :length].bool()
            said = [words[token] for token in dump["responses"][row, :length][~mask].tolist()]
            assert said == TOLD * (len(said) // len(TOLD))
            turns = turn_starts(mask.unsqueeze(0)).sum().item()
            assert turns - 1 <= len(said) // len(TOLD) <= turns
            calls += turns - 1
    assert calls > STEPS


def test_what_tools_say_is_neither_scored_nor_trained(agents):
    served = "gated" in agents.folder.name
    for dump in dumps(agents):
        inside = torch.arange(dump["response_mask"].shape[1]) < dump["lengths"].unsqueeze(1)
        mask = dump["response_mask"].bool()
        said = inside & ~mask
        assert said.any()
        assert dump["candidate_advantages"][said].abs().sum() == 0
        assert dump["prune_opd_counted"][said].sum() == 0
        assert dump["candidate_advantages"][mask].abs().sum() > 0
        assert column(dump, "tokens").tolist() == mask.sum(-1).tolist()
        assert column(dump, "missing").sum() == 0
        if served:
            assert torch.equal(is_missing(dump["teacher_topk_log_probs"])[inside], ~mask[inside])


def test_weights_are_applied_to_the_students_tokens(agents):
    gated = "gated" in agents.folder.name
    strategy = "intersection" if gated else "only_stu"
    lost = 0
    for dump in dumps(agents):
        scores, mask = scores_of(dump), dump["response_mask"].bool()
        events = overlap_events(scores.overlap, mask, 0.7)
        starts = turn_starts(mask) if gated else None
        weights = reliability(events, mask, W_DROP, 0.5, starts)
        reward = topk_reward(scores, strategy).reward
        expected = (reward * weights.loss_weight.unsqueeze(-1))[mask]
        torch.testing.assert_close(dump["candidate_advantages"][mask], expected)
        for name in ("effective_length", "reliable_to"):
            assert column(dump, name).tolist() == getattr(weights, name).tolist()
        lost += (weights.weight[mask] < 1).sum().item()
    assert lost > 0


def test_the_limit_moves_by_positions_and_holds_for_all_tokens(agents):
    budget = ResponseBudget(**BUDGET)
    for dump, logged in zip(dumps(agents), agents.steps, strict=True):
        limit = logged["prune_opd/current_max_response_length"]
        assert column(dump, "limit").tolist() == [limit] * len(dump["lengths"])
        assert dump["lengths"].max() <= limit
        expected = budget.update(column(dump, "reliable_to").tolist())
        assert {name: logged[name] for name in expected} == pytest.approx(expected)
    assert len(set(agents.metric("next_max_response_length"))) > 1
    assert agents.budget(STEPS) == budget.state_dict()


def test_the_student_is_trained(agents, inputs):
    for logged in agents.steps:
        assert logged["actor/grad_norm"] > 0
    before = AutoModelForCausalLM.from_pretrained(inputs / "student").state_dict()
    file = agents.folder / f"checkpoints/global_step_{STEPS}/actor/model_world_size_1_rank_0.pt"
    after = torch.load(file, weights_only=False)
    moved = [
        not torch.equal(before[name], torch.as_tensor(getattr(value, "_local_tensor", value)))
        for name, value in after.items()
    ]
    assert any(moved)


def test_validation_is_verls(agents):
    """Its length is the rollout's, and no gate looks at it."""
    lines = (agents.folder / "validation/0.jsonl").read_text().splitlines()
    assert len(lines) == 8


def test_a_stopped_response_has_no_turn_behind_the_stop(tools_gated):
    stopped = 0
    for dump, logged in zip(dumps(tools_gated), tools_gated.steps, strict=True):
        mask = dump["response_mask"].bool()
        events = overlap_events(scores_of(dump).overlap, mask, 0.7)
        weights = reliability(events, mask, W_DROP, 0.5, turn_starts(mask))
        halted = column(dump, "gate_stopped").bool()
        # All that is kept is reliable, and a tool does not have the last word.
        assert weights.effective_length.tolist() == mask.sum(-1).tolist()
        assert weights.reliable_to[halted].tolist() == dump["lengths"][halted].tolist()
        assert logged["prune_opd/gate/event_agreement"] == 1
        assert column(dump, "gate_tokens").tolist() == mask.sum(-1).tolist()
        stopped += halted.sum().item()
    assert stopped > 0
