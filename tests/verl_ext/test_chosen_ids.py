"""A teacher tells its log-probs at ids of the asker's: exact where its wide row has them, bounded
from above and counted where it has not."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from verl_ext.rollout.client import ScoringClient
from verl_ext.rollout.rows import (
    MISSING,
    MISSING_ID,
    At,
    BadScore,
    Chosen,
    Score,
    TopKRows,
    check_score,
    check_shape,
    good_rows,
    missing_rows,
)
from verl_ext.rollout.scoring import ResponseScorer

K, WIDE, VOCAB, LENGTH, PROMPT = 3, 8, 40, 60, 5


def distribution(count: int, seed: int = 0) -> np.ndarray:
    """Log-softmax (count, VOCAB) of random logits."""
    logits = 3 * np.random.default_rng(seed).standard_normal((count, VOCAB))
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def best(log_probs: np.ndarray, wide: int) -> TopKRows:
    """The most likely ids of each row."""
    ids = np.argsort(-log_probs, axis=-1)[:, :wide]
    return TopKRows(ids.astype(np.int32), np.take_along_axis(log_probs, ids, -1))


def asked(count: int, seed: int = 1) -> np.ndarray:
    """K distinct ids a row."""
    order = np.argsort(np.random.default_rng(seed).random((count, VOCAB)), axis=-1)
    return order[:, :K].astype(np.int32)


def test_by_hand() -> None:
    wide = TopKRows(
        np.array([[5, 2, 9], [1, 0, 4]], np.int32),
        np.array([[-0.5, -2, -3], [-0.2, -1.5, -4]], np.float32),
    )
    found = wide.narrowed(2, At(np.array([[9, 7], [MISSING_ID, 0]], np.int32), 3))
    assert found.ids.tolist() == [[5, 2], [1, 0]]
    assert found.log_probs.tolist() == [[-0.5, -2], pytest.approx([-0.2, -1.5])]
    assert found.chosen.log_probs.tolist() == [[-3, -3], [MISSING, -1.5]]
    assert found.chosen.outside.tolist() == [[False, True], [False, False]]
    assert found.chosen.log_probs.dtype == np.float32


def test_an_id_is_looked_up_in_its_own_row_alone() -> None:
    """Also the largest there are, and none at all where the row before ends with the largest."""
    largest = np.iinfo(np.int32).max
    wide = TopKRows(
        np.array([[largest, 0], [1, 2]], np.int32), np.array([[-1, -2], [-3, -4]], np.float32)
    )
    found = wide.narrowed(1, At(np.array([[largest, 1], [MISSING_ID, largest]], np.int32), 2))
    assert found.chosen.log_probs.tolist() == [[-1, -2], [MISSING, -4]]
    assert found.chosen.outside.tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("wide", [K, WIDE, VOCAB])
def test_inside_exact_outside_bounded_and_counted(wide: int) -> None:
    log_probs, ids = distribution(50), asked(50)
    chosen = best(log_probs, wide).narrowed(K, At(ids, wide)).chosen
    exact = np.take_along_axis(log_probs, ids, -1)
    rank = (log_probs[:, None, :] > exact[:, :, None]).sum(-1)
    np.testing.assert_array_equal(chosen.outside, rank >= wide)
    np.testing.assert_array_equal(chosen.log_probs[~chosen.outside], exact[~chosen.outside])
    assert (chosen.log_probs >= exact).all()
    smallest = np.sort(log_probs, axis=-1)[:, -wide, None].repeat(K, 1)
    np.testing.assert_array_equal(chosen.log_probs[chosen.outside], smallest[chosen.outside])
    assert chosen.outside.any() == (wide < VOCAB)


def test_of_no_rows_there_is_nothing_to_look_up() -> None:
    chosen = best(distribution(0), WIDE).narrowed(K, At(asked(0), WIDE)).chosen
    assert chosen.log_probs.shape == chosen.outside.shape == (0, K)


@pytest.mark.parametrize("rows", [0, 4, 6])
def test_another_number_of_rows_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"^chosen ids: got {rows} rows, allowed: 5, one per"):
        best(distribution(5), WIDE).narrowed(K, At(asked(rows), WIDE))


def test_parts_and_joins_keep_what_was_chosen() -> None:
    rows = best(distribution(9), WIDE).narrowed(K, At(asked(9), WIDE))
    again = TopKRows.join(rows[:4], rows[4:])
    np.testing.assert_array_equal(again.chosen.log_probs, rows.chosen.log_probs)
    np.testing.assert_array_equal(again.chosen.outside, rows.chosen.outside)
    apart = rows.spread(np.arange(1, 19, 2), 20)
    assert np.isneginf(apart.chosen.log_probs[::2]).all()
    np.testing.assert_array_equal(apart.chosen.outside[1:19:2], rows.chosen.outside)
    assert missing_rows(2, K).chosen is None


# ---------------------------------------------------------------------------------------- answers


def answer(count: int, **changed: Any) -> Score:
    rows = best(distribution(count + 1), WIDE)
    told = rows[:count].narrowed(K, At(asked(count), WIDE))
    given = {"rows": told, "ahead": rows[count:]} | changed
    return Score(sampled=-np.ones(count, np.float32), computed=1, **given)


def test_an_answer_has_what_was_asked_for_and_nothing_else() -> None:
    check_shape(answer(4), 4, K, chosen=True)
    rows, ahead = check_score(answer(4), 4, K, VOCAB, WIDE)
    assert (rows.ids.shape, rows.chosen.log_probs.shape, ahead.ids.shape) == (
        (4, K),
        (4, K),
        (1, WIDE),
    )
    with pytest.raises(BadScore, match=r"chosen ids of shapes \(\(4, 3\), \(4, 3\)\), exp.* none"):
        check_shape(answer(4), 4, K)
    plain = best(distribution(4), K)
    with pytest.raises(BadScore, match=r"chosen ids of shapes None, expected \(4, 3\)"):
        check_shape(answer(4, rows=plain), 4, K, chosen=True)
    narrow = Chosen(np.zeros((4, K - 1), np.float32), np.zeros((4, K), np.bool_))
    with pytest.raises(BadScore, match=r"shapes \(\(4, 2\), \(4, 3\)\), expected \(4, 3\)"):
        check_shape(answer(4, rows=TopKRows(plain.ids, plain.log_probs, narrow)), 4, K, chosen=True)
    with pytest.raises(BadScore, match="no row of the token that would come next"):
        check_score(answer(4, ahead=best(distribution(1), K)), 4, K, VOCAB, WIDE)


@pytest.mark.parametrize(
    ("value", "good"), [(np.nan, False), (0.5, False), (MISSING, True), (5e-4, True), (-2e4, True)]
)
def test_at_chosen_ids_an_impossible_token_is_no_fault(value: float, good: bool) -> None:
    given = answer(4)
    given.rows.chosen.log_probs[1, 2] = value
    assert good_rows(given.rows, VOCAB).tolist() == [True, good, True, True]
    if not good:
        with pytest.raises(BadScore):
            check_score(given, 4, K, VOCAB, WIDE)


@pytest.mark.parametrize(("value", "good"), [(np.nan, False), (0.5, False), (MISSING, True)])
def test_the_rest_of_a_wide_row_may_be_impossible(value: float, good: bool) -> None:
    given = answer(4)
    given.ahead.log_probs[0, -1] = value
    if good:
        check_score(given, 4, K, VOCAB, WIDE)
    else:
        with pytest.raises(BadScore):
            check_score(given, 4, K, VOCAB, WIDE)


# ---------------------------------------------------------------------------------------- askers


class Server:
    """A teacher with a distribution for each token; ``late`` answers wait for the event."""

    def __init__(self) -> None:
        self.log_probs = distribution(LENGTH + 1)
        self.questions: list[tuple[int, int, np.ndarray | None]] = []
        self.hold: asyncio.Event | None = None
        self.score = SimpleNamespace(remote=self._score)

    async def _score(
        self, token_ids: list[int], start: int, topk: int, name: str, private: int, at: At
    ) -> Score:
        self.questions.append((start, len(token_ids), at.ids))
        if self.hold:
            await self.hold.wait()
        rows = best(self.log_probs[start : len(token_ids) + 1], at.wide)
        sampled = np.zeros(len(token_ids) - start, np.float32)
        return Score(rows[:-1].narrowed(topk, at), sampled, 1, rows[-1:])


def growing(server: Server, body: Any) -> None:
    async def main() -> None:
        client = ScoringClient(None, None, {})

        async def acquire(request_id: str, **extra: Any) -> tuple[str, Any]:
            return "s", server

        client._acquire_server, client._release_server = acquire, lambda *given, **named: None
        async with client.sequence(PROMPT, K, VOCAB, WIDE) as sequence:
            await body(sequence)

    asyncio.run(main())


@pytest.mark.parametrize("ends", [[60], [6, 7, 40, 41, 60], list(range(6, 61))])
def test_a_growing_sequence_is_told_as_in_one_piece(ends: list[int]) -> None:
    """The row of the next token comes before the student's candidates of it are known."""
    server, ids = Server(), asked(LENGTH)
    expected = best(server.log_probs[PROMPT:LENGTH], WIDE).narrowed(K, At(ids[PROMPT:], WIDE))
    parts = []

    async def body(sequence: Any) -> None:
        begin = PROMPT
        for end in ends:
            parts.append(await sequence.score(list(range(end)), 5, ids[begin:end]))
            begin = end

    growing(server, body)
    rows = TopKRows.join(*parts)
    np.testing.assert_array_equal(rows.ids, expected.ids)
    np.testing.assert_array_equal(rows.chosen.log_probs, expected.chosen.log_probs)
    np.testing.assert_array_equal(rows.chosen.outside, expected.chosen.outside)
    for start, end, given in server.questions:
        np.testing.assert_array_equal(given, ids[start:end])


def test_a_late_answer_is_about_the_ids_it_was_asked_with() -> None:
    server, ids = Server(), asked(LENGTH)
    expected = best(server.log_probs[PROMPT:LENGTH], WIDE).narrowed(K, At(ids[PROMPT:], WIDE))

    async def body(sequence: Any) -> None:
        first = await sequence.score(list(range(20)), 5, ids[PROMPT:20])
        server.hold = asyncio.Event()
        with pytest.raises(TimeoutError):
            await sequence.score(list(range(30)), 0.01, ids[20:30])
        server.hold.set()
        late = await sequence.score(list(range(50)), 5, ids[20:50])
        last = await sequence.score(list(range(50)), 5, ids[30:50])
        rows = TopKRows.join(first, late, last)
        assert (len(late), len(last)) == (10, 20)
        np.testing.assert_array_equal(rows.chosen.log_probs, expected.chosen.log_probs[:45])

    growing(server, body)


class Whole:
    """Teacher of whole sequences, which may answer without what was chosen."""

    def __init__(self, plain: bool = False, bad: int | None = None):
        self.plain, self.bad = plain, bad

    async def score(self, token_ids: list[int], start: int, topk: int, at: At) -> Score:
        rows = best(distribution(len(token_ids) - start), at.wide)
        told = rows.narrowed(topk, None if self.plain else at)
        if self.bad is not None:
            told.chosen.log_probs[self.bad] = np.nan
        return Score(told, -np.ones(len(rows), np.float32), 1)


def scored(teacher: Whole) -> Any:
    scorer = ResponseScorer(teacher, K, VOCAB, 1, 5, 0)
    return asyncio.run(scorer.score([1, 2], list(range(10)), At(asked(10), WIDE)))


def test_a_finished_response_is_told_at_its_ids() -> None:
    rows, _, report = scored(Whole())
    expected = best(distribution(10), WIDE).narrowed(K, At(asked(10), WIDE))
    np.testing.assert_array_equal(rows.chosen.log_probs, expected.chosen.log_probs)
    assert report.missing == 0


def test_a_token_with_no_number_at_a_chosen_id_is_missing() -> None:
    rows, _, report = scored(Whole(bad=3))
    assert report.missing == 1
    assert rows.ids[3].tolist() == [MISSING_ID] * K
    assert np.isneginf(rows.chosen.log_probs[3]).all()
    assert not rows.chosen.outside[3].any()


def test_an_answer_without_what_was_chosen_is_none() -> None:
    rows, _, report = scored(Whole(plain=True))
    assert (report.failed, report.missing) == (1, 10)
    assert rows.chosen.log_probs.shape == (10, K)
    assert "chosen ids" in report.error
