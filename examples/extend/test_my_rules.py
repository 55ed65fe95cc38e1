"""Rules from outside the package do what they say, by hand, and are found by their names."""

import pytest
import torch
from my_rules import Fading, SharedHead, UnlikelyToken

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.gates import Gate
from recipe.prune_opd.method.pruning import prune
from recipe.prune_opd.method.reward import Scores, TopK, topk_reward

EVERY = torch.ones(1, 2, dtype=torch.bool)


def scores() -> Scores:
    """Two tokens, K = 3. The teacher gives the first 0.3, and does not list the second."""
    log_probs = torch.tensor([[[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]]).log()
    student = TopK(torch.tensor([[[1, 2, 3], [4, 5, 6]]]), log_probs)
    teacher = TopK(torch.tensor([[[2, 1, 9], [4, 7, 5]]]), log_probs)
    return Scores(torch.tensor([[1, 8]]), student, teacher)


def test_an_unlikely_token_is_an_event():
    assert UnlikelyToken(0.25).events(scores(), EVERY).tolist() == [[False, True]]
    assert UnlikelyToken(0.35).events(scores(), EVERY).tolist() == [[True, True]]
    assert UnlikelyToken(0.35).events(scores(), ~EVERY).tolist() == [[False, False]]


def test_events_fade():
    """With a half-life of one token the average is 1/2, 3/4, 3/8, 11/16."""
    events = torch.tensor([[True, True, False, True]])
    assert Fading(1, 0.7).holds(events).tolist() == [[False, True, False, False]]
    assert Gate(Fading(1, 0.7)).feed([True, True, True]) == 1


@pytest.mark.parametrize(("half_life", "rate", "reach"), [(1, 0.7, 2), (16, 0.6, 22), (8, 0, 1)])
def test_the_reach_is_that_of_nothing_but_events(half_life, rate, reach):
    rule = Fading(half_life, rate)
    assert rule.reach == reach
    assert rule.holds(torch.ones(1, 40, dtype=torch.bool))[0].nonzero()[0] + 1 == reach


def test_the_head_that_both_share():
    found = topk_reward(scores(), SharedHead(2))
    assert found.ids.tolist() == [[[1, 2], [4, 5]]]
    assert found.valid.tolist() == [[[True, True], [True, False]]]
    ours, theirs = torch.tensor([0.6, 0.3]), torch.tensor([0.3, 0.6])
    by_hand = -(ours / ours.sum()) * (ours.log() - theirs.log())
    torch.testing.assert_close(found.reward[0, 0], by_hand)
    torch.testing.assert_close(found.reward[0, 1], torch.zeros(2))


def test_a_configuration_names_them():
    config = PruneOPDConfig.model_validate(
        {
            "teacher": {"path": "T"},
            "drift": {"metric": "my_rules:UnlikelyToken", "args": {"least": 0.25}, "w_drop": 0.5},
            "strategy": "my_rules:SharedHead",
            "strategy_args": {"size": 2},
            "gate": {"kind": "my_rules:Fading", "args": {"half_life": 8}, "rate": 0.2},
        }
    )
    assert config.gate_rule == Fading(8, 0.2)
    pruned = prune(scores(), EVERY, config.rules)
    assert pruned.reliability.weight.tolist() == [[1, 0.5]]
    assert pruned.advantages.shape == (1, 2, 2)
