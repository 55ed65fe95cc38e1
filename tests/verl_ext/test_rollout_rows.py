import numpy as np
import pytest

from verl_ext.rollout.rows import BadScore, Score, TopKRows, check_score

N, K, VOCAB = 3, 4, 50


def rows(count: int = N, k: int = K) -> TopKRows:
    ids = np.arange(count * k, dtype=np.int32).reshape(count, k)
    return TopKRows(ids, -ids.astype(np.float32))


def score(count: int = N, k: int = K) -> Score:
    return Score(rows(count, k), computed=1, private=0)


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
    check_score(score(), N, K, VOCAB)
    check_score(score(), N, K, N * K)  # its largest id is the last of the vocabulary


def test_a_score_of_no_rows_passes_where_none_were_asked_for():
    check_score(score(0), 0, K, VOCAB)


@pytest.mark.parametrize("given", [score(N - 1), score(N + 1), score(0), score(N, K - 1), score(N, K + 1)])
def test_a_score_of_another_shape_is_refused(given: Score):
    with pytest.raises(BadScore, match=r"rows of shape .*, expected \(3, 4\)"):
        check_score(given, N, K, VOCAB)


def test_ids_and_log_probs_must_have_one_shape():
    with pytest.raises(BadScore, match="rows of shape"):
        check_score(Score(TopKRows(rows().ids, rows(N - 1).log_probs), 1, 0), N, K, VOCAB)


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
