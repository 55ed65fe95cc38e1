"""Top-k, log-probs, entropy and their gradient are those of log-softmax over the vocabulary."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from verl_ext import logits as module
from verl_ext.logits import (
    CACHE_BYTES,
    LEAST_BYTES,
    PIECE_BYTES,
    log_probs_at,
    piece_bytes,
    score,
    top_log_probs,
)

N, V, K = 11, 23, 4


def random_logits(dtype: torch.dtype = torch.float32, rows: int = N) -> torch.Tensor:
    return (3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.fixture(params=[1024, 4, 1], ids=lambda rows: f"{rows} rows at a time")
def pieces(request, monkeypatch):
    """More rows than are worked on at once, too."""
    monkeypatch.setattr(module, "piece_rows", lambda logits: request.param)


# ---------------------------------------------------------------------------------------- log-probs


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("vocab_size", [V, 9, K])
def test_top_log_probs_agree_with_log_softmax(vocab_size):
    logits = random_logits()
    ids, log_probs = top_log_probs(logits, K, vocab_size)
    assert (ids.dtype, log_probs.dtype) == (torch.int32, torch.float32)
    # The normaliser takes all V.
    expected = logits.log_softmax(-1)[:, :vocab_size].sort(descending=True, dim=-1)
    assert torch.equal(ids.long(), expected.indices[:, :K])
    torch.testing.assert_close(log_probs, expected.values[:, :K])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_normalised_in_float32(dtype):
    logits = random_logits(dtype)
    ids, log_probs = top_log_probs(logits, K, V)
    exact_ids, exact = top_log_probs(logits.float(), K, V)
    assert torch.equal(ids, exact_ids)
    torch.testing.assert_close(log_probs, exact, rtol=0, atol=1e-6)
    at = log_probs_at(logits, ids)
    assert at.dtype == torch.float32
    torch.testing.assert_close(at, exact, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("pieces")
def test_one_model_twice_overlaps_fully_on_tied_logits():
    logits = random_logits(torch.bfloat16).round()
    first, second = top_log_probs(logits, K, V)[0], top_log_probs(logits.clone(), K, V)[0]
    assert len(logits[0].unique()) < V
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [1000, 997])
@pytest.mark.parametrize("k", [1, 16, 64])
def test_ranking_in_the_logits_dtype_is_that_of_float32_ties_included(
    dtype, vocab_size, k, monkeypatch
):
    monkeypatch.setattr(module, "BLOCK", 8)
    logits = (torch.randn(2 * N, 1000, generator=torch.Generator().manual_seed(4)) * 8).round().to(
        dtype
    ) / 8
    ranked = logits[:, :vocab_size].sort(-1, descending=True).values
    assert (ranked[:, k - 1] == ranked[:, k]).any()  # a tie that decides who is in
    assert torch.equal(
        top_log_probs(logits, k, vocab_size)[0], top_log_probs(logits.float(), k, vocab_size)[0]
    )


@pytest.mark.usefixtures("pieces")
def test_log_probs_at_agree_with_log_softmax():
    logits = random_logits()
    ids = torch.randint(0, V, (N, K), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    log_probs = log_probs_at(logits, ids)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).gather(-1, ids.long()))


@pytest.mark.usefixtures("pieces")
def test_ids_without_a_row_have_probability_zero():
    logits = random_logits().requires_grad_()
    ids = torch.tensor([[0, V - 1, V, -1]]).expand(N, 4)
    log_probs = log_probs_at(logits, ids)
    assert log_probs[:, 2:].isneginf().all()
    torch.testing.assert_close(log_probs[:, :2], logits.log_softmax(-1)[:, [0, V - 1]])
    torch.where(log_probs.isneginf(), 0.0, log_probs).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_gives_what_a_naive_one_does(seed, dtype, monkeypatch):
    """Of whatever shape, by pieces and blocks of whatever size, with ties and impossible tokens."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    rows, width, block = draw(1, 20), draw(100, 700), draw(1, 9)
    vocabulary, k, parts = draw(60, width + 1), draw(1, 6), draw(1, 9)
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "piece_rows", lambda logits: parts)
    logits = (torch.randn(rows, width, generator=generator) * 8).round().to(dtype) / 2
    logits[torch.rand(rows, width, generator=generator) < 0.1] = -torch.inf
    ids = torch.randint(0, width, (rows, 5), generator=generator, dtype=torch.int32)
    found = score(logits, k, vocabulary, ids, entropy=True)
    exact = logits.double().log_softmax(-1)
    best = exact[:, :vocabulary].topk(k).values  # ties: which id is free, its log-prob is not
    chosen = found["top_ids"].long()
    assert all(len(row.unique()) == k for row in chosen)
    assert int(chosen.max()) < vocabulary
    entropy = -(exact.exp() * exact.clamp(min=-1e30)).sum(-1)
    expected = {
        "top_ids": found["top_ids"],
        "top_log_probs": best.float(),
        "log_probs_at": exact.gather(-1, ids.long()).float(),
        "entropy": entropy.float(),
    }
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(exact.gather(-1, chosen).float(), best.float())


@pytest.mark.parametrize("block", [1, 8])
def test_nan_is_not_hidden(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    logits = torch.zeros(2, 200)
    logits[0, 77] = torch.nan
    found = score(logits, 2, 200, entropy=True)
    assert found["top_ids"][0, 0] == 77
    assert found["top_log_probs"][0].isnan().all()
    assert found["entropy"].isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("logits", "device", "size"),
    [
        (1 << 20, "cpu", LEAST_BYTES),
        (1 << 40, "cpu", CACHE_BYTES),
        (1 << 32, "cuda", 1 << 26),
        (1 << 40, "cuda", PIECE_BYTES),
    ],
)
def test_a_piece_is_a_small_part_of_the_logits(logits, device, size):
    assert piece_bytes(logits, device) == size


# ----------------------------------------------------------------------------------------- gradient


def head(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters and the logits (N, V) that an operation makes of them, as a model's head does."""
    weight = random_logits(dtype).requires_grad_()
    return weight, (weight * 2).unsqueeze(0).squeeze(0)


def some_ids() -> torch.Tensor:
    """(N, 6) with one repeated in its row, and two that have no row."""
    ids = torch.randint(0, V, (N, 6), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    ids[:, 3] = ids[:, 0]
    ids[:, 4], ids[:, 5] = -1, V
    return ids


UPSTREAM = torch.randn(N, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def plain_log_probs(logits: torch.Tensor) -> torch.Tensor:
    """What plain autograd makes of ``some_ids``, (N, 4): without those that have no row."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1).gather(-1, some_ids()[:, :4].long())


def plain_loss(logits: torch.Tensor) -> torch.Tensor:
    log_probs = plain_log_probs(logits)
    return (log_probs * UPSTREAM[:, :4].to(log_probs)).sum()


def loss_at(logits: torch.Tensor, overwrite: bool) -> torch.Tensor:
    log_probs = log_probs_at(logits, some_ids(), overwrite)
    return (log_probs.masked_fill(log_probs.isneginf(), 0) * UPSTREAM.to(log_probs)).sum()


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_is_that_of_plain_autograd(dtype, overwrite):
    weight, logits = head(dtype)
    loss_at(logits, overwrite).backward()
    plain, theirs = head(dtype)
    plain_loss(theirs).backward()
    torch.testing.assert_close(weight.grad, plain.grad)
    assert weight.grad.dtype == dtype
    assert weight.grad.abs().max() > 0.1
    assert torch.equal(logits, theirs) == (not overwrite)


def test_the_derivative_in_float64_is_that_of_finite_differences():
    logits = random_logits(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_probs_at(x, some_ids()[:, :4]), logits)


def test_an_id_without_a_row_has_no_gradient_whatever_comes_back():
    (weight, logits), (plain, theirs) = head(torch.float32), head(torch.float32)
    upstream = UPSTREAM.float().clone()
    upstream[:, 4:] = torch.nan  # what a loss that does arithmetic with -inf sends
    log_probs_at(logits, some_ids(), overwrite=True).backward(upstream)
    plain_loss(theirs).backward()
    torch.testing.assert_close(weight.grad, plain.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_readers_of_the_logits_get_the_sum_of_their_gradients(dtype):
    (weight, logits), (plain, theirs) = head(dtype), head(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    (loss_at(logits, False) + loss_at(logits, False) + logits.to(wide).square().sum()).backward()
    (2 * plain_loss(theirs) + theirs.to(wide).square().sum()).backward()
    torch.testing.assert_close(weight.grad, plain.grad)


@pytest.mark.parametrize("first", [True, False])
def test_a_reader_that_needs_no_values_may_stand_beside_one_that_overwrites(first):
    (weight, logits), (plain, theirs) = head(torch.float32), head(torch.float32)
    before = 3 * logits.sum() if first else 0
    loss = loss_at(logits, True)
    (before + loss + (0 if first else 3 * logits.sum())).backward()
    (plain_loss(theirs) + 3 * theirs.sum()).backward()
    torch.testing.assert_close(weight.grad, plain.grad)


OVERWRITTEN = "modified by an inplace operation"


def test_a_later_reader_of_overwritten_logits_is_refused():
    _, logits = head(torch.float32)
    squares = logits.square().sum()  # made before, so differentiated after
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        (squares + loss_at(logits, True)).backward()


def test_an_operation_that_needs_its_own_overwritten_result_is_refused():
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        loss_at(random_logits().requires_grad_().tanh(), True).backward()


def test_a_graph_is_used_twice_unless_its_logits_are_overwritten():
    weight, logits = head(torch.float32)
    loss = loss_at(logits, False)
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    loss = loss_at(logits, True)
    torch.testing.assert_close(torch.autograd.grad(loss, weight, retain_graph=True)[0], first)
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        loss.backward()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.unsqueeze(0).squeeze(0)])
def test_a_leaf_keeps_its_values(view):
    leaf, plain = (random_logits().requires_grad_() for _ in range(2))
    loss_at(view(leaf), True).backward()
    plain_loss(plain).backward()
    torch.testing.assert_close(leaf.grad, plain.grad)
    assert torch.equal(leaf, plain)


@pytest.mark.parametrize(
    "shape", [lambda x: (2 * x).T.contiguous().T, lambda x: (2 * x)[:1].expand(N, V)]
)
def test_logits_that_are_not_contiguous(shape):
    weight, plain = (random_logits().requires_grad_() for _ in range(2))
    loss_at(shape(weight), True).backward()
    plain_loss(shape(plain)).backward()
    torch.testing.assert_close(weight.grad, plain.grad)


def test_a_second_derivative_is_refused_in_words():
    weight, logits = head(torch.float32)
    with pytest.raises(RuntimeError, match="a first derivative only"):
        torch.autograd.grad(loss_at(logits, False), weight, create_graph=True)


def test_no_rows_are_no_error():
    weight, empty = random_logits().requires_grad_(), torch.empty(0, K, dtype=torch.int32)
    log_probs_at((2 * weight)[:0], empty, overwrite=True).sum().backward()
    assert not weight.grad.any()
    assert [x.shape for x in top_log_probs(weight.detach()[:0], K, V)] == [(0, K), (0, K)]


def test_autocast_changes_nothing():
    (weight, logits), (plain, theirs) = head(torch.bfloat16), head(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = log_probs_at(logits, some_ids()[:, :4], overwrite=True)
        ranked = top_log_probs(logits, K, V)
    torch.testing.assert_close(log_probs, plain_log_probs(theirs))
    torch.testing.assert_close(
        ranked[1], theirs.float().log_softmax(-1).gather(-1, ranked[0].long())
    )
    (log_probs * UPSTREAM[:, :4].float()).sum().backward()
    plain_loss(theirs).backward()
    torch.testing.assert_close(weight.grad, plain.grad)


def peak_bytes(work: Callable[[], object], file: Path) -> int:
    """Most bytes allocated at once beyond those at the beginning, by torch's own account of every
    allocation."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    profile.export_chrome_trace(str(file))
    events = [
        event
        for event in json.loads(file.read_text())["traceEvents"]
        if event["name"] == "[memory]"
    ]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(accumulate(changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_holds_the_logits_and_little_more(dtype, tmp_path):
    rows, vocabulary = 2048, 32768
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, 16), generator=generator, dtype=torch.int32)
    weight = torch.randn(rows, 1, generator=generator).to(dtype).requires_grad_()

    def update(loss: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        return lambda: loss(weight.expand(rows, vocabulary).clone()).backward()

    size = rows * vocabulary * weight.itemsize
    ours = peak_bytes(
        update(lambda logits: log_probs_at(logits, ids, overwrite=True).sum()),
        tmp_path / "ours.json",
    )
    kept = peak_bytes(
        update(lambda logits: log_probs_at(logits, ids).sum()), tmp_path / "kept.json"
    )
    plain = lambda logits: logits.float().log_softmax(-1).gather(-1, ids.long()).sum()  # noqa: E731
    theirs = peak_bytes(update(plain), tmp_path / "plain.json")
    assert 1 <= ours / size < 1.3
    assert 2 <= kept / size < 2.3
    assert theirs / size > 2.9  # so the account sees what is there
