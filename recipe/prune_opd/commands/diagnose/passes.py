"""Passes of both models over the student's responses, which are sampled here unless there are some.

One model is in memory at a time. What stays is (T, K) ids and log-probs per response and model.

Shapes: T response tokens, K candidates.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.diagnose.scores import PairScores
from recipe.prune_opd.commands.pair import models
from recipe.prune_opd.commands.pair.engines import Engine, ask
from recipe.prune_opd.commands.pair.findings import OK
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.sampling import Rollout, Sampling, sample
from recipe.prune_opd.commands.pair.scoring import Scored, logits_of, score, scores_of

TRANSFORMERS = "transformers"
"""Engine that needs no other library."""


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
    found, vocabulary, student = list(rollouts), pair.vocabulary, pair.student
    asked = [(number, ids) for number, ids in enumerate(prompts) for _ in range(passes.samples)]
    wanted, ends = [ids for _, ids in asked], frozenset(student.ends)
    how = Sampling(limit, ends, passes.temperature, passes.seed, passes.batch)
    if not found and passes.engine != TRANSFORMERS:
        found = _rollouts(asked, _written_by_engine(pair, student, passes, wanted, how))
    with torch.no_grad():
        model = load_model(pair, student, passes)
        found = found or _rollouts(asked, _written(model, student, passes, wanted, how))
        mine = score_all(model, student, found, passes, passes.temperature, vocabulary)
        del model
        free()
        model = load_model(pair, pair.teacher, passes)
        temperature, ids = passes.teacher_temperature, [one.ids for one in mine]
        theirs = score_all(model, pair.teacher, found, passes, temperature, vocabulary, ids)
        del model
        free()
    scores, mask = scores_of(found, mine, theirs)
    groups = torch.tensor([rollout.prompt for rollout in found])
    return found, PairScores(scores, mask, groups, passes.ks, _spread(mine, theirs))


def _spread(mine: Sequence[Scored], theirs: Sequence[Scored]) -> dict[str, Tensor]:
    """Width of the distributions, see ``PairScores``."""
    return {
        "student_entropy": _padded([one.entropy for one in mine]),
        "teacher_entropy": _padded([one.entropy for one in theirs]),
        "teacher_certainty": _padded([one.certainty for one in theirs]),
    }


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)


def _rollouts(
    asked: Sequence[tuple[int, list[int]]], responses: Sequence[list[int]]
) -> list[Rollout]:
    return [
        Rollout(number, ids, response)
        for (number, ids), response in zip(asked, responses, strict=True)
    ]


def _written(
    model: Any, of: Model, passes: Passes, prompts: Sequence[list[int]], how: Sampling
) -> list[list[int]]:
    """Responses of a model that is loaded, by transformers.

    Raises:
        ValueError: its log-probs are not finite.
    """
    try:
        return sample(model, of, prompts, how)
    except FloatingPointError as error:
        raise _not_finite(of, passes) from error


def _written_by_engine(
    pair: Pair, of: Model, passes: Passes, prompts: Sequence[list[int]], how: Sampling
) -> list[list[int]]:
    """Responses of a model, by a rollout engine.

    Raises:
        ValueError: it is not installed.
    """
    eager = passes.device == "cpu"
    engine = Engine(passes.engine, of.path, passes.dtype, pair.trust_remote_code, eager)
    try:
        return [answer.token_ids for answer in ask(engine, prompts, how)]
    except ImportError as error:
        raise ValueError(
            f"--engine: {passes.engine} cannot be imported ({error}), allowed: transformers, or"
            " install it"
        ) from error


def write_by(
    pair: Pair, of: Model, passes: Passes, prompts: Sequence[list[int]], how: Sampling
) -> list[list[int]]:
    """Responses of one of a pair, which is loaded for them and gone afterwards.

    Args:
        pair: the models.
        of: which of them.
        passes: engine, device, dtype.
        prompts: ids.
        how: length, ends, temperature, seed.

    Raises:
        ValueError: model or engine cannot be loaded, or log-probs are not finite.
    """
    if passes.engine != TRANSFORMERS:
        return _written_by_engine(pair, of, passes, prompts, how)
    with torch.no_grad():
        written = _written(load_model(pair, of, passes), of, passes, prompts, how)
    free()
    return written


def greedy_advice(
    pair: Pair, passes: Passes, rollouts: Sequence[Rollout], noise: float = 0.0
) -> Tensor:
    """Most likely token of the pair's teacher at each response token, (B, T) int.

    Args:
        pair: with the teacher to ask.
        passes: how.
        rollouts: the responses.
        noise: standard deviation of what is added to its weight matrices, as a share of theirs.

    Raises:
        ValueError: it cannot be loaded, or its log-probs are not finite.
    """
    one = replace(passes, k=1, ks=(1,))
    with torch.no_grad():
        model = load_model(pair, pair.teacher, passes)
        if noise:
            _disturb(model, noise, passes.seed)
        found = score_all(model, pair.teacher, rollouts, one, 1.0, pair.vocabulary)
    free()
    return _padded([scored.ids[:, 0] for scored in found])


def _disturb(model: Any, noise: float, seed: int) -> None:
    """Add Gaussian noise to the weight matrices, in place."""
    generator = torch.Generator().manual_seed(seed)
    for values in model.parameters():
        if values.dim() > 1:
            drawn = torch.randn(values.shape, generator=generator).to(values)
            values.add_(noise * values.std() * drawn)


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


def free() -> None:
    """Give back the memory of a model that is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
