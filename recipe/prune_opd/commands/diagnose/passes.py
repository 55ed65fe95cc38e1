"""Passes of both models over the student's responses, which are sampled here unless there are some.

One model is in memory at a time. What stays is (T, K) ids and log-probs per response and model.

Shapes: T response tokens, K candidates.
"""

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.diagnose.arguments import Arguments
from recipe.prune_opd.commands.diagnose.scores import PairScores
from recipe.prune_opd.commands.pair import models
from recipe.prune_opd.commands.pair.engines import Engine, ask
from recipe.prune_opd.commands.pair.findings import OK
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.prompts import prompt_ids, read_chats
from recipe.prune_opd.commands.pair.sampling import Rollout, Sampling, sample
from recipe.prune_opd.commands.pair.scoring import Scored, logits_of, score, scores_of

MOST_ROWS = 20000
"""Prompts of a file that are chosen from."""


@dataclass(frozen=True)
class Passes:
    """Settings of sampling and scoring."""

    k: int = 16
    """Candidates whose probability is summed."""
    ks: tuple[int, ...] = (8, 16, 32)
    """Numbers of candidates that are compared; ``k`` is among them."""
    prompts: int = 16
    samples: int = 2
    """Responses per prompt."""
    seed: int = 0
    temperature: float = 1.0
    """Temperature of the rollout: the student's logits are divided by it, in sampling and in
    scoring."""
    teacher_temperature: float = 1.0
    dtype: str = "float32"
    batch: int = 8
    """Responses that transformers samples at once."""
    chunk: int = 256
    """Tokens that are scored at once."""
    engine: str = "transformers"
    device: str = "cpu"


def choose_prompts(student: Model, args: Arguments) -> list[list[int]]:
    """Choose prompts of the data by the seed, and pass over those that are too long.

    Args:
        student: whose tokens they become.
        args: file, number, seed, longest prompt.

    Raises:
        ValueError: the file is not in verl's format, or all its prompts are too long.
    """
    _, messages = read_chats(args, MOST_ROWS)
    order = list(range(len(messages)))
    random.Random(args.seed).shuffle(order)
    chosen: list[list[int]] = []
    for row in order:
        ids = prompt_ids(student, messages[row], args.template)
        if 0 < len(ids) <= args.max_prompt_length:
            chosen.append(ids)
        if len(chosen) == args.prompts:
            break
    if not chosen:
        raise ValueError(
            f"--data: {args.data} has no prompt of at most {args.max_prompt_length} tokens"
        )
    return chosen


def examine_pair(
    pair: Pair,
    passes: Passes,
    limit: int,
    prompts: Sequence[list[int]] = (),
    rollouts: Sequence[Rollout] = (),
) -> tuple[list[Rollout], PairScores]:
    """Sample from the student unless there are responses, and let both models score them.

    Args:
        pair: student and teacher, of the same tokens.
        passes: how.
        limit: most tokens of a response that is sampled.
        prompts: ids of the prompts to answer.
        rollouts: ready responses instead.

    Raises:
        ValueError: a model or the engine cannot be loaded, or log-probs are not finite.
    """
    found, vocabulary = list(rollouts), pair.vocabulary
    if not found and passes.engine != "transformers":
        found = _sample_by_engine(pair, passes, limit, prompts)
    with torch.no_grad():
        model = load_model(pair, pair.student, passes)
        found = found or _sample(model, pair, passes, limit, prompts)
        mine = score_all(model, pair.student, found, passes, passes.temperature, vocabulary)
        del model
        _free()
        model = load_model(pair, pair.teacher, passes)
        temperature, ids = passes.teacher_temperature, [one.ids for one in mine]
        theirs = score_all(model, pair.teacher, found, passes, temperature, vocabulary, ids)
    scores, mask = scores_of(found, mine, theirs)
    groups = torch.tensor([rollout.prompt for rollout in found])
    return found, PairScores(scores, mask, groups, passes.ks)


def _asked(prompts: Sequence[list[int]], passes: Passes) -> list[tuple[int, list[int]]]:
    """Number and ids of the prompt of each response that is wanted."""
    return [(number, ids) for number, ids in enumerate(prompts) for _ in range(passes.samples)]


def _rollouts(
    asked: Sequence[tuple[int, list[int]]], responses: Sequence[list[int]]
) -> list[Rollout]:
    return [
        Rollout(number, ids, response)
        for (number, ids), response in zip(asked, responses, strict=True)
    ]


def _sampling(pair: Pair, passes: Passes, limit: int) -> Sampling:
    ends = frozenset(pair.student.ends)
    return Sampling(limit, ends, passes.temperature, passes.seed, passes.batch)


def _sample(
    model: Any, pair: Pair, passes: Passes, limit: int, prompts: Sequence[list[int]]
) -> list[Rollout]:
    """Sample responses by transformers."""
    asked = _asked(prompts, passes)
    try:
        how = _sampling(pair, passes, limit)
        responses = sample(model, pair.student, [ids for _, ids in asked], how)
    except FloatingPointError as error:
        raise _not_finite(pair.student, passes) from error
    return _rollouts(asked, responses)


def _sample_by_engine(
    pair: Pair, passes: Passes, limit: int, prompts: Sequence[list[int]]
) -> list[Rollout]:
    """Sample responses by a rollout engine.

    Raises:
        ValueError: it is not installed.
    """
    asked, eager = _asked(prompts, passes), passes.device == "cpu"
    engine = Engine(passes.engine, pair.student.path, passes.dtype, pair.trust_remote_code, eager)
    try:
        how = _sampling(pair, passes, limit)
        answers = ask(engine, [ids for _, ids in asked], how)
    except ImportError as error:
        raise ValueError(
            f"--engine: {passes.engine} cannot be imported ({error}), allowed: transformers, or"
            " install it"
        ) from error
    return _rollouts(asked, [answer.token_ids for answer in answers])


def load_model(pair: Pair, of: Model, passes: Passes) -> Any:
    """Load the weights of one of a pair.

    Raises:
        ValueError: they do not fit into memory, are not whole, or not finite.
    """
    trusted = pair.trust_remote_code
    loaded, finding = models.load(of, of.key, passes.dtype, passes.device, trusted)
    if loaded is None or finding.status != OK:
        raise ValueError(f"{of.key}: {of.path}: {finding.evidence}; {finding.change}")
    return loaded


def score_all(
    model: Any,
    of: Model,
    rollouts: Sequence[Rollout],
    passes: Passes,
    temperature: float,
    vocabulary: int,
    at: Sequence[Tensor] | None = None,
) -> list[Scored]:
    """Score all responses by one model.

    Args:
        model: its weights.
        of: the model, for messages.
        rollouts: the responses.
        passes: number of candidates, chunk.
        temperature: divides its logits.
        vocabulary: candidates are ids below it.
        at: (T, k) int of each response, ids whose log-probs are wanted.

    Raises:
        ValueError: the log-probs are not finite.
    """
    found = []
    bar = tqdm(rollouts, desc=f"scoring by the {of.key.lower()}", unit=" responses")
    for i, rollout in enumerate(bar):
        logits = logits_of(model, rollout, passes.chunk)
        ids = None if at is None else at[i]
        scored = score(logits, max(passes.ks), vocabulary, ids, temperature)
        if scored.log_probs.isnan().any():
            raise _not_finite(of, passes)
        found.append(scored)
    return found


def _not_finite(of: Model, passes: Passes) -> ValueError:
    return ValueError(
        f"{of.key}: {of.path} gives NaN in {passes.dtype}, allowed: another --dtype, or whole"
        " weights"
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
