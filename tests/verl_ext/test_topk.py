"""Top-k log-probs and their gradient are those of log-softmax over the full vocabulary."""

import json
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from verl_ext import topk
from verl_ext.topk import (
    REQUEST,
    Request,
    TopKPass,
    collect,
    join_columns,
    log_probs_at,
    scoring_rows,
    spread,
    top_log_probs,
)

N, V, K = 11, 23, 4


def random_logits(dtype: torch.dtype = torch.float32, rows: int = N) -> torch.Tensor:
    return (3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.fixture(params=[1024, 4, 1], ids=lambda rows: f"{rows} rows at a time")
def pieces(request, monkeypatch):
    """More rows than are turned to float32 at once, too."""
    monkeypatch.setattr(topk, "ROWS_AT_A_TIME", request.param)


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
def test_ranking_in_the_logits_dtype_is_that_of_float32_ties_included(dtype, vocab_size, k):
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


# ------------------------------------------------------------------------------------ jagged fields

PROMPTS, RESPONSES = (3, 1, 5, 2), (2, 4, 1, 3)


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


@pytest.fixture
def batch() -> TensorDict:
    """Four sequences: ``input_ids``, ``responses`` and a field of K ids per response token."""
    generator = torch.Generator().manual_seed(3)
    sequences = [
        torch.randint(0, V, (p + r,), generator=generator)
        for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    ids = [torch.randint(0, V, (r, K), generator=generator, dtype=torch.int32) for r in RESPONSES]
    fields = {
        "input_ids": jagged(sequences),
        "responses": jagged([s[p:] for s, p in zip(sequences, PROMPTS, strict=True)]),
        "chosen": jagged(ids),
    }
    return TensorDict(fields, batch_size=len(PROMPTS))


def slow_rows() -> list[list[int]]:
    """For each sequence, the packed rows before its response tokens."""
    rows, start = [], 0
    for p, r in zip(PROMPTS, RESPONSES, strict=True):
        rows.append([start + p + t - 1 for t in range(r)])
        start += p + r
    return rows


def test_scoring_rows_are_those_before_each_response_token(batch):
    rows = scoring_rows(batch["input_ids"].offsets(), batch["responses"].offsets())
    assert rows.tolist() == list(chain(*slow_rows()))


def test_scoring_rows_of_an_empty_response():
    assert scoring_rows(torch.tensor([0, 3, 5, 9]), torch.tensor([0, 2, 2, 3])).tolist() == [
        0,
        1,
        7,
    ]


def test_spread_puts_values_on_their_scoring_rows(batch):
    rows = spread(batch["chosen"], batch["input_ids"])
    assert rows.shape == (sum(PROMPTS) + sum(RESPONSES), K)
    assert rows.dtype == torch.int32
    expected = torch.zeros_like(rows)
    for sequence, at in enumerate(slow_rows()):
        for t, row in enumerate(at):
            expected[row] = batch["chosen"][sequence][t]
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("shape", [(), (K,)])
def test_collect_takes_the_scoring_rows(batch, shape):
    values = torch.randn(sum(PROMPTS) + sum(RESPONSES), *shape)
    field = collect(values, batch["input_ids"], batch["responses"])
    assert field.is_nested
    for sequence, at in zip(field.unbind(), slow_rows(), strict=True):
        assert torch.equal(sequence, values[at])


def test_collect_is_the_inverse_of_spread(batch):
    field = collect(
        spread(batch["chosen"], batch["input_ids"]), batch["input_ids"], batch["responses"]
    )
    assert torch.equal(field.values(), batch["chosen"].values())
    assert torch.equal(field.offsets(), batch["chosen"].offsets())


def test_join_columns_keeps_their_order():
    output = {f"x/{i}": jagged([torch.full((2,), i), torch.full((3,), i)]) for i in range(12)}
    assert join_columns(output | {"other/0": output["x/0"]}, "x").tolist() == [list(range(12))] * 5


# ---------------------------------------------------------------------------------- engine protocol


def engine(
    loss_fn: TopKPass, logits: torch.Tensor, data: TensorDict
) -> tuple[dict[str, torch.Tensor], tuple]:
    """What verl's engine does: columns from the logits (1, S, V), made jagged; then the loss."""
    columns = loss_fn(student_logits=logits.unsqueeze(0), data=data, data_format="thd")
    assert all(column.shape == (1, len(logits)) for column in columns.values())
    # NCCL gathers no other.
    assert all(column.squeeze(0).is_contiguous() for column in columns.values())
    offsets = data["input_ids"].offsets()
    output = {
        n: torch.nested.nested_tensor_from_jagged(c.squeeze(0), offsets) for n, c in columns.items()
    }
    return output, loss_fn(model_output=output, data=data, dp_group=None)


def with_request(batch: TensorDict, **request) -> TensorDict:
    from verl.utils import tensordict_utils as tu

    tu.assign_non_tensor_data(batch, REQUEST, Request(**request))
    return batch


@pytest.fixture
def logits(batch) -> torch.Tensor:
    return random_logits(rows=batch["input_ids"].values().shape[0])


def test_scoring_returns_the_requested_columns(batch, logits):
    with torch.no_grad():
        output, (loss, metrics) = engine(
            TopKPass(), logits, with_request(batch, topk=K, vocab_size=9, at="chosen")
        )
    assert {name.split("/")[0] for name in output} == {"top_ids", "top_log_probs", "log_probs_at"}
    ids, log_probs = top_log_probs(logits, K, 9)
    assert torch.equal(join_columns(output, "top_ids"), ids)
    assert torch.equal(join_columns(output, "top_log_probs"), log_probs)
    at = collect(join_columns(output, "log_probs_at"), batch["input_ids"], batch["responses"])
    for sequence, rows in enumerate(slow_rows()):
        expected = logits[rows].log_softmax(-1).gather(-1, batch["chosen"][sequence].long())
        torch.testing.assert_close(at[sequence], expected)
    assert loss.item() == 0
    assert metrics == {}


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        ({"topk": 2, "vocab_size": V}, {"top_ids", "top_log_probs"}),
        ({"at": "chosen"}, {"log_probs_at"}),
    ],
)
def test_only_what_is_requested_is_returned(batch, logits, request_, names):
    with torch.no_grad():
        output, _ = engine(TopKPass(), logits, with_request(batch, **request_))
    assert {name.split("/")[0] for name in output} == names


def test_training_gives_the_objective_its_log_probs_with_gradient(batch, logits):
    seen = []

    def objective(log_probs, data):
        seen.append(data)
        rows = scoring_rows(data["input_ids"].offsets(), data["responses"].offsets())
        return log_probs[rows].sum(), {"metric": 1}

    logits.requires_grad_()
    _, (loss, metrics) = engine(TopKPass(objective), logits, with_request(batch, at="chosen"))
    rows = torch.tensor(list(chain(*slow_rows())))
    plain = logits.log_softmax(-1)[rows].gather(-1, batch["chosen"].values().long()).sum()
    torch.testing.assert_close(loss, plain)
    expected = torch.autograd.grad(plain, logits)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)
    assert metrics == {"metric": 1}
    assert seen == [batch]


def test_a_trained_model_scores_without_its_objective(batch, logits):
    def objective(log_probs, data):
        raise AssertionError("a scoring pass has no loss")

    with torch.no_grad():
        _, (loss, _) = engine(
            TopKPass(objective), logits, with_request(batch, topk=K, vocab_size=V)
        )
    assert loss.item() == 0


@pytest.mark.parametrize("sampled", [True, False])
def test_request_pass_sets_the_engines_flags(batch, sampled):
    from verl.utils import tensordict_utils as tu

    request = Request(topk=K, vocab_size=V)
    topk.request_pass(batch, request, sampled=sampled, entropy=True)
    flags = ("distillation_use_topk", "distillation_only", "calculate_entropy", "compute_loss")
    assert [tu.get_non_tensor_data(batch, flag, None) for flag in flags] == [
        True,
        not sampled,
        True,
        True,
    ]
    assert batch[REQUEST] == request


def test_under_sequence_parallelism_a_rank_answers_for_its_own_rows(batch, logits, monkeypatch):
    from verl.utils import ulysses

    data, ranks = with_request(batch, at="chosen"), 4
    expected = join_rows([TopKPass()(student_logits=logits.unsqueeze(0), data=data)])
    assert len(logits) % ranks, "the last rank's rows end in padding"
    padded = torch.cat([logits, random_logits(rows=-len(logits) % ranks)])

    monkeypatch.setattr(ulysses, "_ULYSSES_SEQUENCE_PARALLEL_GROUP", "group")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: ranks)
    answers = []
    for rank, share in enumerate(padded.chunk(ranks)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        answers.append(TopKPass()(student_logits=share.unsqueeze(0), data=data))
    torch.testing.assert_close(join_rows(answers)[: len(logits)], expected)


def join_rows(answers: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """(S, K) out of the ranks' columns."""
    return torch.cat([torch.cat(list(columns.values())).T for columns in answers])
