"""Task rewards beside distillation are trained on where an estimator is named, or refused in one
sentence."""

import re

import pytest

from recipe.prune_opd.training.preflight import check_values


@pytest.fixture
def checked(compose):
    def check(*settings: str) -> float:
        config = compose("+recipe=prune_opd", "prune_opd.teacher.path=T", *settings)
        prune_opd, _ = check_values(config)
        return prune_opd.task_reward.factor

    return check


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ([], 0),
        (["prune_opd.task_reward.coef=0"], 0),
        (["algorithm.adv_estimator=grpo"], 1),
        (["algorithm.adv_estimator=rloo", "prune_opd.task_reward.coef=0.25"], 0.25),
    ],
)
def test_naming_an_estimator_asks_for_task_rewards(checked, settings, factor):
    assert checked(*settings) == factor


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["prune_opd.task_reward.coef=1"],
            "prune_opd.task_reward.coef: got 1.0, allowed: 0 or null with"
            " algorithm.adv_estimator=prune_opd, others with grpo or such",
        ),
        (
            ["algorithm.adv_estimator=grpo", "prune_opd.task_reward.coef=0"],
            "algorithm.adv_estimator: got 'grpo', allowed with prune_opd.task_reward.coef=0:"
            " prune_opd, because task rewards are not trained on",
        ),
        (["algorithm.adv_estimator=gae"], "algorithm.adv_estimator: got 'gae', allowed: "),
        (["algorithm.adv_estimator=nope"], "algorithm.adv_estimator: got 'nope', allowed: "),
        (
            ["algorithm.adv_estimator=grpo", "prune_opd.semi.enable=true"],
            "prune_opd.task_reward.coef: got 1.0, allowed: 0 or null with semi.enable",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(checked, settings, said):
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        checked(*settings)


def test_an_estimator_that_is_refused_says_why(checked):
    with pytest.raises(ValueError, match=r"rloo_vectorized, because it needs a critic$"):
        checked("algorithm.adv_estimator=gae")


def test_an_estimator_of_the_users_library_is_found(checked, tmp_path, monkeypatch):
    (tmp_path / "my_estimator.py").write_text(
        "from verl.trainer.ppo.core_algos import register_adv_est\n"
        "@register_adv_est('of_a_test')\n"
        "def advantage(token_level_rewards, response_mask, **kwargs):\n"
        "    return token_level_rewards, token_level_rewards\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    library = "actor_rollout_ref.model.external_lib=my_estimator"
    assert checked("algorithm.adv_estimator=of_a_test", library) == 1
