"""Recovery: does the teacher still reach the right answer from where the student has drifted?

It goes on from a response cut before its first token that it would not accept, and from the same
response cut a little after that token, by samples of its own at its temperature: OPD teaches the
student this very distribution, so that is how a student that has learned all of it would go on.

Shapes: B responses, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from recipe.prune_opd.commands.diagnose.grading import Grade
from recipe.prune_opd.commands.diagnose.passes import Passes, write_by
from recipe.prune_opd.commands.diagnose.questions import Question
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.sampling import Rollout, Sampling
from recipe.prune_opd.commands.pair.sides import Sides


@dataclass(frozen=True)
class Cut:
    """Response and the tokens of it that are kept, before its first rejected token and after."""

    response: int
    """Its number."""
    before: int
    after: int


@dataclass(frozen=True)
class Recovery:
    """Continuations of the teacher, one from each prefix."""

    cuts: list[Cut]
    before: list[bool]
    """The answer is right, from the prefix before the first rejected token."""
    after: list[bool]
    """The same from the prefix after it."""
    unfinished: tuple[int, int]
    """Continuations that the limit cut, before and after."""


def gap_for(limit: int) -> int:
    """Tokens after the first rejected one that a prefix keeps, where none are given.

    A sixteenth of the limit, at most 64: enough for a slip to have consequences.

    Args:
        limit: most tokens of a response.
    """
    return max(1, min(64, limit // 16))


def cuts_of(sides: Sides, groups: Tensor, gap: int, most: int) -> list[Cut]:
    """Choose prefixes, of as many prompts as possible.

    A response that ends within the gap, or before it is left a token, is passed over: it has its
    answer already.

    Args:
        sides: of the responses at their first rejected token.
        groups: (B,) int64, number of each response's prompt.
        gap: tokens after the rejected one that are kept.
        most: responses.
    """
    rejected = sides.first.any(-1)
    first, left = sides.first.long().argmax(-1), sides.after.sum(-1)
    turns: dict[int, int] = {}
    found: list[tuple[int, Cut]] = []
    for row in (rejected & (left > gap)).nonzero().squeeze(-1).tolist():
        turn = turns[int(groups[row])] = turns.get(int(groups[row]), 0) + 1
        at = int(first[row])
        found.append((turn, Cut(row, at, at + 1 + gap)))
    return [cut for _, cut in sorted(found, key=lambda one: one[0])[:most]]


def recover(
    pair: Pair,
    passes: Passes,
    rollouts: Sequence[Rollout],
    questions: Sequence[Question],
    cuts: Sequence[Cut],
    limit: int,
    grade: Grade,
) -> Recovery:
    """Let the teacher go on from both prefixes of every cut, and grade what comes of it.

    Args:
        pair: whose teacher.
        passes: how; its teacher's temperature is that of the samples.
        rollouts: all responses.
        questions: (B,), of each response.
        cuts: prefixes of responses with known answers.
        limit: most tokens of a response, prefix included.
        grade: of the run.

    Raises:
        ValueError: model or engine cannot be loaded, or log-probs are not finite.
    """
    kept = [(cut.response, tokens) for cut in cuts for tokens in (cut.before, cut.after)]
    prefixes = [_prefix(rollouts[row], tokens) for row, tokens in kept]
    room = limit - min(tokens for _, tokens in kept)
    ends = frozenset({*pair.student.ends, *pair.teacher.ends})
    longest = max(len(rollout.prompt_ids) for rollout in rollouts) + limit
    how = Sampling(room, ends, passes.teacher_temperature, passes.seed, passes.batch, longest)
    written = write_by(pair, pair.teacher, passes, prefixes, how)
    right, unfinished = [], []
    bar = tqdm(written, desc="grading", unit=" responses")
    for (row, tokens), more in zip(kept, bar, strict=True):
        whole = (rollouts[row].response_ids[:tokens] + more)[:limit]
        text = pair.student.tokenizer.decode(whole, skip_special_tokens=True)
        right.append(grade(questions[row], text))
        unfinished.append(whole[-1] not in ends)
    both = (sum(unfinished[::2]), sum(unfinished[1::2]))
    return Recovery(list(cuts), right[::2], right[1::2], both)


def _prefix(rollout: Rollout, tokens: int) -> list[int]:
    """Prompt and the first tokens of a response."""
    return rollout.prompt_ids + rollout.response_ids[:tokens]


def groups_of(cuts: Sequence[Cut], groups: Tensor) -> Tensor:
    """Number of the prompt of each cut, (N,) int64.

    Args:
        cuts: N of them.
        groups: (B,) int64.
    """
    return groups[torch.tensor([cut.response for cut in cuts], dtype=torch.int64)]
