"""Whatever logits an engine shows, ids and log-probs are the defined ones, row by row.

Logits are generated (``tests/tensors.py``): without rows, with one candidate, -inf, NaN, repeated
ids, in every dtype, and not contiguous.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import DTYPES, INF, NAN, filled
from torch import Tensor

from verl_ext.logits import log_probs_at, top_log_probs
from verl_ext.topk import collect, scoring_rows, spread


def close(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype != torch.float64 else {"rtol": 1e-9, "atol": 1e-9}


def reference(logits: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1)


@given(st.data(), st.sampled_from(DTYPES), st.integers(0, 5), st.integers(1, 9))
def test_the_most_likely_ids_are_those_of_the_whole_softmax(data, dtype, rows, vocabulary):
    logits = data.draw(filled((rows, vocabulary), (-INF, 3.0), dtype))
    candidates = data.draw(st.integers(1, vocabulary))
    k = data.draw(st.integers(1, candidates))
    ids, log_probs = top_log_probs(logits, k, candidates)
    assert (ids.shape, ids.dtype) == ((rows, k), torch.int32)
    assert (ids < candidates).all()
    assert all(len(set(row)) == k for row in ids.tolist())
    whole = reference(logits)
    torch.testing.assert_close(
        log_probs, whole.gather(-1, ids.long()), equal_nan=True, **close(dtype)
    )
    best = logits[:, :candidates].topk(k, -1).values
    assert torch.equal(logits.gather(-1, ids.long()), best)


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from([NAN, INF]))
def test_a_row_that_is_no_distribution_spoils_no_other(data, dtype, value):
    logits = data.draw(filled((4, 6), (), dtype)).clone()
    whole = [part.clone() for part in top_log_probs(logits, 3, 6)]
    logits[1, 2] = value
    ids, log_probs = top_log_probs(logits, 3, 6)
    assert log_probs[1].isnan().any()
    for row in (0, 2, 3):
        assert torch.equal(ids[row], whole[0][row])
        assert torch.equal(log_probs[row], whole[1][row])


@given(st.integers(1, 4), st.integers(1, 6))
def test_more_candidates_than_there_are_is_an_error(rows, vocabulary):
    with pytest.raises((RuntimeError, ValueError)):
        top_log_probs(torch.zeros(rows, vocabulary), vocabulary + 1, vocabulary)


@given(st.data(), st.sampled_from(DTYPES), st.integers(0, 5), st.integers(1, 6), st.booleans())
def test_log_probs_and_gradient_are_those_of_autograd(data, dtype, rows, vocabulary, overwrite):
    """Repeated ids, and ids that the model has no row for."""
    logits = data.draw(filled((rows, vocabulary), (), dtype))
    k = data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    ids = torch.randint(-2, vocabulary + 2, (rows, k), generator=generator).int()
    upstream = torch.randn(rows, k, generator=generator, dtype=torch.float64)

    def gradient_of(function) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().clone().requires_grad_()
        found = function(leaf * 1)
        finite = found.masked_fill(found.detach().isinf(), 0)
        (gradient,) = torch.autograd.grad((finite * upstream.to(found)).sum(), leaf)
        return found.detach(), gradient

    def by_softmax(values: Tensor) -> Tensor:
        known = (ids >= 0) & (ids < vocabulary)
        picked = reference(values).gather(-1, ids.clamp(0, vocabulary - 1).long())
        return picked.masked_fill(~known, -INF)

    found, gradient = gradient_of(lambda values: log_probs_at(values, ids, overwrite))
    expected, wanted = gradient_of(by_softmax)
    torch.testing.assert_close(found, expected, **close(dtype))
    rough = 0.05 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    torch.testing.assert_close(gradient, wanted, rtol=rough, atol=rough)


LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4)


@given(LENGTHS, st.integers(1, 3))
def test_values_go_to_the_rows_that_score_them_and_back(lengths, k):
    total, responses = (
        torch.tensor([0, *(size(*pair) for pair in lengths)]).cumsum(0)
        for size in (lambda prompt, response: prompt + response, lambda prompt, response: response)
    )
    rows = scoring_rows(total, responses).tolist()
    expected = [
        total[i].item() + prompt + t - 1
        for i, (prompt, response) in enumerate(lengths)
        for t in range(response)
    ]
    assert rows == expected
    input_ids = torch.nested.nested_tensor_from_jagged(torch.arange(total[-1].item()), total)
    values = torch.arange(1.0, responses[-1].item() * k + 1).view(-1, k)
    field = torch.nested.nested_tensor_from_jagged(values, responses)
    placed = spread(field, input_ids)
    assert placed.shape == (total[-1].item(), k)
    assert torch.equal(collect(placed, input_ids, field).values(), values)
    assert placed.sum() == values.sum()
