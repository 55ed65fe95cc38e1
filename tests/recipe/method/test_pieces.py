"""Work by pieces gives what the plain formulas do, whatever the shapes and the size of a piece."""

import pytest
import torch

from recipe.prune_opd.method import pieces as module
from recipe.prune_opd.method.drift import is_member, nucleus_events, overlap_ratio
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.pieces import in_pieces, pieces
from recipe.prune_opd.method.reward import Sampled, Scores, TopK, topk_reward


class Batch:
    """A random batch, and a size of pieces that is no divisor of it."""

    def __init__(self, seed: int, monkeypatch):
        generator = torch.Generator().manual_seed(seed)

        def number(low, high):
            return int(torch.randint(low, high, (1,), generator=generator))

        def ids():
            return torch.rand(b, t, 2 * k, generator=generator).argsort(-1)[..., :k].int()

        def log_probs():
            return torch.randn(b, t, 2 * k, generator=generator).log_softmax(-1)[..., :k]

        b, t, k = number(1, 5), number(1, 30), number(1, 9)
        monkeypatch.setattr(module, "CACHE_BYTES", number(1, 2000))
        self.mine, self.theirs, self.student, self.teacher = ids(), ids(), log_probs(), log_probs()
        self.mask = torch.rand(b, t, generator=generator) < 0.7
        self.new = (self.student + 0.5 * torch.randn(b, t, k, generator=generator)).requires_grad_()
        self.advantages = torch.randn(b, t, k, generator=generator) * self.mask.unsqueeze(-1)
        self.responses = self.mine[..., 0]


@pytest.fixture(params=range(12))
def batch(request, monkeypatch) -> Batch:
    return Batch(request.param, monkeypatch)


def test_members_and_overlap(batch):
    block = (batch.mine.unsqueeze(-1) == batch.theirs.unsqueeze(-2)).any(-1)
    assert torch.equal(is_member(batch.mine, batch.theirs), block)
    assert torch.equal(overlap_ratio(batch.mine, batch.theirs), block.float().mean(-1))


def test_nucleus(batch):
    teacher = batch.teacher.sort(-1, descending=True).values
    probs = teacher.double().exp()
    inside = (probs.cumsum(-1) - probs < 0.5) & (batch.theirs == batch.responses.unsqueeze(-1))
    found = nucleus_events(batch.responses, batch.theirs, teacher, batch.mask, 0.5)
    assert torch.equal(found, ~inside.any(-1) & batch.mask)


def test_reward(batch):
    batch.teacher[..., 0][batch.mask] = -torch.inf
    weights = batch.student.masked_fill(batch.teacher.isneginf(), -torch.inf).softmax(-1)
    plain = torch.where(batch.teacher.isneginf(), 0, -weights * (batch.student - batch.teacher))
    own = TopK(batch.mine, batch.student)
    sampled = Sampled(batch.student[..., 0], batch.teacher[..., 0])
    scores = Scores(batch.responses, own, own, batch.teacher, sampled=sampled)
    found = topk_reward(scores).reward
    torch.testing.assert_close(found, plain.nan_to_num(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [None, 7.0])
def test_loss_and_gradient(batch, num_tokens):
    advantages, active = batch.advantages, batch.mask.unsqueeze(-1) & (batch.advantages != 0)
    ratio = torch.where(active, batch.new - batch.student, 0).exp()
    clipped = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    terms = torch.where(advantages < 0, clipped.clamp(max=-3 * advantages), clipped)
    tokens = max(1, int(batch.mask.sum())) if num_tokens is None else num_tokens
    plain = torch.where(active, terms, 0).sum() / tokens
    given = batch.new, batch.student, advantages, batch.mask
    loss, metrics = topk_policy_loss(*given, num_tokens=num_tokens)
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-5)
    found, expected = (
        torch.autograd.grad(3 * each, batch.new, retain_graph=True)[0] for each in (loss, plain)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    share = (-torch.where(active, batch.new - batch.student, 0)).sum() / active.sum().clamp(min=1)
    torch.testing.assert_close(metrics["ppo_kl"], share.detach(), rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(topk_policy_loss(*given, num_tokens=num_tokens)[0], loss)


def test_a_graph_may_be_differentiated_again_but_not_twice(batch):
    loss, _ = topk_policy_loss(batch.new, batch.student, batch.advantages, batch.mask)
    first, second = (torch.autograd.grad(loss, batch.new, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(loss, batch.new, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


def test_pieces_hold_what_their_size_allows(monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", 100)
    wide, narrow = torch.arange(40.0).view(2, 5, 4), torch.arange(10).view(2, 5)
    found = list(pieces(narrow.shape, wide, narrow))
    assert [len(piece[1]) for piece in found] == [6, 4]  # of 16 bytes each
    assert torch.equal(torch.cat([piece[0] for piece in found]).view(2, 5, 4), wide)


@pytest.mark.parametrize("lead", [(0,), (3, 0), ()])
def test_shapes_without_positions_or_with_one(lead):
    values = torch.ones(*lead, 4)
    assert in_pieces(lambda x: x.sum(-1), torch.Size(lead), values).shape == lead
