"""A verl process finds our estimator, whose advantage is the reward on generated tokens.

verl's registry is asked, never our module.
"""

import pytest
import torch


@pytest.fixture(scope="module")
def advantage():
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    return get_adv_estimator_fn("prune_opd")


def test_the_plugin_registers_it(advantage):
    assert advantage.__module__ == "recipe.prune_opd.training.advantage"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_it_is_the_reward_on_generated_tokens(advantage, dtype):
    reward = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=dtype)
    advantages, returns = advantage(
        token_level_rewards=reward, response_mask=mask, index=None, config=None
    )
    assert torch.equal(advantages, reward * torch.tensor([[1, 1, 0], [0, 1, 1]]).unsqueeze(-1))
    assert torch.equal(returns, advantages)


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5), (3, 3, 5)])
def test_rewards_of_another_trainer_are_refused_with_the_keys_to_set(advantage, shape):
    with pytest.raises(ValueError, match=r"\(B, T, K\)") as refused:
        advantage(token_level_rewards=torch.zeros(shape), response_mask=torch.ones(2, 3))
    for part in (
        "algorithm.adv_estimator",
        "trainer.v1.trainer_mode=prune_opd",
        "trainer.use_v1=True",
        str(shape),
    ):
        assert part in str(refused.value)
