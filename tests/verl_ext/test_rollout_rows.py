"""A server's answer that is no use is refused, and a good one passes."""

from collections.abc import Callable

import numpy as np
import pytest

from verl_ext.rollout.rows import BadScore, Score, TopKRows, check_score, check_shape, good_rows

N, K, VOCAB = 3, 4, 50


def rows(count: int = N, k: int = K) -> TopKRows:
    ids = np.arange(count * k, dtype=np.int32).reshape(count, k)
    return TopKRows(ids, -2 - ids.astype(np.float32))


def score(tokens: int = N, k: int = K) -> Score:
    whole = rows(tokens + 1, k)
    return Score(whole[:-1], np.zeros(tokens, dtype=np.float32), computed=1, ahead=whole[-1:])


def test_slices_and_joins_are_each_others_inverse():
    whole = rows(7)
    assert len(whole) == 7
    for cut in range(8):
        joined = TopKRows.join(whole[:cut], whole[cut:])
        assert (len(whole[:cut]), len(whole[cut:])) == (cut, 7 - cut)
        np.testing.assert_array_equal(joined.ids, whole.ids)
        np.testing.assert_array_equal(joined.log_probs, whole.log_probs)
    assert joined.ids.dtype == np.int32
    assert joined.log_probs.dtype == np.float32


def test_a_good_score_passes():
    given, ahead = check_score(score(), N, K, VOCAB)
    np.testing.assert_array_equal(given.ids, rows(N).ids)
    assert ahead.ids.shape == (1, K)
    check_score(score(), N, K, (N + 1) * K)  # its largest id is the last of the vocabulary


def test_a_score_of_no_tokens_has_the_next_ones_row_alone():
    check_score(score(0), 0, K, VOCAB)


@pytest.mark.parametrize(
    "given", [score(N - 1), score(N + 1), score(0), score(N, K - 1), score(N, K + 1)]
)
def test_a_score_of_another_shape_is_refused(given: Score):
    with pytest.raises(BadScore, match=r"rows of shape .*, expected \(3, 4\)"):
        check_score(given, N, K, VOCAB)


@pytest.mark.parametrize("ahead", [None, rows(0), rows(2), rows(1, K + 1)])
def test_a_growing_sequence_needs_the_next_tokens_row(ahead: TopKRows | None):
    given = Score(score().rows, score().sampled, 1, ahead)
    check_shape(given, N, K)  # a finished one does not
    with pytest.raises(BadScore, match="would come next"):
        check_score(given, N, K, VOCAB)


def test_ids_and_log_probs_must_have_one_shape():
    with pytest.raises(BadScore, match="rows of shape"):
        check_score(
            Score(TopKRows(rows(N).ids, rows(N + 1).log_probs), score().sampled, 1, rows(1)),
            N,
            K,
            VOCAB,
        )


@pytest.mark.parametrize(("check", "more"), [(check_shape, ()), (check_score, (VOCAB,))])
@pytest.mark.parametrize("shape", [(N - 1,), (N + 1,), (N, 1)])
def test_every_token_has_a_log_prob_of_its_own(
    check: Callable[..., None], more: tuple[int, ...], shape: tuple[int, ...]
):
    with pytest.raises(BadScore, match=r"of the tokens themselves of shape .*, expected \(3,\)"):
        check(Score(score().rows, np.zeros(shape, dtype=np.float32), 1, rows(1)), N, K, *more)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_log_probs_must_be_finite(value: float):
    given = score()
    given.rows.log_probs[1, 2] = value
    with pytest.raises(BadScore, match="not finite"):
        check_score(given, N, K, VOCAB)


@pytest.mark.parametrize("value", [-1, VOCAB, VOCAB + 7])
def test_ids_must_be_of_the_vocabulary(value: int):
    given = score()
    given.rows.ids[2, 0] = value
    with pytest.raises(BadScore, match=rf"ids from .*{value}.*, expected 0 to 49"):
        check_score(given, N, K, VOCAB)


def test_a_row_is_good_if_all_of_it_is():
    given = rows(7)
    given.log_probs[1, 3], given.log_probs[2, 0], given.log_probs[3, 1] = np.nan, -np.inf, np.inf
    given.ids[4, 3], given.ids[5, 0] = -1, 24  # of row 6 the last id is 27
    assert good_rows(given, 28).tolist() == [True, False, False, False, False, True, True]
    assert good_rows(given, 27).tolist() == [True, False, False, False, False, True, False]


@pytest.mark.parametrize(
    ("log_probs", "good"),
    [
        ([0.0, -50.0, -50.0, -50.0], True),
        ([-np.log(4)] * 4, True),
        ([-1.38, -1.38, -1.39, -1.39], True),  # rounded
        ([-0.5, -0.8, -1.0, -2.0], False),
        ([9.0, 3.0, 1.0, -2.0], False),
        ([1e4, 3.0, 1.0, -2.0], False),
    ],
)
def test_logits_are_no_log_probs(log_probs: list[float], good: bool):
    given = score()
    given.rows.log_probs[1] = log_probs
    assert good_rows(given.rows, VOCAB).tolist() == [True, good, True]
    if not good:
        with pytest.raises(BadScore, match="expected those of one distribution"):
            check_score(given, N, K, VOCAB)


def test_a_row_names_each_id_once():
    given = rows(3)
    given.ids[1, 3] = given.ids[1, 0]
    assert good_rows(given, VOCAB).tolist() == [True, False, True]
    with pytest.raises(BadScore, match="each once in a row"):
        check_score(Score(given, np.zeros(3, np.float32), 1, rows(1)), 3, K, VOCAB)


@pytest.mark.parametrize(
    ("log_probs", "good"),
    [
        ([-1.0, -2.0, -3.0, -4.0], True),
        ([-2.0, -2.0, -2.0, -4.0], True),
        ([-2.0, -1.0, -3.0, -4.0], False),
        ([-1.0, -2.0, -4.0, -3.0], False),
        ([-1.0, -2.0, -3.0, -9999.0], True),
        ([-1.0, -2.0, -3.0, -1e30], False),
        ([5e-4, -20.0, -30.0, -40.0], True),
        ([5e-3, -20.0, -30.0, -40.0], False),
    ],
)
def test_a_row_falls_and_holds_log_probs(log_probs: list[float], good: bool):
    given = rows(3)
    given.log_probs[1] = log_probs
    assert good_rows(given, VOCAB).tolist() == [True, good, True]


def test_of_no_rows_none_is_bad():
    given = rows(7)
    assert good_rows(given[:0], 28).shape == (0,)
