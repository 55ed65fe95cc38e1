"""Drift events and reliability weights are those of METHOD.md, by hand and by slow references."""

import math

import pytest
import torch

from recipe.prune_opd.method.drift import (
    is_member,
    nucleus_events,
    overlap_events,
    overlap_ratio,
    reliability,
    turn_starts,
)


def one_hot_events(count: int, length: int) -> torch.Tensor:
    """(1, length): events on the first ``count`` tokens."""
    return (torch.arange(length) < count).unsqueeze(0)


def ids_sharing(shared: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (1, 1, k) sets with ``shared`` common ids, in different order."""
    student = torch.arange(k)
    teacher = torch.cat([student[:shared], torch.arange(k, 2 * k - shared)]).flip(0)
    return student.view(1, 1, k), teacher.view(1, 1, k)


# ------------------------------------------------------------------------------------------ overlap


def test_is_member_agrees_with_python_sets():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-2, 12, (3, 5, 4), generator=generator, dtype=torch.int32)
    others = torch.randint(-2, 12, (3, 5, 7), generator=generator)
    found = is_member(ids, others)
    assert found.dtype == torch.bool
    for b in range(3):
        for t in range(5):
            assert found[b, t].tolist() == [
                i in set(others[b, t].tolist()) for i in ids[b, t].tolist()
            ]


@pytest.mark.parametrize("shared", [0, 1, 7, 16])
def test_overlap_ratio_ignores_rank(shared):
    ratio = overlap_ratio(*ids_sharing(shared, 16))
    assert ratio.dtype == torch.float32
    assert ratio.tolist() == [[shared / 16]]


@pytest.mark.parametrize("dtypes", [(torch.int32, torch.int64), (torch.int32, torch.int32)])
def test_overlap_ratio_takes_any_integer_type(dtypes):
    student, teacher = (ids.to(dtype) for ids, dtype in zip(ids_sharing(3, 4), dtypes, strict=True))
    assert overlap_ratio(student, teacher).item() == 0.75


def test_overlap_ratio_refuses_different_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(2, 3, 5\)"):
        overlap_ratio(
            torch.zeros(2, 3, 4, dtype=torch.long), torch.zeros(2, 3, 5, dtype=torch.long)
        )


@pytest.mark.parametrize(
    ("k", "threshold", "most_shared_of_an_event"),
    [
        (16, 0.7, 11),
        (32, 0.7, 22),
        (10, 0.7, 6),
        (16, 0.75, 11),
        (10, 0.3, 2),
        (10, 0.1, 0),
        (16, 1.0, 15),
        (3, 1 / 3, 0),
    ],
)
def test_event_is_strictly_below_the_threshold(k, threshold, most_shared_of_an_event):
    overlap = torch.cat([overlap_ratio(*ids_sharing(shared, k)) for shared in range(k + 1)], 1)
    events = overlap_events(overlap, torch.ones_like(overlap), threshold)
    assert events.dtype == torch.bool
    assert events[0].tolist() == [shared <= most_shared_of_an_event for shared in range(k + 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_events_in_any_float_type(dtype):
    overlap = torch.tensor([[11, 12, 0, 16]], dtype=dtype) / 16
    assert overlap_events(overlap, torch.ones(1, 4), 0.7).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_no_overlap_events_outside_the_mask(dtype):
    mask = torch.tensor([[1, 0, 1, 0]], dtype=dtype)
    assert overlap_events(torch.zeros(1, 4), mask, 0.7).tolist() == [[True, False, True, False]]


# ------------------------------------------------------------------------------------------ nucleus


def slow_nucleus(ids: list[int], probs: list[float], top_p: float) -> set[int]:
    nucleus, mass = set(), 0.0
    for token, prob in zip(ids, probs, strict=True):
        nucleus.add(token)
        mass += prob
        if mass >= top_p - 1e-6:
            break
    return nucleus


def accepted(probs: list[float], top_p: float, dtype: torch.dtype = torch.float32) -> list[int]:
    """Ranks of the teacher's candidates that are no event when sampled, and -1 for a token outside
    the top-k."""
    k = len(probs)
    responses = torch.arange(-1, k).view(1, k + 1)
    ids = torch.arange(k).expand(1, k + 1, k)
    log_probs = torch.tensor(probs, dtype=torch.float64).log().to(dtype).expand(1, k + 1, k)
    events = nucleus_events(responses, ids, log_probs, torch.ones(1, k + 1), top_p)
    return [
        token
        for token, event in zip(responses[0].tolist(), events[0].tolist(), strict=True)
        if not event
    ]


@pytest.mark.parametrize(
    ("probs", "top_p", "nucleus"),
    [
        ([0.6, 0.3, 0.08, 0.02], 0.95, [0, 1, 2]),  # the third crosses and belongs to it
        ([0.6, 0.35, 0.04, 0.01], 0.95, [0, 1]),  # reached exactly: the next is outside
        ([0.7, 0.2, 0.05, 0.05], 0.9, [0, 1]),
        ([0.1] * 10, 0.3, [0, 1, 2]),  # three times 0.1 is 0.3, whatever the rounding
        ([0.99, 0.01], 0.95, [0]),
        ([0.1, 0.1, 0.1], 0.95, [0, 1, 2]),  # never reached: the whole top-k
        ([0.5, 0.3, 0.2], 1.0, [0, 1, 2]),
        ([1.0, 0.0, 0.0], 1.0, [0]),
        ([0.5, 0.3, 0.2], 1e-6, [0]),  # the most likely token is always in
    ],
)
def test_nucleus_boundaries(probs, top_p, nucleus):
    assert accepted(probs, top_p) == nucleus
    assert accepted(probs, top_p, torch.float64) == nucleus


def test_nucleus_events_in_bfloat16():
    assert accepted([0.5, 0.25, 0.125, 0.0625], 0.8, torch.bfloat16) == [0, 1, 2]


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.8, 0.95, 1.0])
def test_nucleus_events_agree_with_a_slow_reference(top_p):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(4, 30, 12, generator=generator)
    log_probs, ids = logits.log_softmax(-1).topk(5)
    responses = torch.randint(0, 12, (4, 30), generator=generator)
    mask = torch.rand(4, 30, generator=generator) < 0.8
    events = nucleus_events(responses, ids, log_probs, mask, top_p)
    for b in range(4):
        for t in range(30):
            nucleus = slow_nucleus(ids[b, t].tolist(), log_probs[b, t].exp().tolist(), top_p)
            assert events[b, t].item() == (
                mask[b, t].item() and responses[b, t].item() not in nucleus
            )
    assert events.any()
    assert not events[mask].all()


# -------------------------------------------------------------------------------------- reliability


def test_worked_case_of_the_paper():
    mask = torch.ones(1, 3)
    events = overlap_events(torch.tensor([[1.0, 0.5, 0.0]]), mask, 0.75)
    result = reliability(events, mask, w_drop=0.1, w_base=0.5)
    torch.testing.assert_close(result.weight, torch.tensor([[1.0, 0.9, 0.8]]))
    torch.testing.assert_close(result.loss_weight, torch.tensor([[1.5, 1.4, 1.3]]))
    assert result.effective_length.tolist() == [3]


def test_weight_never_recovers_and_events_outside_the_mask_do_not_count():
    events = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    mask = torch.tensor([[1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    result = reliability(events, mask, w_drop=0.25, w_base=0.5)
    torch.testing.assert_close(
        result.weight, torch.tensor([[0.75, 0.75, 0.75, 0.75, 0.5, 0.5], [1, 1, 1, 1, 1, 0.75]])
    )
    torch.testing.assert_close(
        result.loss_weight, torch.tensor([[1.25, 0, 1.25, 1.25, 1, 1], [0, 0, 0, 0, 0, 1.25]])
    )
    assert result.effective_length.tolist() == [5, 1]


def test_base_is_added_not_a_floor():
    result = reliability(one_hot_events(10, 12), torch.ones(1, 12), w_drop=0.5, w_base=0.2)
    torch.testing.assert_close(result.loss_weight[0, :3], torch.tensor([0.7, 0.2, 0.2]))


def test_effective_length_counts_tokens_not_positions():
    mask = torch.tensor([[0, 1, 0, 1, 1, 1, 1]])
    events = torch.tensor([[0, 0, 0, 1, 0, 1, 0]]).bool()
    assert reliability(events, mask, w_drop=0.5, w_base=0).effective_length.tolist() == [3]


def test_the_last_reliable_token_is_told_by_its_position():
    """Tokens of a tool before it count, those behind it do not."""
    mask = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    events = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 0]] * 2).bool()
    found = reliability(events, mask, w_drop=0.5, w_base=0)
    assert (found.effective_length.tolist(), found.reliable_to.tolist()) == ([3, 0], [5, 0])
    found = reliability(events, mask, w_drop=0.1, w_base=0)
    assert (found.effective_length.tolist(), found.reliable_to.tolist()) == ([4, 0], [7, 0])


def test_a_count_that_begins_anew_in_every_turn():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0, 1]]).bool()
    starts = turn_starts(mask)
    assert starts.nonzero()[:, 1].tolist() == [0, 4, 8]
    events = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1, 0]]).bool()
    found = reliability(events, mask, 0.5, 0.25, starts)
    assert found.weight.tolist() == [[1, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 1]]
    assert found.loss_weight.tolist() == [[1.25, 0.75, 0, 0, 0.75, 0.25, 0.25, 0, 1.25]]
    assert (found.effective_length.item(), found.reliable_to.item()) == (4, 9)


def test_a_response_of_one_turn_has_one_count():
    generator = torch.Generator().manual_seed(3)
    events = torch.rand(6, 80, generator=generator) < 0.3
    mask = torch.arange(80) < torch.tensor([[80], [1], [40], [0], [79], [7]])
    one, other = (
        vars(reliability(events, mask, 0.07, 0.3, starts)) for starts in (None, turn_starts(mask))
    )
    for name, value in one.items():
        inside = mask if value.dim() == 2 else slice(None)
        assert torch.equal(value[inside], other[name][inside])


def test_no_loss_of_weight():
    result = reliability(torch.ones(1, 500).bool(), torch.ones(1, 500), w_drop=0, w_base=0.5)
    assert result.weight.unique().tolist() == [1]
    assert result.effective_length.tolist() == [500]


@pytest.mark.parametrize("w_drop", [1, 2, 7.5, 1e12])
def test_one_event_takes_everything(w_drop):
    events = torch.tensor([[0, 0, 1, 0]]).bool()
    result = reliability(events, torch.ones(1, 4), w_drop=w_drop, w_base=0.5)
    assert result.weight.tolist() == [[1, 1, 0, 0]]
    assert result.loss_weight.tolist() == [[1.5, 1.5, 0.5, 0.5]]
    assert result.effective_length.tolist() == [2]


SPENT_AT = [
    *[(1 / n, n) for n in range(1, 401)],  # 1 - n * (1 / n) is not 0 in every float
    *[
        (0.01, 100),
        (0.02, 50),
        (0.03, 34),
        (0.07, 15),
        (0.3, 4),
        (0.6, 2),
        (0.001, 1000),
        (0.0003, 3334),
    ],
]


def test_reliability_is_zero_from_the_last_event_on():
    for w_drop, spent_at in SPENT_AT:
        result = reliability(
            one_hot_events(spent_at + 3, spent_at + 3), torch.ones(1, spent_at + 3), w_drop, 0.5
        )
        assert result.weight[0, spent_at - 1 :].tolist() == [0] * 4, w_drop
        assert (result.weight[0, : spent_at - 1] > 0).all(), w_drop
        assert result.effective_length.item() == spent_at - 1, w_drop
        assert result.loss_weight[0, spent_at - 1].item() == 0.5, w_drop


@pytest.mark.parametrize(("w_drop", "spent_at"), [(0.01, 100), (0.02, 50), (1 / 3, 3)])
def test_effective_length_is_the_tokens_before_the_last_event(w_drop, spent_at):
    events = torch.zeros(1, 1000).bool()
    events[0, 4::5] = True
    result = reliability(events, torch.ones(1, 1000), w_drop, 0.5)
    assert result.effective_length.item() == 5 * spent_at - 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float16])
def test_counts_do_not_stall(dtype):
    length, w_drop = 12288, 1 / 16384
    events = torch.ones(1, length, dtype=dtype)
    result = reliability(events, torch.ones(1, length, dtype=dtype), w_drop, 0.5)
    exact = 1 - w_drop * torch.arange(1, length + 1)
    assert result.weight.dtype == result.loss_weight.dtype == torch.float32
    torch.testing.assert_close(result.weight[0], exact.float(), rtol=0, atol=1e-6)
    assert result.effective_length.tolist() == [length]


def test_reliability_agrees_with_a_slow_reference():
    generator = torch.Generator().manual_seed(2)
    events = torch.rand(6, 80, generator=generator) < 0.3
    mask = torch.rand(6, 80, generator=generator) < 0.7
    result = reliability(events, mask, w_drop=0.07, w_base=0.3)
    for b in range(6):
        count = length = 0
        for t in range(80):
            count += bool(events[b, t] and mask[b, t])
            weight = 0.0 if count >= math.ceil(1 / 0.07) else 1 - 0.07 * count
            length += bool(mask[b, t] and weight > 0)
            assert result.weight[b, t].item() == pytest.approx(weight, abs=1e-6)
            assert result.loss_weight[b, t].item() == pytest.approx(
                weight + 0.3 if mask[b, t] else 0, abs=1e-6
            )
        assert result.effective_length[b].item() == length


def test_empty_mask():
    result = reliability(torch.ones(2, 5).bool(), torch.zeros(2, 5), w_drop=0.01, w_base=0.5)
    assert result.effective_length.tolist() == [0, 0]
    assert result.loss_weight.abs().sum() == 0


def test_negative_drop_is_refused():
    with pytest.raises(ValueError, match=r"w_drop must be >= 0 and finite, got -0\.01"):
        reliability(torch.ones(1, 1).bool(), torch.ones(1, 1), w_drop=-0.01, w_base=0)


@pytest.mark.parametrize("w_drop", [1e-10, 1e-19, 1e-25, 5e-324])
def test_next_to_no_weight_lost_is_next_to_none(w_drop):
    """1e-19 asks for more events than int64 counts, and 1 / 5e-324 is infinite."""
    events = torch.ones(1, 6, dtype=torch.bool)
    found = reliability(events, events, w_drop, 0.5)
    assert found.weight.tolist() == [[1.0] * 6]
    assert found.effective_length.tolist() == [6]


@pytest.mark.parametrize(
    ("w_drop", "w_base"), [(math.nan, 0), (math.inf, 0), (0.1, math.nan), (0.1, 1e39), (0.1, -1)]
)
def test_weights_that_are_no_numbers_are_refused(w_drop, w_base):
    events = torch.ones(1, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"reliability: w_(drop|base) must be"):
        reliability(events, events, w_drop, w_base)
