"""A gate stops where its rule first holds, whatever the chunks it is fed in."""

import random

import pytest
import torch

from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.gates import (
    Consecutive,
    Cumulative,
    Gate,
    GateRule,
    Never,
    Relative,
    Windowed,
    stops,
)

RULES = {
    # name: (a rule, whether it holds at token t, given the events up to and including t)
    "cumulative": (Cumulative(0.1), lambda past: sum(past) >= 10),
    "windowed": (Windowed(8, 0.5), lambda past: len(past) >= 8 and sum(past[-8:]) > 4),
    "consecutive": (Consecutive(4), lambda past: len(past) >= 4 and all(past[-4:])),
    "relative": (
        Relative(10, 0.3),
        lambda past: len(past) >= 20 and sum(past[-10:]) - sum(past[:10]) > 3,
    ),
}


def offline(rule, events: list[bool], min_tokens: int) -> int | None:
    """The first token, after enough others, at which the rule holds on the whole response."""
    return next((t for t in range(min_tokens, len(events)) if rule(events[: t + 1])), None)


def drifting(rng: random.Random, length: int) -> list[bool]:
    """Events that get more frequent along the response, from a random rate to another."""
    first, last = rng.random() * 0.6, rng.random()
    return [rng.random() < first + (last - first) * t / length for t in range(length)]


def feed(gate: Gate, events: list[bool], rng: random.Random) -> int | None:
    """Feed in chunks of random size, an empty one now and then, as far as the gate lets."""
    done, stop = 0, None
    while done < len(events) and stop is None:
        size = rng.randint(0, 9)
        stop = gate.feed(events[done : done + size])
        done += size
    return stop


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("min_tokens", [1, 25])
def test_stop_is_that_of_the_rule_on_the_whole_response(name: str, min_tokens: int) -> None:
    rule, holds = RULES[name]
    rng, stopped = random.Random(name), 0
    for _ in range(400):
        events = drifting(rng, rng.randint(1, 120))
        expected = offline(holds, events, min_tokens)
        assert feed(Gate(rule, min_tokens), events, rng) == expected
        stopped += expected is not None
    assert 20 < stopped < 400  # both outcomes were tested


def test_never_stops_nothing() -> None:
    assert Gate(Never()).feed([True] * 1000) is None


@pytest.mark.parametrize("w_drop", [0.01, 0.03, 0.1, 0.3, 1.0, 2.0])
def test_cumulative_keeps_the_reliable_tokens(w_drop: float) -> None:
    rng = random.Random(0)
    for _ in range(50):
        events = drifting(rng, 300)
        flags = torch.tensor([events])
        effective = int(reliability(flags, torch.ones_like(flags), w_drop, 0.5).effective_length)
        expected = None if effective == len(events) else max(effective, 1)
        assert Gate(Cumulative(w_drop)).feed(events) == expected


def test_goes_on_for_ever_where_nothing_is_lost() -> None:
    assert Gate(Cumulative(0.0)).feed([True] * 1000) is None


def test_a_share_equal_to_the_rate_stops_nothing() -> None:
    """0.7 of 10 tokens, and 0.1 + 0.2: rounding must not decide."""
    assert Gate(Windowed(10, 0.7)).feed(([True] * 7 + [False] * 3) * 5) is None
    assert Gate(Relative(10, 0.1 + 0.2)).feed([False] * 10 + [True] * 3 + [False] * 17) is None
    assert (
        Gate(Relative(10, 0.1 + 0.2)).feed([False] * 10 + [True] * 3 + [False] * 6 + [True]) == 19
    )


def test_relative_stops_nothing_that_was_bad_from_the_start() -> None:
    assert Gate(Relative(16, 0.2)).feed([True] * 500) is None


def test_stop_stays_once_found() -> None:
    gate = Gate(Consecutive(3))
    assert gate.feed([False, True, True, True, False]) == 3
    assert gate.feed([False] * 10) == 3


def test_refuses_to_keep_nothing() -> None:
    with pytest.raises(ValueError, match="min_tokens: got 0"):
        Gate(Cumulative(0.1), 0)


@pytest.mark.parametrize("name", RULES)
def test_many_whole_responses_are_stopped_as_each_alone(name: str) -> None:
    rule, holds = RULES[name]
    rng = random.Random(name)
    responses = [drifting(rng, 100) for _ in range(50)]
    expected = [offline(holds, events, 7) for events in responses]
    found = stops(rule, torch.tensor(responses), 7)
    assert found.tolist() == [100 if stop is None else stop for stop in expected]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_holds_at_its_reach_and_not_before(name: str) -> None:
    """On the response that drifts the soonest, after a clean start if the rule wants one."""
    rule, _ = RULES[name]
    clean = rule.window if isinstance(rule, Relative) else 0
    events = torch.tensor([[False] * clean + [True] * 200])
    assert rule.holds(events)[0].nonzero()[0] + 1 == rule.reach


class Always(GateRule):
    """A rule that hands its input back: nothing of it may be changed."""

    reach = 1

    def holds(self, events: torch.Tensor) -> torch.Tensor:
        return events


def test_a_rule_may_hand_back_what_it_was_given() -> None:
    events = torch.tensor([[True, True, False, True]])
    assert stops(Always(), events, 2).tolist() == [3]
    assert events.tolist() == [[True, True, False, True]]


@pytest.mark.parametrize(
    ("rule", "given", "message"),
    [
        (Windowed, (0, 0.5), "window must be a whole number from 1"),
        (Windowed, (1.5, 0.5), "window must be a whole number, got 1.5"),
        (Windowed, (10**30, 0.5), "window must be a whole number from 1"),
        (Windowed, (8, 1.0), r"rate must be a number in \[0, 1\), got 1.0"),
        (Windowed, (8, float("nan")), r"rate must be a number in \[0, 1\), got nan"),
        (Consecutive, (0,), "run_length must be a whole number from 1"),
        (Relative, (-1, 0.5), "window must be a whole number from 1"),
        (Relative, (8, -0.1), "increase must be a number in"),
        (Cumulative, (-1,), "w_drop must be a number >= 0"),
        (Cumulative, (float("nan"),), "w_drop must be a number >= 0"),
    ],
)
def test_a_rule_that_could_mean_nothing_is_refused(rule, given, message):
    with pytest.raises(ValueError, match=message):
        rule(*given)


@pytest.mark.parametrize("rule", [Windowed(2**31, 0), Consecutive(2**31), Relative(2**31, 0)])
def test_a_window_longer_than_any_response_never_holds(rule):
    assert stops(rule, torch.ones(2, 50, dtype=torch.bool), 1).tolist() == [50, 50]


@pytest.mark.parametrize("w_drop", [1e-19, 1e-25, 5e-324])
def test_next_to_no_weight_lost_stops_nothing(w_drop):
    assert stops(Cumulative(w_drop), torch.ones(1, 50, dtype=torch.bool), 1).tolist() == [50]
    assert Cumulative(w_drop).reach == float("inf")


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES.values()] + [Never()])
def test_a_response_without_tokens_is_not_stopped(rule):
    assert stops(rule, torch.zeros(3, 0, dtype=torch.bool), 1).tolist() == [0, 0, 0]
