"""Semi-OPD trains on rollouts that the starting student generated once, and on nothing else.

What is real: verl, Ray, TransferQueue and the rollout engine, as in ``test_trainer.py``.
"""

import json
from pathlib import Path

import harness
import pytest
import torch
from harness import finished

from recipe.prune_opd.records.files import read_steps
from verl_ext.rollout.cache import SHARDS, RolloutCache, read_held, read_response

pytestmark = pytest.mark.e2e

STEPS, PROMPTS, SAMPLES = 6, 7, 2
RESUMED = 4
"""Step of the checkpoint that another run goes on from."""
SEMI = {
    # 14 responses in mini-batches of 8: verl fills up with padding rows.
    "data.train_batch_size": PROMPTS,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    "trainer.total_training_steps": STEPS,
    "trainer.save_freq": 2,
    "trainer.test_freq": 3,
    # Three quarters of the limit: cached responses are cut.
    "prune_opd.budget.enable": True,
    **{f"prune_opd.budget.{key}": value for key, value in {"init": 64, "min": 48}.items()},
    "prune_opd.budget.step": 16,
    "prune_opd.budget.margin": 8,
    "actor_rollout_ref.actor.optim.lr": 1e-3,
}
SCORED = SEMI | {
    "trainer.n_gpus_per_node": 2,  # ranks that write a shard each
    "prune_opd.strategy": "sampled",
    "prune_opd.semi.switch": "overlap",
    "prune_opd.semi.overlap_above": 0.001,
    "trainer.total_training_steps": 3,
    "trainer.save_freq": -1,
    "trainer.test_freq": -1,
}


@pytest.fixture(scope="session")
def filling(inputs, tmp_path_factory):
    """A run with the default strategy, killed when its first shards are there."""
    folder = tmp_path_factory.mktemp("semi")
    rollouts, settings = folder / "checkpoints/rollouts", teacher(inputs, SEMI)
    run = harness.run(
        inputs, folder, settings, "semi_opd", kill_when=lambda: any(rollouts.glob(SHARDS))
    )
    assert run.returncode != 0, run.output[-5000:]
    return folder, {file.name: file.read_bytes() for file in rollouts.glob(SHARDS)}


@pytest.fixture(scope="session")
def semi(filling, inputs):
    """The same run, started again."""
    return finished(harness.run(inputs, filling[0], teacher(inputs, SEMI), "semi_opd"))


@pytest.fixture(scope="session")
def scored(inputs, tmp_path_factory):
    """Rollouts with the teacher's scores, and live after the first step."""
    folder = tmp_path_factory.mktemp("scored")
    return finished(harness.run(inputs, folder, teacher(inputs, SCORED), "semi_opd"))


def teacher(inputs: Path, settings: dict) -> dict:
    return settings | {"prune_opd.teacher.path": inputs / "noisy"}


def cached(run: harness.Run) -> dict[tuple[int, ...], set[tuple[int, ...]]]:
    """Prompt -> its cached responses, as token ids."""
    cache = RolloutCache(run.folder / "checkpoints/rollouts", {}, {})
    cache.load()
    found: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for place in cache._places.values():
        response = read_response(place)
        prompt = tuple(response.prompt.tolist())
        found.setdefault(prompt, set()).add(tuple(response.tokens.tolist()))
    return found


def trained(run: harness.Run, step: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and response of each row that a step was trained on, padding rows left out."""
    rows = []
    for rank in run.dump(step):
        mask = rank["response_mask"].bool()
        for row in range(len(mask)):
            if mask[row].any():
                tokens = rank["responses"][row][mask[row]].tolist()
                prompt = rank["prompts"][row].tolist()
                rows.append((tuple(prompt), tuple(tokens)))
    return rows


def test_a_fill_that_was_killed_goes_on_where_it_stopped(filling, semi):
    folder, before = filling
    rollouts = folder / "checkpoints/rollouts"
    assert before
    assert {name: (rollouts / name).read_bytes() for name in before} == before
    held = [one[:2] for file in rollouts.glob(SHARDS) for one in read_held(file)]
    assert len(held) == len(set(held)) == STEPS * PROMPTS * SAMPLES
    assert not list(rollouts.glob("*.partial"))


def test_nothing_is_generated_after_the_fill(semi):
    generated, total = semi.metric("semi/generated_tokens"), semi.metric("semi/cached_tokens")
    assert 0 < generated[0] < total[0]  # the killed run had generated the rest
    assert generated[1:] == [0] * (STEPS - 1)
    assert semi.metric("semi/frozen") == [1] * STEPS
    assert semi.metric("semi/staleness") == list(range(STEPS))
    records, _ = read_steps(semi.folder / "checkpoints/records")
    assert [record["tokens"]["generated"] for record in records] == generated
    assert {record["tokens"]["saved"] for record in records} == {0}


def test_every_response_is_a_cached_one_cut_at_the_limit(semi):
    responses = cached(semi)
    seen = 0
    for step, limit in enumerate(semi.metric("current_max_response_length"), 1):
        for prompt, tokens in trained(semi, step):
            # Padded on the right.
            known = next(found for key, found in responses.items() if key == prompt[: len(key)])
            assert tokens in {one[: int(limit)] for one in known}
            seen += 1
    assert seen == STEPS * PROMPTS * SAMPLES
    assert min(semi.metric("current_max_response_length")) < harness.MAX_RESPONSE


def test_the_student_is_trained_on_them_as_it_is_now(semi):
    """The ratio is of the current student, not of the one that generated."""
    steps = semi.steps
    assert all(abs(step["actor/pg_loss"]) > 0 for step in steps)
    assert semi.metric("reward_mean")[-1] > semi.metric("reward_mean")[0]
    assert all(step["actor/grad_norm"] > 0 for step in steps)


def test_a_checkpoint_says_in_which_phase_it_is(semi):
    file = semi.folder / f"checkpoints/global_step_{STEPS}/prune_opd.json"
    state, manifest = json.loads(file.read_text()), semi.folder / "checkpoints/rollouts"
    identity = json.loads((manifest / "manifest.json").read_text())["id"]
    assert state["semi"] == {"frozen": True, "rollouts": identity}


def test_cached_scores_are_those_of_the_teacher(scored):
    """The step reads from the cache what the teacher's pass gave when it was filled."""
    assert scored.metric("semi/frozen") == [1, 0, 0]
    assert "rollouts are live from the next step on" in scored.output
    generated, total = scored.metric("semi/generated_tokens"), scored.metric("generated_tokens")
    assert generated[0] == scored.steps[0]["prune_opd/semi/cached_tokens"]
    assert generated[1:] == total[1:]
    frozen, live = scored.dump(1), scored.dump(2)
    for rank in (*frozen, *live):
        mask = rank["response_mask"].bool()
        sampled, top = rank["teacher_sampled_log_probs"], rank["teacher_topk_log_probs"]
        ids, tokens = rank["teacher_topk_ids"], rank["responses"]
        hit = (ids == tokens.unsqueeze(-1)) & mask.unsqueeze(-1)
        assert hit.any()
        # The sampled token's log-prob is that of the same token in the top k.
        difference = (top - sampled.unsqueeze(-1))[hit].abs()
        torch.testing.assert_close(difference, torch.zeros_like(difference), atol=1e-4, rtol=0)


def test_another_run_goes_on_exactly_with_the_same_rollouts(semi, inputs, tmp_path_factory):
    """From the first run's checkpoint, in folders of its own but for the rollouts."""
    first = semi.folder / "checkpoints"
    more = {
        "prune_opd.semi.dir": first / "rollouts",
        "trainer.resume_mode": "resume_path",
        "trainer.resume_from_path": first / f"global_step_{RESUMED}",
        "trainer.save_freq": -1,
    }
    folder = tmp_path_factory.mktemp("another")
    run = finished(harness.run(inputs, folder, teacher(inputs, SEMI | more), "semi_opd"))
    assert run.metric("semi/generated_tokens") == [0] * (STEPS - RESUMED)
    for step in range(RESUMED + 1, STEPS + 1):
        assert sorted(trained(run, step)) == sorted(trained(semi, step))
    for name in ("prune_opd/overlap_ratio", "prune_opd/reward_mean", "actor/pg_loss"):
        ours, theirs = ([step[name] for step in one.steps] for one in (run, semi))
        assert ours == pytest.approx(theirs[RESUMED:], rel=1e-3), name
