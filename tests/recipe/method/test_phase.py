"""A frozen run goes live when its overlap says so, once, and knows it after a resume."""

import pytest

from recipe.prune_opd.method.phase import RolloutPhase


@pytest.mark.parametrize(
    ("below", "above", "overlaps", "frozen"),
    [
        (None, None, [0.0, 1.0], [True, True]),
        (0.5, None, [0.9, 0.5, 0.49, 0.9], [True, True, False, False]),
        (None, 0.8, [0.1, 0.8, 0.81, 0.1], [True, True, False, False]),
        (0.3, 0.8, [0.5, 0.2], [True, False]),
    ],
)
def test_goes_live_beyond_a_bound_and_stays_so(below, above, overlaps, frozen):
    phase, seen = RolloutPhase("r", below, above), []
    assert phase.frozen
    switched = []
    for overlap in overlaps:
        switched.append(phase.update(overlap))
        seen.append(phase.frozen)
    assert seen == frozen
    assert sum(switched) == (not frozen[-1])


def test_a_phase_is_gone_on_with():
    phase, resumed = RolloutPhase("r", 0.5), RolloutPhase("r", 0.5)
    phase.update(0.1)
    resumed.load_state_dict(phase.state_dict())
    assert not resumed.frozen


def test_other_rollouts_are_refused_while_frozen():
    state = RolloutPhase("r").state_dict()
    with pytest.raises(ValueError, match=r"got r, but prune_opd\.semi\.dir holds the rollouts s"):
        RolloutPhase("s").load_state_dict(state)
    live = RolloutPhase("s")
    live.load_state_dict(state | {"frozen": False})  # reads none of them
    assert not live.frozen


@pytest.mark.parametrize(
    "state", [None, [], {}, {"frozen": 1, "rollouts": "r"}, {"frozen": True, "rollouts": 5}]
)
def test_a_state_of_another_kind_is_refused(state):
    with pytest.raises(ValueError, match="semi: got"):
        RolloutPhase("r").load_state_dict(state)
