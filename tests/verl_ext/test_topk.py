"""A training engine's pass returns what is requested of it, on the rows that were asked for."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from tensordict import TensorDict

from verl_ext import topk
from verl_ext.logits import score, top_log_probs
from verl_ext.topk import (
    REQUEST,
    Request,
    TopKPass,
    collect,
    join_columns,
    scoring_rows,
    spread,
)

V, K = 23, 4


def random_logits(rows: int) -> torch.Tensor:
    return 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(0))


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
    columns = loss_fn(student_logits=logits.unsqueeze(0), data=data)
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
        ({"sampled": True}, {"log_probs"}),
        ({"entropy": True}, {"entropy"}),
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
    # verl's own passes over the logits, for the sampled tokens and the entropy, are left out.
    found = [tu.get_non_tensor_data(batch, flag, None) for flag in flags]
    assert found == [True, True, False, True]
    assert batch[REQUEST] == replace(request, sampled=sampled, entropy=True)


def test_sampled_tokens_and_entropy_are_what_verl_makes_of_them(batch, logits):
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    data = with_request(batch, topk=K, vocab_size=V, at="chosen", sampled=True, entropy=True)
    with torch.no_grad():
        output, _ = engine(TopKPass(), logits, data)
    labels = batch["input_ids"].values().roll(-1)
    plain = logprobs_from_logits(logits, labels)
    torch.testing.assert_close(output["log_probs"].values(), plain)
    torch.testing.assert_close(output["entropy"].values(), entropy_from_logits(logits))
    at = spread(batch["chosen"], batch["input_ids"])
    expected = score(logits, ids=at)["log_probs_at"]
    assert torch.equal(join_columns(output, "log_probs_at"), expected)


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
