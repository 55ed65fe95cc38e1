"""A number that verl would trip over later is refused by its key; ordinary ones never are."""

import math

import pytest
from omegaconf import OmegaConf

from recipe.prune_opd.checks.numbers import NUMBERS, OPTIONAL, ROLLOUT
from recipe.prune_opd.training.preflight import check_values

NEVER = [math.nan, math.inf, -7, "many", True, [1]]


@pytest.mark.parametrize("key", [*NUMBERS, *OPTIONAL])
def test_what_is_no_number_or_outside_any_range_is_refused(config, key):
    for found in [*NEVER, *([] if key in OPTIONAL else [None])]:
        OmegaConf.update(config, key, found, force_add=True)
        with pytest.raises(ValueError, match="allowed") as refused:
            check_values(config)
        assert str(refused.value).startswith(f"{key}: got {found!r}, allowed: a ")


@pytest.mark.parametrize("key", OPTIONAL)
def test_null_is_allowed_where_verl_has_a_default(config, key):
    dynamic = key.endswith("max_token_len_per_gpu")  # null there would be no size at all
    OmegaConf.update(config, key, None, force_add=True)
    if dynamic:
        with pytest.raises(ValueError, match=r"got None, allowed: at least"):
            check_values(config)
    else:
        check_values(config)


@pytest.mark.parametrize("key", [key for key, allowed in NUMBERS.items() if allowed.whole])
def test_fractions_of_a_count_are_refused(config, key):
    OmegaConf.update(config, key, 1.5, force_add=True)
    with pytest.raises(
        ValueError, match=rf"^{key.replace('.', '[.]')}: got 1.5, allowed: a whole number"
    ):
        check_values(config)


ZEROS = {
    "data.max_prompt_length",
    "data.max_response_length",
    "data.train_batch_size",
    "data.gen_batch_size",
    f"{ROLLOUT}.n",
    f"{ROLLOUT}.val_kwargs.n",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "trainer.total_training_steps",
}


@pytest.mark.parametrize("key", sorted(ZEROS))
def test_nothing_at_all_is_refused(config, key):
    OmegaConf.update(config, key, 0)
    with pytest.raises(
        ValueError,
        match=rf"^{key.replace('.', '[.]')}: got 0, allowed: a (whole )?number >=? ?[01]",
    ):
        check_values(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{ROLLOUT}.temperature", 0.6),
        (f"{ROLLOUT}.top_p", 0.95),
        (f"{ROLLOUT}.top_k", 50),
        (f"{ROLLOUT}.val_kwargs.temperature", 0),
        ("actor_rollout_ref.actor.optim.lr", 0),
        ("actor_rollout_ref.model.lora_rank", 8),
        ("data.dataloader_num_workers", 0),
        ("trainer.test_freq", -1),
        ("trainer.save_freq", 0),
        ("trainer.total_training_steps", 1),
    ],
)
def test_ordinary_values_are_allowed(config, key, value):
    OmegaConf.update(config, key, value)
    check_values(config)


@pytest.mark.parametrize("key", [f"{ROLLOUT}.temperature", "prune_opd.teacher.temperature"])
@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, 1e-3, 1e300])
def test_temperatures_at_which_nothing_can_be_sampled_are_refused(config, key, temperature):
    OmegaConf.update(config, key, temperature)
    with pytest.raises(
        ValueError,
        match=rf"^{key.replace('.', '[.]')}: got .*, allowed: a number in \[0\.01, 100\]$",
    ):
        check_values(config)
