"""The loss is the clipped top-k update worked by hand, with its gradient."""

import math

import pytest
import torch

from recipe.prune_opd.method.loss import topk_policy_loss

B, T, K = 4, 6, 3


def batch(
    spread: float = 0.5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log_probs with gradient, old_log_probs, advantages, mask; ratios up to e^(2 spread) on both
    sides of 1."""
    generator = torch.Generator().manual_seed(seed)
    old = -5 * torch.rand(B, T, K, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(B, T, K, generator=generator, dtype=torch.float64)
    advantages = torch.randn(B, T, K, generator=generator, dtype=torch.float64)
    mask = (torch.rand(B, T, generator=generator) < 0.7).int()
    return new.requires_grad_(), old, advantages, mask


def slow_loss(
    new, old, advantages, mask, clip_low=0.2, clip_high=0.2, clip_c=3.0, num_tokens=None
) -> torch.Tensor:
    """Section 4 of the method, one candidate at a time; differentiable."""
    total = torch.zeros((), dtype=torch.float64)
    for b, t, v in torch.ones_like(old).nonzero().tolist():
        if mask[b, t]:
            a = advantages[b, t, v].item()
            ratio = (new[b, t, v] - old[b, t, v]).clamp(-20, 20).exp()
            term = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip_low, 1 + clip_high))
            if a < 0:
                term = torch.minimum(term, torch.tensor(-a * clip_c, dtype=torch.float64))
            total = total + term
    return total / (mask.sum() if num_tokens is None else num_tokens)


def value_and_gradient(function, new, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    result = function(new, *args, **kwargs)
    loss = result[0] if isinstance(result, tuple) else result
    return loss.detach(), torch.autograd.grad(loss, new)[0]


def one(log_ratio: float, advantage: float, **kwargs) -> tuple[float, float, dict[str, float]]:
    """Loss, gradient and metrics of a single candidate."""
    new = torch.tensor([[[log_ratio]]], dtype=torch.float64, requires_grad=True)
    advantages = torch.full((1, 1, 1), advantage, dtype=torch.float64)
    loss, metrics = topk_policy_loss(
        new, torch.zeros_like(advantages), advantages, torch.ones(1, 1), **kwargs
    )
    loss.backward()
    return loss.item(), new.grad.item(), {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_low": 0.1, "clip_high": 0.4}, {"clip_c": 1.5}, {"num_tokens": 37.5}],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_agrees_with_the_definition(spread, options):
    new, old, advantages, mask = batch(spread)
    loss, gradient = value_and_gradient(topk_policy_loss, new, old, advantages, mask, **options)
    slow, slow_gradient = value_and_gradient(slow_loss, new, old, advantages, mask, **options)
    torch.testing.assert_close(loss, slow, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, slow_gradient, rtol=0, atol=1e-6)


def test_at_ratio_one_it_is_stop_gradient_reverse_kl():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(B, T, 11, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(B, T, 11, generator=generator, dtype=torch.float64).log_softmax(-1)
    mask = torch.rand(B, T, generator=generator) < 0.7
    loss_weight = 0.5 + torch.rand(B, T, 1, generator=generator, dtype=torch.float64)
    ids = logits.topk(K).indices
    log_probs = logits.log_softmax(-1).gather(-1, ids)
    cost = (log_probs.softmax(-1) * (log_probs - teacher.gather(-1, ids))).detach()  # sg[w (S - T)]

    expected = torch.autograd.grad(
        ((loss_weight * cost * log_probs).sum(-1) * mask).sum() / mask.sum(),
        logits,
        retain_graph=True,
    )[0]
    loss, _ = topk_policy_loss(
        log_probs, log_probs.detach(), -loss_weight * cost * mask.unsqueeze(-1), mask
    )
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected, rtol=0, atol=1e-9)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "has_gradient"),
    [
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # clipped at 1.2: it is likely enough
        (0.5, 2.0, -1.0, True),
        (0.9, -2.0, 1.8, True),
        (0.5, -2.0, 1.6, False),  # clipped at 0.8: it is unlikely enough
        (1.5, -2.0, 3.0, True),
        (2.9, -2.0, 5.8, True),
        (3.5, -2.0, 6.0, False),  # dual clip
    ],
)
def test_clipping(ratio, advantage, loss, has_gradient):
    value, gradient, _ = one(math.log(ratio), advantage)
    assert value == pytest.approx(loss)
    assert gradient == pytest.approx(-advantage * ratio if has_gradient else 0)


def test_clipping_range_has_two_sides():
    assert one(math.log(1.5), 1.0, clip_low=0.1, clip_high=0.3)[0] == pytest.approx(-1.3)
    assert one(math.log(0.5), -1.0, clip_low=0.1, clip_high=0.3)[0] == pytest.approx(0.9)
    assert one(math.log(9), -1.0, clip_c=5.0)[0] == pytest.approx(5.0)


@pytest.mark.parametrize("log_ratio", [25.0, 800.0, -25.0, -800.0])
def test_the_log_ratio_is_clamped_at_20(log_ratio):
    clamped = math.exp(math.copysign(20, log_ratio))
    value, gradient, _ = one(log_ratio, 1.0, clip_low=1.0, clip_high=1e30)
    assert value == pytest.approx(-clamped)
    assert gradient == 0
    assert math.isfinite(one(log_ratio, -1.0)[0])


@pytest.mark.parametrize(
    "num_tokens", [7, 7.0, 2.5, 0.5, torch.tensor(7), torch.tensor(7.0), torch.tensor(0.5)]
)
def test_given_denominator(num_tokens):
    new, old, advantages, mask = batch()
    default, gradient = value_and_gradient(topk_policy_loss, new, old, advantages, mask)
    loss, scaled = value_and_gradient(
        topk_policy_loss, new, old, advantages, mask, num_tokens=num_tokens
    )
    factor = mask.sum().item() / float(num_tokens)
    torch.testing.assert_close(loss, default * factor)
    torch.testing.assert_close(scaled, gradient * factor)


def test_denominator_counts_tokens_not_weights_nor_candidates():
    new = torch.zeros(1, 4, 2, requires_grad=True)
    advantages = torch.tensor([[[-1.0, -2.0], [0.0, 0.0], [-1.0, 0.0], [-9.0, -9.0]]])
    loss, _ = topk_policy_loss(new, torch.zeros(1, 4, 2), advantages, torch.tensor([[1, 1, 1, 0]]))
    assert loss.item() == pytest.approx(4 / 3)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [3, 1], [2, 2]])
def test_micro_batches_with_a_global_count_give_the_whole_gradient(sizes):
    new, old, advantages, mask = batch()
    whole, gradient = value_and_gradient(topk_policy_loss, new, old, advantages, mask)
    assert len({int(part.sum()) for part in mask.split(1)}) > 1
    parts = [
        topk_policy_loss(*part, num_tokens=mask.sum())[0]
        for part in zip(
            *(tensor.split(sizes) for tensor in (new, old, advantages, mask)), strict=True
        )
    ]
    torch.testing.assert_close(sum(parts).detach(), whole)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), new)[0], gradient)


@pytest.mark.parametrize("num_tokens", [None, 0, torch.tensor(0.0)])
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf, -torch.inf])
def test_empty_mask_is_zero(bad, num_tokens):
    new = torch.full((1, 2, K), bad, requires_grad=True)
    loss, metrics = topk_policy_loss(
        new,
        torch.full((1, 2, K), bad),
        torch.full((1, 2, K), bad),
        torch.zeros(1, 2),
        num_tokens=num_tokens,
    )
    loss.backward()
    assert loss.item() == 0
    assert new.grad.eq(0).all()
    assert all(value.item() == 0 for value in metrics.values())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_padding_may_hold_anything(where, bad):
    new, old, advantages, mask = batch()
    expected, expected_gradient = value_and_gradient(topk_policy_loss, new, old, advantages, mask)
    tensors = [new.detach().clone(), old.clone(), advantages.clone()]
    tensors[where][mask == 0] = bad
    loss, gradient = value_and_gradient(
        topk_policy_loss, tensors[0].requires_grad_(), *tensors[1:], mask
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_candidate_that_is_none_may_have_log_prob_minus_infinity():
    new, old, advantages, _ = batch()
    mask = torch.ones(B, T)
    advantages[..., 1] = 0
    new = new.detach()
    new[..., 1] = old[..., 1] = -torch.inf
    loss, gradient = value_and_gradient(
        topk_policy_loss, new.requires_grad_(), old, advantages, mask
    )
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[..., 1].eq(0).all()
    assert gradient[..., 0].ne(0).any()


def test_nan_on_a_generated_token_is_not_hidden():
    new, old, advantages, _ = batch()
    advantages[0, 0, 0] = torch.nan
    assert topk_policy_loss(new, old, advantages, torch.ones(B, T))[0].isnan()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_any_mask_type(dtype):
    new, old, advantages, mask = batch()
    expected = topk_policy_loss(new, old, advantages, mask)[0]
    assert topk_policy_loss(new, old, advantages, mask.to(dtype))[0] == expected


def test_metrics():
    new = torch.tensor(
        [[[0.0, math.log(2), -math.log(2)], [math.log(4), 7.0, 0.1]]], requires_grad=True
    )
    advantages = torch.tensor([[[1.0, 1.0, 1.0], [-1.0, 0.0, -1.0]]])
    _, metrics = topk_policy_loss(new, torch.zeros(1, 2, 3), advantages, torch.ones(1, 2))
    assert set(metrics) == {"pg_clipfrac", "pg_clipfrac_lower", "ppo_kl"}
    assert not any(value.requires_grad for value in metrics.values())
    # The second: ratio 2 with a positive advantage.
    assert metrics["pg_clipfrac"].item() == pytest.approx(1 / 5)
    # The fourth: ratio 4 with a negative one.
    assert metrics["pg_clipfrac_lower"].item() == pytest.approx(1 / 5)
    assert metrics["ppo_kl"].item() == pytest.approx(-(math.log(4) + 0.1) / 5)
