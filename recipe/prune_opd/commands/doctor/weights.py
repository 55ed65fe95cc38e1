"""Findings that only the weights can tell: whole, finite, the same in a batch, near each other.

Shapes: B responses, T positions, K candidates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recipe.prune_opd.commands.doctor.arguments import Arguments
from recipe.prune_opd.commands.doctor.engine import rollout_engine
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding
from recipe.prune_opd.commands.pair.models import Pair, load
from recipe.prune_opd.commands.pair.prompts import prompt_ids
from recipe.prune_opd.commands.pair.rules import (
    THRESHOLD,
    TOP_P,
    UNRELATED_OVERLAP,
    rules_of,
)
from recipe.prune_opd.commands.pair.sampling import Rollout, Sampling, sample
from recipe.prune_opd.commands.pair.scoring import (
    Scored,
    logits_of,
    logits_together,
    sampled_log_probs,
    score,
    scores_of,
)
from recipe.prune_opd.commands.pair.sides import (
    FEW_TOKENS,
    NUCLEUS,
    rejection_rates,
    rejections,
    separation,
    sides_of,
)
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.pruning import find_drift, prune

STUDENT, OWN, ENGINE, TEACHER, AGREEMENT, METRIC = NAMES = (
    "student's weights",
    "own teacher",
    "rollout engine",
    "teacher's weights",
    "agreement",
    "drift metric",
)
SELF_LOSS = 1e-3
"""A student that is its own teacher has a loss below it; in float32 it is 1e-6 or less."""
MOST_PROMPT = 256
"""Tokens of a prompt that are kept, its last."""


def weights(pair: Pair, messages: Sequence[Any], args: Arguments) -> list[Finding]:
    """Find all that only the weights can tell.

    Args:
        pair: the models.
        messages: three chats or fewer, which the student is to answer.
        args: of the command.
    """
    if args.no_weights:
        return _skipped(NAMES, "--no-weights")
    prompts = [_short_prompt(pair, prompt, args) for prompt in messages]
    with torch.no_grad():
        rollouts, mine, findings = _of_the_student(pair, prompts, args)
        if not rollouts:
            return findings + _skipped(NAMES[1:], "needs the student")
        return findings + _of_the_teacher(pair, rollouts, mine, args)


def _skipped(names: Sequence[str], reason: str) -> list[Finding]:
    return [Finding(name, SKIPPED, f"not checked: {reason}") for name in names]


def _short_prompt(pair: Pair, prompt: Any, args: Arguments) -> list[int]:
    """End of a prompt, at least one token, all of them with a row in the embedding."""
    student = pair.student
    ids = [i for i in prompt_ids(student, prompt, args.template) if i < student.vocab_size]
    return ids[-MOST_PROMPT:] or [0]


def _of_the_student(
    pair: Pair, prompts: Sequence[list[int]], args: Arguments
) -> tuple[list[Rollout], list[Scored], list[Finding]]:
    """Sample from the student and examine it.

    Returns:
        Responses, none where the student is of no use; its scores on them; findings.
    """
    student, trusted = pair.student, args.trust_remote_code
    model, whole = load(student, STUDENT, "float32", args.device, trusted)
    if model is None or whole.status == ERROR:
        return [], [], [whole]
    try:
        rollouts = _sample(model, pair, prompts, args)
    except FloatingPointError:
        evidence = "the weights are finite, the log-probs in float32 are not"
        change = "the checkpoint is broken: take an earlier one"
        return [], [], [Finding(STUDENT, ERROR, evidence, change)]
    k = min(args.topk, pair.vocabulary)
    mine = [score(logits_of(model, rollout), k, pair.vocabulary) for rollout in rollouts]
    own = own_teacher(model, rollouts, mine, pair.vocabulary)
    whole = overflow(model, rollouts, args.dtype, whole)  # from here on in this dtype
    return rollouts, mine, [whole, own, rollout_engine(model, student, prompts, args)]


def _sample(model: Any, pair: Pair, prompts: Sequence[list[int]], args: Arguments) -> list[Rollout]:
    """Sample responses of different lengths, so that some are padded. No end token ends them."""
    rollouts = []
    for i, ids in enumerate(prompts):
        how = Sampling(max(args.tokens - 5 * i, 1), seed=i)
        (response,) = sample(model, pair.student, [ids], how)
        rollouts.append(Rollout(i, ids, response))
    return rollouts


def _of_the_teacher(
    pair: Pair, rollouts: Sequence[Rollout], mine: Sequence[Scored], args: Arguments
) -> list[Finding]:
    """Examine the teacher on the student's responses."""
    teacher, trusted = pair.teacher, args.trust_remote_code
    model, whole = load(teacher, TEACHER, "float32", args.device, trusted)
    unknown = any(max(rollout.ids) >= teacher.vocab_size for rollout in rollouts)
    if model is None or whole.status == ERROR or unknown:
        return [whole, *_skipped([AGREEMENT, METRIC], "needs the teacher on the student's tokens")]
    k = mine[0].ids.shape[-1]
    theirs = [
        score(logits_of(model, rollout), k, pair.vocabulary, at=own.ids)
        for rollout, own in zip(rollouts, mine, strict=True)
    ]
    return [
        overflow(model, rollouts, args.dtype, whole),
        agreement(rollouts, mine, theirs),
        drift_metric(rollouts, mine, theirs),
    ]


def own_teacher(
    model: Any, rollouts: Sequence[Rollout], mine: Sequence[Scored], vocabulary: int
) -> Finding:
    """Compute the loss of a student that is its own teacher, by this package's own functions.

    The student scores each sequence alone, the teacher all in one padded batch, so that padding
    that leaks into other positions shows.

    Args:
        model: the student.
        rollouts: its responses.
        mine: its scores on each, alone.
        vocabulary: candidates are ids below it.
    """
    k = mine[0].ids.shape[-1]
    theirs = [
        score([rows], k, vocabulary, at=own.ids)
        for rows, own in zip(logits_together(model, rollouts), mine, strict=True)
    ]
    scores, mask = scores_of(rollouts, mine, theirs)
    pruned = prune(scores, mask, rules_of())
    old = scores.student.log_probs
    loss = float(topk_policy_loss(old, old, pruned.advantages, mask)[0])
    evidence = (
        f"loss {loss:.1e} over {int(mask.sum())} sampled tokens, overlap"
        f" {_mean(pruned.overlap, mask):.3f}, {int(pruned.events.sum())} drift events"
    )
    if abs(loss) < SELF_LOSS and not pruned.events.any():
        return Finding(OWN, OK, evidence)
    change = (
        "the model scores a sequence differently in a padded batch: its code or attn_implementation"
        " is at fault"
    )
    return Finding(OWN, ERROR, evidence, change)


def _mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].float().mean())


def overflow(model: Any, rollouts: Sequence[Rollout], dtype: str, finding: Finding) -> Finding:
    """Turn the model to the dtype of the computation, and see what that does to the log-probs.

    Args:
        model: in float32.
        rollouts: the responses.
        dtype: that training computes in.
        finding: about the weights so far.
    """
    exact = torch.cat([sampled_log_probs(model, rollout) for rollout in rollouts])
    for parameter in model.parameters():  # buffers stay in float32, as in training
        parameter.data = parameter.data.to(getattr(torch, dtype))
    rounded = torch.cat([sampled_log_probs(model, rollout) for rollout in rollouts])
    bad = int((~torch.isfinite(rounded)).sum())
    if bad:
        evidence = (
            f"finite, but in {dtype} the log-probs of {bad} of {len(rounded)} sampled tokens"
            " are not"
        )
        change = "it overflows: compute in bfloat16 or float32"
        return Finding(finding.name, ERROR, evidence, change)
    error = float((exact - rounded).abs().mean())
    return Finding(
        finding.name, OK, f"finite; rounding to {dtype} moves a log-prob by {error:.1e} on average"
    )


def agreement(
    rollouts: Sequence[Rollout], mine: Sequence[Scored], theirs: Sequence[Scored]
) -> Finding:
    """Measure how much the two rank alike on what the student writes.

    Args:
        rollouts: the responses.
        mine: the student's scores on each.
        theirs: the teacher's.
    """
    scores, mask = scores_of(rollouts, mine, theirs)
    drift = find_drift(scores, mask, rules_of())
    mean, share = _mean(drift.overlap, mask), _mean(drift.events, mask)
    evidence = (
        f"overlap of the top {scores.student.ids.shape[-1]} on {int(mask.sum())} sampled tokens:"
        f" {mean:.2f}; drift events at γ = {THRESHOLD}: {share:.0%}"
    )
    if mean < UNRELATED_OVERLAP:
        change = (
            "the teacher would choose quite other words from the start: check that it is the right"
            " model"
        )
        return Finding(AGREEMENT, WARNING, evidence, change)
    return Finding(AGREEMENT, OK, evidence)


def drift_metric(
    rollouts: Sequence[Rollout], mine: Sequence[Scored], theirs: Sequence[Scored]
) -> Finding:
    """Compare overlap before and after the first token that the teacher would not accept.

    Args:
        rollouts: the responses.
        mine: the student's scores on each.
        theirs: the teacher's.
    """
    scores, mask = scores_of(rollouts, mine, theirs)
    rejected = rejections(scores, mask, TOP_P)
    sides = sides_of(rejected, mask)
    overlap = separation(find_drift(scores, mask, rules_of()).events, sides)
    nucleus = rejection_rates(rejected, sides)
    if not overlap.known:
        least = (
            f"{FEW_TOKENS} tokens before and after a first one that the teacher would not accept"
        )
        return Finding(
            METRIC, OK, f"not told by so few tokens: it takes {least}; diagnose has more"
        )
    evidence = (
        f"overlap has {overlap} the first token that the teacher would not accept; {NUCLEUS} has"
        f" {nucleus}"
    )
    if not overlap.none or nucleus.none:
        return Finding(METRIC, OK, evidence)
    change = (
        f"overlap separates nothing here: set prune_opd.drift.metric={NUCLEUS}; diagnose measures"
        " it on more tokens"
    )
    return Finding(METRIC, WARNING, evidence, change)
