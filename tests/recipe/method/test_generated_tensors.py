"""Whatever tensors the method is given, its result is the defined one, or it says what is wrong.

Tensors are generated (``tests/tensors.py``): without tokens, with one candidate, all masked, with
holes, -inf, NaN, repeated ids, in every dtype, and not contiguous.
"""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import DTYPES, INF, NAN, batches, filled, flags, ids, shapes, view
from torch import Tensor

from recipe.prune_opd.method.budget import QuantileBudget, ResponseBudget
from recipe.prune_opd.method.drift import (
    MOST_WEIGHT,
    OverlapRatio,
    TeacherTopPAccept,
    is_member,
    nucleus_events,
    overlap_ratio,
    reliability,
    spent_at,
)
from recipe.prune_opd.method.gates import Consecutive, Cumulative, Gate, Relative, Windowed, stops
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.phase import RolloutPhase
from recipe.prune_opd.method.pruning import Pruned, Rules, prune
from recipe.prune_opd.method.registry import Registry
from recipe.prune_opd.method.reward import (
    STRATEGIES,
    WEIGHTINGS,
    Scores,
    Strategy,
    TopK,
    log_probs_of,
    topk_reward,
)
from recipe.prune_opd.method.weights import FirstTokens, ImportanceWeight, ReliabilityWeight

RULES = st.builds(
    Rules,
    metric=st.sampled_from([OverlapRatio(0.7), TeacherTopPAccept(0.9)]),
    w_drop=st.sampled_from([0, 5e-324, 1e-19, 0.01, 0.5, 3.0, 1e300]),
    w_base=st.sampled_from([0, 0.5, 1000]),
    applied=st.booleans(),
    strategy=st.sampled_from([STRATEGIES.find(name)() for name in STRATEGIES]),
    weighting=st.sampled_from([WEIGHTINGS.find(name)() for name in WEIGHTINGS]),
    weights=st.sampled_from([ReliabilityWeight(), ImportanceWeight(), FirstTokens(2)]),
)
GATES = [Cumulative(0.3), Cumulative(0), Windowed(3, 0.4), Consecutive(2), Relative(2, 0.1)]


def tensors(one: object) -> dict[str, Tensor]:
    """All tensors of nested dataclasses, by their path."""
    found = {}
    for field in dataclasses.fields(one):  # type: ignore[arg-type]
        value = getattr(one, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value
        elif dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": inner for name, inner in tensors(value).items()}
    return found


def changed(scores: Scores, change) -> Scores:
    """The same scores with every tensor changed."""

    def through(one):
        values = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        new = {
            name: change(v) if isinstance(v, Tensor) else through(v) for name, v in values.items()
        }
        return type(one)(**new)

    return through(scores)


def assert_same(one: Pruned | Scores, other: Pruned | Scores) -> None:
    theirs = tensors(other)
    for name, value in tensors(one).items():
        torch.testing.assert_close(value, theirs[name], equal_nan=True)


# ------------------------------------------------------------------------------------------ pruning


@given(batches(special=(-INF,)), RULES)
def test_a_batch_without_nan_has_finite_advantages_on_its_tokens_alone(batch, rules):
    scores, mask = batch
    found = prune(scores, mask, rules)
    assert found.advantages.shape == found.reward.ids.shape == found.reward.valid.shape
    assert found.advantages.dtype == found.reliability.loss_weight.dtype == torch.float32
    assert torch.isfinite(found.advantages).all()
    assert torch.isfinite(found.reliability.loss_weight).all()
    assert not found.advantages[~mask].any()
    assert not found.advantages[~found.reward.valid].any()
    assert not (found.events & ~mask).any()
    assert found.reliability.effective_length.le(mask.sum(-1)).all()
    assert found.overlap.ge(0).all()
    assert found.overlap.le(1).all()


@given(batches(special=(-INF, NAN), repeated=True), RULES)
def test_memory_layout_does_not_matter_and_nothing_is_written_into_it(batch, rules):
    scores, mask = batch
    before = changed(scores, torch.clone)
    found = prune(scores, mask, rules)
    assert_same(found, prune(changed(scores, lambda t: t.contiguous().clone()), mask, rules))
    assert_same(scores, before)


@given(batches(special=(-INF,)), RULES, st.sampled_from([NAN, INF, -INF]))
def test_what_does_not_count_may_hold_anything(batch, rules, filling):
    """Padding is made of whatever lay in memory."""
    scores, mask = batch
    found = prune(scores, mask, rules)

    def spoil(tensor: Tensor) -> Tensor:
        off = ~mask.view(*mask.shape, *[1] * (tensor.ndim - 2))
        return tensor.masked_fill(off, filling) if tensor.is_floating_point() else tensor

    spoilt = prune(changed(scores, spoil), mask, rules)
    assert torch.equal(found.advantages, spoilt.advantages)
    assert torch.equal(found.events, spoilt.events)
    assert torch.equal(found.reliability.loss_weight, spoilt.reliability.loss_weight)


@given(batches(special=(NAN,)), RULES)
def test_nan_stays_with_its_token(batch, rules):
    """It is not hidden, and it spoils no other token but by a weight over the whole response."""
    scores, mask = batch
    found = prune(scores, mask, rules)
    broken = torch.zeros_like(mask)
    for tensor in tensors(scores).values():
        broken |= tensor.isnan() if tensor.ndim == 2 else tensor.isnan().any(-1)
    if isinstance(rules.weights, ImportanceWeight):
        broken = broken.any(-1, keepdim=True).expand_as(mask)
    assert torch.isfinite(found.advantages[~broken]).all()


@given(batches(special=(-INF,)))
def test_the_reward_is_that_of_its_formula(batch):
    """r = -w (S - T), w = softmax of S over the candidates, in float64, candidate by candidate."""
    scores, mask = batch
    found = topk_reward(scores).reward
    assert scores.teacher_on_student is not None
    student, teacher = scores.student.log_probs.double(), scores.teacher_on_student.double()
    for place in mask.nonzero().tolist():
        ours, theirs = (log_probs[tuple(place)].tolist() for log_probs in (student, teacher))
        rows = list(zip(ours, theirs, strict=True))
        total = math.fsum(math.exp(s) for s, t in rows if math.isfinite(s + t))
        expected = [
            -math.exp(s) / total * (s - t) if math.isfinite(s + t) else 0.0 for s, t in rows
        ]
        assert found[tuple(place)].tolist() == pytest.approx(expected, abs=1e-5)


@given(batches(), st.sampled_from(list(STRATEGIES)))
def test_a_part_that_is_missing_is_named(batch, name):
    scores, _ = batch
    needs = STRATEGIES.find(name).needs
    bare = Scores(scores.responses, scores.student, scores.teacher)
    if needs:
        with pytest.raises(ValueError, match=f"strategy '{name}' needs {needs[0]}"):
            topk_reward(bare, name)
    else:
        topk_reward(bare, name)


# -------------------------------------------------------------------------------------------- drift


@given(st.data(), st.booleans())
def test_membership_and_overlap_are_those_of_sets(data, repeated):
    shape = data.draw(shapes())
    one, other = data.draw(ids(shape, repeated)), data.draw(ids(shape, repeated))
    found, shares = is_member(one, other), overlap_ratio(one, other)
    for place in torch.ones(shape[:2]).nonzero().tolist():
        ours, theirs = one[tuple(place)].tolist(), other[tuple(place)].tolist()
        expected = [value in theirs for value in ours]
        assert found[tuple(place)].tolist() == expected
        assert shares[tuple(place)].item() == pytest.approx(sum(expected) / len(expected))


@given(shapes(), shapes())
def test_ids_of_two_shapes_are_refused(one, other):
    first, second = torch.zeros(one).int(), torch.zeros(other).int()
    if one == other:
        assert overlap_ratio(first, second).shape == one[:2]
    else:
        with pytest.raises(ValueError, match="must have one shape"):
            overlap_ratio(first, second)


@given(batches(special=(-INF,)), st.sampled_from([1e-3, 0.5, 0.95, 1.0]))
def test_the_nucleus_is_the_shortest_prefix_that_reaches_its_share(batch, top_p):
    scores, mask = batch
    top = scores.teacher
    found = nucleus_events(scores.responses, top.ids, top.log_probs, mask, top_p)
    for place in torch.ones_like(mask).nonzero().tolist():
        at = tuple(place)
        accepted, mass = set(), 0.0
        log_probs = top.log_probs[at].double().tolist()
        for token, log_prob in zip(top.ids[at].tolist(), log_probs, strict=True):
            if mass == 0 or mass < top_p - 1e-6:
                accepted.add(token)
            mass += math.exp(log_prob)
        expected = mask[at].item() and scores.responses[at].item() not in accepted
        assert found[at].item() == expected


@given(st.data(), st.sampled_from([0, 5e-324, 1e-19, 1e-9, 0.25, 0.3, 1.0, 7.0, 1e300]))
def test_reliability_is_that_of_its_formula(data, w_drop):
    shape = data.draw(shapes())[:2]
    events, mask = data.draw(flags(shape)), data.draw(flags(shape))
    found = reliability(view(events), mask.int(), w_drop, 0.5)
    for b in range(shape[0]):
        count, effective = 0, 0
        for t in range(shape[1]):
            count += (events & mask)[b, t].item()
            alive = count < spent_at(w_drop)
            weight = max(0.0, 1 - w_drop * count) if alive else 0.0
            effective += alive and mask[b, t].item()
            assert found.weight[b, t].item() == pytest.approx(weight, abs=1e-6)
            expected = weight + 0.5 if mask[b, t] else 0
            assert found.loss_weight[b, t].item() == pytest.approx(expected, abs=1e-6)
        assert found.effective_length[b].item() == effective


@given(st.floats(), st.floats())
def test_any_number_is_a_weight_or_refused(w_drop, w_base):
    events = torch.ones(1, 4, dtype=torch.bool)
    if not (0 <= w_drop < INF and 0 <= w_base <= MOST_WEIGHT):
        with pytest.raises(ValueError, match="must be"):
            reliability(events, events, w_drop, w_base)
        return
    found = reliability(events, events, w_drop, w_base)
    assert torch.isfinite(found.loss_weight).all()
    assert (found.weight.diff() <= 0).all()


@given(st.data(), st.sampled_from(DTYPES))
def test_log_probs_of_ids_are_looked_up(data, dtype):
    (b, t, k), (_, _, k2) = data.draw(shapes()), data.draw(shapes())
    wanted, known = data.draw(ids((b, t, k))), data.draw(ids((b, t, k2)))
    log_probs = data.draw(filled((b, t, k2), (-INF, NAN), dtype))
    found = log_probs_of(wanted, TopK(known, log_probs))
    assert found.dtype == dtype
    for place in torch.ones(b, t).nonzero().tolist():
        at = tuple(place)
        table = dict(zip(known[at].tolist(), log_probs[at].tolist(), strict=True))
        expected = [table.get(i, -INF) for i in wanted[at].tolist()]
        assert found[at].tolist() == pytest.approx(expected, nan_ok=True)


# -------------------------------------------------------------------------------------------- gates


@given(st.data(), st.sampled_from(GATES), st.integers(1, 4))
def test_a_gate_stops_where_whole_responses_are_stopped(data, rule, least):
    shape = data.draw(shapes())[:2]
    events = data.draw(flags(shape))
    found = stops(rule, view(events), least)
    assert found.dtype == torch.int64
    for row, kept in zip(events, found.tolist(), strict=True):
        gate, width = Gate(rule, least), data.draw(st.integers(1, 3))
        for begin in range(0, shape[1], width):
            gate.feed(row[begin : begin + width].tolist())
        assert (shape[1] if gate.stop is None else gate.stop) == kept
        assert gate.feed([]) == gate.stop


# --------------------------------------------------------------------------------------------- loss


@given(st.data(), st.sampled_from(DTYPES))
def test_the_loss_is_that_of_its_formula(data, dtype):
    shape = data.draw(shapes())
    mask = data.draw(flags(shape[:2]))
    new, old = (data.draw(filled(shape, (), dtype)) for _ in range(2))
    advantages = data.draw(filled(shape, (0.0, 2.0), torch.float32))
    new = new.detach().requires_grad_()
    loss, metrics = topk_policy_loss(new, old, advantages, mask)
    (gradient,) = torch.autograd.grad(loss, new)
    expected, tokens = 0.0, max(1, int(mask.sum()))
    triples = (x.double().flatten().tolist() for x in (new.detach(), old, advantages))
    counts = mask.unsqueeze(-1).expand(shape).flatten().tolist()
    for n, o, a, counted in zip(*triples, counts, strict=True):
        if counted:
            ratio = math.exp(min(20, max(-20, n - o)))
            term = max(-a * ratio, -a * min(1.2, max(0.8, ratio)))
            expected += (min(term, -a * 3.0) if a < 0 else term) / tokens
    rough = 1e-4 if dtype in (torch.float32, torch.float64) else 0.15
    assert loss.item() == pytest.approx(expected, rel=rough, abs=rough)
    assert torch.isfinite(gradient).all()
    assert not gradient[~mask].any()
    assert all(math.isfinite(value.item()) for value in metrics.values())


@given(st.data(), st.sampled_from([NAN, INF, -INF]))
def test_the_loss_reads_nothing_that_does_not_count(data, filling):
    shape = data.draw(shapes())
    mask, losses = data.draw(flags(shape[:2])), []
    given_tensors = [data.draw(filled(shape, (), torch.float32)) for _ in range(3)]
    for spoil in (False, True):
        off = ~mask.unsqueeze(-1) & spoil
        new, old, advantages = (tensor.masked_fill(off, filling) for tensor in given_tensors)
        new = new.detach().requires_grad_()
        loss, _ = topk_policy_loss(new, old, advantages, mask)
        (gradient,) = torch.autograd.grad(loss, new)
        losses.append((loss, gradient))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])


# ----------------------------------------------------------------------------------- plain numbers

ANYTHING = st.one_of(st.integers(-5, 300), st.floats(), st.booleans(), st.none(), st.text())


@given(
    st.lists(ANYTHING, min_size=6, max_size=6), st.sampled_from([ResponseBudget, QuantileBudget])
)
def test_a_budget_of_anything_keeps_its_bounds_or_is_refused(values, rule):
    names = ("init", "min", "max", "hit_ratio", "margin", "patience")
    try:
        budget = rule(**dict(zip(names, values, strict=True)))
    except (ValueError, TypeError):
        return
    for lengths in ([0], [budget.limit], [1, 10**6], [budget.limit] * 3):
        budget.update(lengths)
        assert type(budget.limit) is int
        assert 0 < budget.min <= budget.limit <= budget.max


@given(
    st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=5), max_size=12),
    st.sampled_from([ResponseBudget, QuantileBudget]),
)
def test_a_budget_goes_on_from_its_state_and_never_leaves_its_bounds(batches, rule):
    budget, resumed = rule(50, 20, 300, margin=5), rule(50, 20, 300, margin=5)
    for lengths in batches:
        resumed.load_state_dict(budget.state_dict())
        assert budget.update(lengths) == resumed.update(lengths)
        assert 20 <= budget.limit == resumed.limit <= 300


@given(st.floats(), st.floats(0, 1), st.floats(0, 1))
def test_a_phase_goes_live_by_a_number_beyond_a_bound_alone(overlap, below, above):
    phase = RolloutPhase("r", below, above)
    assert phase.update(overlap) is (overlap < below or overlap > above)
    assert phase.update(NAN) is False


@given(st.text())
def test_any_name_is_a_rule_or_refused(name):
    registry: Registry[Strategy] = Registry("key", Strategy, known=STRATEGIES.find("sampled"))
    if name != "known":
        with pytest.raises(ValueError, match=r"^key: "):
            registry.find(name)


@given(st.sampled_from([Windowed, Relative]), ANYTHING, ANYTHING)
def test_a_window_of_anything_is_a_rule_or_refused(kind, window, share):
    whole = type(window) is int and window >= 1
    if not (whole and type(share) in (int, float) and 0 <= share < 1):
        with pytest.raises(ValueError, match="must be"):
            kind(window, share)
        return
    assert stops(kind(window, share), torch.ones(1, 5, dtype=torch.bool), 1).item() <= 5
