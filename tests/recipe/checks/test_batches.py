"""Batches that verl could not cut are refused before the first rollout, with the key to change."""

import logging

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.batches import Batches, warn_of_empty_responses
from recipe.prune_opd.training.preflight import check_values

# ------------------------------------------------------------------------------------------- passes


@pytest.mark.parametrize(
    ("dynamic", "size", "allowed"), [(True, None, True), (False, 4, True), (False, None, False)]
)
def test_the_teachers_pass_needs_a_micro_batch(config, dynamic, size, allowed):
    config.actor_rollout_ref.ref.log_prob_use_dynamic_bsz = dynamic
    config.actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu = size
    if allowed:
        check_values(config)
    else:
        with pytest.raises(
            ValueError,
            match=r"^actor_rollout_ref\.ref\.log_prob_micro_batch_size_per_gpu: got None",
        ):
            check_values(config)


@pytest.mark.parametrize(
    "key",
    [
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
        "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    ],
)
def test_micro_batches_must_hold_the_longest_sequence(config, key):
    config.data.max_prompt_length, config.data.max_response_length = 100, 400
    OmegaConf.update(config, key, 500)
    check_values(config)
    OmegaConf.update(config, key, 499)
    with pytest.raises(
        ValueError, match=rf"^{key.replace('.', '[.]')}: got 499, allowed: at least 500"
    ):
        check_values(config)
    # The limit counts, not what validation may generate; and sequence-parallel ranks share a
    # sequence.
    config.prune_opd.budget.max = 399
    check_values(config)
    config.prune_opd.budget.max = None
    config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 2
    check_values(config)


def refusal(config: DictConfig) -> str:
    with pytest.raises(ValueError, match="allowed") as refused:
        check_values(config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("prompts", "samples", "gpus", "parallel", "multiple"),
    [
        (8, 1, 8, 1, None),
        (6, 4, 8, 1, None),  # 24 responses, 3 for each rank
        (6, 2, 8, 1, 4),
        (5, 1, 8, 1, 8),
        (5, 1, 8, 8, None),  # one data-parallel rank
        (3, 1, 8, 4, 2),
        (7, 3, 6, 1, 2),
    ],
)
def test_ranks_take_equal_shares_of_a_mini_batch(
    config, prompts, samples, gpus, parallel, multiple
):
    node = config.actor_rollout_ref
    node.actor.ppo_mini_batch_size, node.rollout.n, config.trainer.n_gpus_per_node = (
        prompts,
        samples,
        gpus,
    )
    node.actor.ulysses_sequence_parallel_size = parallel
    if multiple is None:
        check_values(config)
    else:
        message = refusal(config)
        assert message.startswith(
            f"actor_rollout_ref.actor.ppo_mini_batch_size: got {prompts}, allowed: a multiple of"
            f" {multiple}, "
        )
        assert (
            f"actor_rollout_ref.rollout.n={samples} the {gpus // parallel} data-parallel ranks"
            in message
        )
        node.actor.ppo_mini_batch_size = 5 * multiple
        check_values(config)


def test_the_engines_own_key_of_sequence_parallelism_counts_too(config):
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 3
    refusal(config)
    config.actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size = 8
    assert "actor_rollout_ref.ref" in refusal(config), "the teacher still has 8 ranks"
    config.actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size = 8
    check_values(config)


def test_the_teachers_ranks_do_not_matter_where_it_is_on_servers(config):
    node = config.actor_rollout_ref
    node.actor.ppo_mini_batch_size = config.data.train_batch_size = 2
    node.actor.ulysses_sequence_parallel_size, node.ref.ulysses_sequence_parallel_size = 4, 1
    assert "actor_rollout_ref.ref" in refusal(config)
    config.prune_opd.teacher.home, config.prune_opd.strategy = "server", "intersection"
    check_values(config)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 3),
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size", 3),
        ("actor_rollout_ref.ref.ulysses_sequence_parallel_size", 16),
        ("actor_rollout_ref.actor.fsdp_config.fsdp_size", 3),
        ("actor_rollout_ref.ref.fsdp_config.fsdp_size", 0),
    ],
)
def test_ranks_that_work_together_go_into_all_ranks(config, key, found):
    OmegaConf.update(config, key, found)
    message = refusal(config)
    assert message.startswith(key)
    assert (
        f"got {found}, allowed: a divisor of trainer.nnodes x trainer.n_gpus_per_node, 8" in message
    )
    OmegaConf.update(config, key, 4)
    check_values(config)


@pytest.mark.parametrize("size", [-1, 8, 100])
def test_one_fsdp_group_of_all_ranks_is_allowed(config, size):
    config.actor_rollout_ref.actor.fsdp_config.fsdp_size = size
    check_values(config)


@pytest.mark.parametrize(
    ("key", "share"),
    [
        ("actor.ppo_micro_batch_size_per_gpu", 4),
        ("rollout.log_prob_micro_batch_size_per_gpu", 8),
        ("ref.log_prob_micro_batch_size_per_gpu", 8),
    ],
)
@pytest.mark.parametrize("found", [3, None])
def test_fixed_micro_batches_go_into_a_ranks_share(config, key, share, found):
    node = config.actor_rollout_ref
    config.data.train_batch_size, node.actor.ppo_mini_batch_size, node.rollout.n = 32, 16, 2
    node.actor.use_dynamic_bsz = False
    for name in ("actor.ppo", "rollout.log_prob", "ref.log_prob"):
        OmegaConf.update(node, f"{name}_micro_batch_size_per_gpu", 2)
    check_values(config)
    OmegaConf.update(node, key, found)
    message = refusal(config)
    assert message.startswith(
        f"actor_rollout_ref.{key}: got {found}, allowed with actor_rollout_ref."
    )
    assert f"use_dynamic_bsz=false: a divisor of {share}, " in message
    node.actor.use_dynamic_bsz = True
    check_values(config)


def test_scoring_and_update_cut_micro_batches_alike(config):
    config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz = False
    assert refusal(config).startswith(
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz: got False, allowed: True"
    )


@pytest.mark.parametrize(
    ("found", "allowed"), [(None, True), (1, True), (32, True), (3, False), (128, False)]
)
def test_prompts_are_fetched_in_whole_parts_of_a_batch(config, found, allowed):
    config.data.train_batch_size, config.data.gen_batch_size = 64, found
    if allowed:
        check_values(config)
    else:
        assert refusal(config).startswith(
            f"data.gen_batch_size: got {found}, allowed: null or a divisor of "
        )


def test_vllm_runs_a_token_of_every_sequence_at_once(config):
    rollout = config.actor_rollout_ref.rollout
    rollout.max_num_batched_tokens, rollout.max_num_seqs = 128, 256
    assert refusal(config).startswith(
        "actor_rollout_ref.rollout.max_num_batched_tokens: got 128, allowed with vLLM: "
    )
    rollout.name = "sglang"
    check_values(config)


# ---------------------------------------------------------------------------------- empty responses


@pytest.mark.parametrize(
    ("prompts", "mini", "empty"), [(64, 64, 0), (64, 16, 0), (64, 256, 768), (7, 4, 4)]
)
def test_empty_responses_are_said(config, caplog, prompts, mini, empty):
    """verl pads a batch to whole mini-batches without a word."""
    config.data.train_batch_size, config.actor_rollout_ref.rollout.n = prompts, 4
    config.actor_rollout_ref.actor.ppo_mini_batch_size = mini
    check_values(config)
    batches = Batches.of(config)
    assert batches.filled - batches.given == empty
    with caplog.at_level(logging.WARNING):
        warn_of_empty_responses(config)
    assert [f"{empty} empty" in record.getMessage() for record in caplog.records] == [True] * bool(
        empty
    )
