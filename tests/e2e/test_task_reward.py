"""Task rewards are trained on beside distillation: what verl's estimator makes of them, times their
factor, on the tokens that the student sampled.

The first run is a command of verl's for an agent, GRPO and an asynchronous trainer, to which the
recipe and a teacher are added and nothing is changed.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import torch
from harness import finished
from test_agents import TOOLS

from recipe.prune_opd.method.reward import topk_reward
from recipe.prune_opd.records.tally import COLUMNS
from recipe.prune_opd.training.fields import scores_of

pytestmark = pytest.mark.e2e

STEPS, EACH, COEF = 2, 4, 0.5
SETTINGS = {
    "actor_rollout_ref.rollout.n": EACH,
    "data.train_batch_size": 4,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    "reward.custom_reward_function.path": Path(__file__).parent / "scored.py",
    "trainer.total_training_steps": STEPS,
    **{
        f"prune_opd.budget.{key}": value
        for key, value in {"init": 48, "min": 16, "step": 16, "margin": 8, "max": 96}.items()
    },
    "prune_opd.drift.w_drop": 0.1,
}


@pytest.fixture(scope="session")
def grpo(inputs, tmp_path_factory) -> harness.Run:
    """A command that exists, and the recipe."""
    settings = {
        **SETTINGS,
        **TOOLS,
        "algorithm.adv_estimator": "grpo",
        "trainer.v1.trainer_mode": "colocate_async",
        "prune_opd.teacher.path": inputs / "noisy",
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("grpo"), settings))


@pytest.fixture(scope="session")
def rloo(inputs, tmp_path_factory) -> harness.Run:
    """Another estimator, a factor, and no reward for what was cut."""
    settings = {
        **SETTINGS,
        "algorithm.adv_estimator": "rloo",
        "prune_opd.task_reward.coef": COEF,
        "prune_opd.task_reward.responses": "ended",
        "prune_opd.teacher.path": inputs / "noisy",
    }
    return finished(harness.run(inputs, tmp_path_factory.mktemp("rloo"), settings))


def of_grpo(scores: torch.Tensor) -> torch.Tensor:
    return (scores - scores.mean()) / (scores.std() + 1e-6)


def of_rloo(scores: torch.Tensor) -> torch.Tensor:
    return COEF * (scores - scores.mean()) * EACH / (EACH - 1)


def expected(run: harness.Run, step: int, of: Callable) -> list[float]:
    """Advantages of a step's responses, by their prompts' groups, in ascending order."""
    groups = defaultdict(list)
    for line in run.rollouts(step):
        groups[line["input"]].append(line["score"])
    assert {len(scores) for scores in groups.values()} == {EACH}
    return sorted(
        value for scores in groups.values() for value in of(torch.tensor(scores)).tolist()
    )


def column(dump: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return dump["prune_opd_sums"][:, COLUMNS.index(name)]


def test_advantages_are_those_of_verls_estimator(grpo):
    for step in range(1, STEPS + 1):
        (dump,) = grpo.dump(step)
        given, mask = dump["candidate_advantages"][..., -1], dump["response_mask"].bool()
        assert given[~mask].abs().sum() == 0
        each = given.sum(-1) / mask.sum(-1)
        torch.testing.assert_close(given, each.unsqueeze(-1) * mask)
        assert sorted(each.tolist()) == pytest.approx(expected(grpo, step, of_grpo), abs=1e-5)
        assert each.abs().sum() > 0


def test_a_response_that_was_cut_has_no_part_where_that_is_asked_for(rloo):
    zeros = 0
    for step in range(1, STEPS + 1):
        (dump,) = rloo.dump(step)
        given, mask = dump["candidate_advantages"][..., -1], dump["response_mask"].bool()
        each, ended = given.sum(-1) / mask.sum(-1), column(dump, "ended").bool()
        wanted = expected(rloo, step, of_rloo)
        assert each[~ended].abs().sum() == 0
        for value in each[ended].tolist():
            assert min(abs(value - one) for one in wanted) < 1e-5
        zeros += (~ended).sum().item()
    assert zeros > 0


def test_the_sampled_tokens_come_last_with_their_log_probs(grpo, rloo):
    for run in (grpo, rloo):
        (dump,) = run.dump(1)
        mask = dump["response_mask"].bool()
        assert torch.equal(dump["candidate_ids"][..., -1][mask], dump["responses"][mask].int())
        sampled = dump["candidate_old_log_probs"][..., -1]
        among = dump["candidate_ids"][..., :-1] == dump["candidate_ids"][..., -1:]
        same = torch.where(among, dump["candidate_old_log_probs"][..., :-1], 0.0).sum(-1)
        found = among.any(-1) & mask
        assert found.any()
        torch.testing.assert_close(sampled[found], same[found], atol=1e-4, rtol=0)


def test_what_is_distilled_is_as_without_them(grpo):
    (dump,) = grpo.dump(1)
    reward, mask = topk_reward(scores_of(dump), "only_stu").reward, dump["response_mask"].bool()
    given = dump["candidate_advantages"][..., :-1]
    weight = (given.sum(-1) / reward.sum(-1))[mask]
    assert weight.max() <= 1.5 + 1e-4
    assert weight.min() < 1.5
    torch.testing.assert_close(
        given[mask], reward[mask] * weight.unsqueeze(-1), atol=1e-5, rtol=1e-3
    )


def test_their_share_is_logged(grpo, rloo):
    for run in (grpo, rloo):
        for step, logged in enumerate(run.steps, 1):
            (dump,) = run.dump(step)
            size = dump["candidate_advantages"].abs().sum((0, 1))
            share = (size[-1] / size.sum()).item()
            assert 0 < share < 1
            assert logged["prune_opd/task_reward/share"] == pytest.approx(share, rel=1e-3)


def test_the_student_is_trained_and_the_limit_moves(grpo, rloo):
    for run in (grpo, rloo):
        assert all(logged["actor/grad_norm"] > 0 for logged in run.steps)
        assert all(8 < limit <= 96 for limit in run.metric("next_max_response_length"))
