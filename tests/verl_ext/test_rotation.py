"""Servers share questions evenly, and one that lets others down is asked later or no more."""

import asyncio
import pickle
from collections import Counter
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from verl_ext.rollout import rotation
from verl_ext.rollout.rotation import PATIENCE, REST, Rotation
from verl_ext.rollout.rows import BadQuestion, NoServer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A time that passes when told to."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(rotation, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def ask(servers: Rotation, error: BaseException | None = None) -> str:
    """Whose turn it was; the question ends in ``error``."""
    names: list[str] = []
    with nullcontext() if error is None else pytest.raises(type(error)), servers.turn() as name:
        names.append(name)
        if error is not None:
            raise error
    return names[0]


def ask_until(servers: Rotation, wanted: str, error: BaseException) -> None:
    """Questions that are answered, until it is the turn of ``wanted``, which ends in ``error``."""
    for _ in range(1000):
        try:
            with servers.turn() as name:
                if name == wanted:
                    raise error
        except type(error):
            return
    pytest.fail(f"it was never the turn of {wanted}")


def test_the_least_busy_is_asked() -> None:
    servers = Rotation(["a", "b", "c"])
    with ExitStack() as open_questions:
        asked = Counter(open_questions.enter_context(servers.turn()) for _ in range(7))
    assert sorted(asked.values()) == [2, 2, 3]


def test_among_equals_it_is_nobodys_turn_first() -> None:
    """Every rollout worker has a rotation of its own: together they must not all begin with the
    same server."""
    first = Counter(ask(Rotation(["a", "b", "c", "d"])) for _ in range(400))
    assert set(first) == {*"abcd"}


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), asyncio.CancelledError()], ids=["error", "deadline"]
)
def test_one_that_failed_rests_while_others_are_left(
    clock: SimpleNamespace, error: BaseException
) -> None:
    servers = Rotation(["a", "b"])
    ask_until(servers, "a", error)
    with servers.turn(), servers.turn():  # however busy the others are
        assert {ask(servers) for _ in range(50)} == {"b"}
    clock.seconds += REST + 1
    assert {ask(servers) for _ in range(50)} == {"a", "b"}


def test_where_all_rest_the_one_that_rests_longest_is_asked(clock: SimpleNamespace) -> None:
    servers, error = Rotation(["a", "b"]), RuntimeError("out of memory")
    ask_until(servers, "a", error)
    clock.seconds += 5
    ask_until(servers, "b", error)
    assert ask(servers) == "a"
    assert {ask(servers) for _ in range(50)} == {"a"}  # which has answered


def test_a_lone_server_is_asked_whatever_it_does() -> None:
    servers = Rotation(["a"])
    assert [ask(servers, RuntimeError("out of memory")) for _ in range(20)] == ["a"] * 20


def test_a_question_that_is_at_fault_is_not_held_against_a_server(clock: SimpleNamespace) -> None:
    servers = Rotation(["a", "b"])
    for _ in range(20):
        ask(servers, BadQuestion("too long"))
    assert {ask(servers) for _ in range(50)} == {"a", "b"}


def test_one_that_is_not_heard_of_again_and_again_is_out() -> None:
    dropped: list[str] = []
    servers = Rotation(["a"], dropped.append)
    for _ in range(PATIENCE):
        assert not dropped
        ask(servers, asyncio.CancelledError())
    assert dropped == ["a"]
    with pytest.raises(NoServer, match="no teacher server is left"), servers.turn():
        pass


def test_an_answer_in_between_makes_up_for_silence() -> None:
    servers = Rotation(["a"])
    for _ in range(5):
        for _ in range(PATIENCE - 1):
            ask(servers, asyncio.CancelledError())
        ask(servers)
    assert ask(servers) == "a"


def test_a_server_is_dropped_once() -> None:
    """Questions that were under way come back after it is out."""
    dropped: list[str] = []
    servers = Rotation(["a", "b"], dropped.append)
    servers.drop("a")
    servers.drop("a")
    assert dropped == ["a"]
    assert {ask(servers) for _ in range(50)} == {"b"}


def test_a_dropped_server_may_still_answer_what_it_was_asked() -> None:
    servers = Rotation(["a"])
    with servers.turn():
        servers.drop("a")
    with pytest.raises(NoServer), servers.turn():
        pass


def test_it_can_be_sent_to_another_process() -> None:
    assert ask(pickle.loads(pickle.dumps(Rotation(["a"], _nothing)))) == "a"


def _nothing(name: Any) -> None:
    pass
