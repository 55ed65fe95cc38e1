"""Gradients of OPD's loss before and after drift, against that of right solutions.

Both are of the student's parameters. A side whose gradient points where right solutions point
teaches the task; the cosine of a side that says nothing is near 0.

Shapes: T response positions, K candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from recipe.prune_opd.commands.diagnose.passes import Passes, free, load_model
from recipe.prune_opd.commands.diagnose.questions import Solution
from recipe.prune_opd.commands.diagnose.scores import PairScores
from recipe.prune_opd.commands.estimate import costs
from recipe.prune_opd.commands.pair.models import Pair, free_memory
from recipe.prune_opd.commands.pair.sampling import Rollout
from recipe.prune_opd.commands.pair.sides import Sides
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.reward import topk_reward
from verl_ext.logits import log_probs_at

LEAST = 4
"""Tokens of each side below which a response is passed over."""
MOST_TOKENS = 1024
"""Positions of a response that are looked at, and tokens of a solution."""


@dataclass(frozen=True)
class Cosines:
    """Cosines of single responses with the gradient of right solutions, each (N,) float64."""

    before: Tensor
    after: Tensor
    rows: list[int]
    """Number of each response."""


def cosines(
    pair: Pair,
    passes: Passes,
    rollouts: Sequence[Rollout],
    scores: PairScores,
    sides: Sides,
    solutions: Sequence[Solution],
    most: int,
) -> Cosines:
    """Compare gradients, of as many tokens before as after. Two of them are in memory at once.

    Args:
        pair: whose student.
        passes: how.
        rollouts: the responses.
        scores: of both models on them.
        sides: of the responses.
        solutions: right ones.
        most: responses.

    Raises:
        ValueError: the model cannot be loaded.
    """
    chosen, own = list(_chosen(sides, most)), scores.at(passes.k)
    rewards = topk_reward(own).reward  # of plain OPD: not weighted
    model = load_model(pair, pair.student, passes)
    right = _of_solutions(model, solutions)
    found: list[list[float]] = []
    for row, *both in tqdm(chosen, desc="gradients", unit=" responses"):
        part = slice(both[0].shape[-1])
        ids, given = own.student.ids[row, part], rewards[row, part].unsqueeze(0)
        log_probs = _log_probs(model, passes.temperature, rollouts[row], ids)
        losses = (topk_policy_loss(log_probs, log_probs.detach(), given, one)[0] for one in both)
        found.append([_cosine(_gradient(model, loss), right) for loss in losses])
    del model, right
    free()
    values = torch.tensor(found, dtype=torch.float64).reshape(-1, 2)
    return Cosines(values[:, 0], values[:, 1], [row for row, _, _ in chosen])


def _gradient(model: Any, loss: Tensor) -> tuple[Tensor, ...]:
    """Gradient of all parameters; the graph stays, for another loss of it."""
    return torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)


def check_memory(pair: Pair, passes: Passes) -> None:
    """Refuse gradients that do not fit beside the weights.

    Raises:
        ValueError: says what is needed, and what is free.
    """
    needed = 3.1 * costs.weight_bytes(costs.model_shape(pair.student.config), passes.dtype)
    left = free_memory(passes.device)
    if needed > left:
        raise ValueError(
            f"--solutions: weights and two gradients need {costs.readable(needed)} in"
            f" {passes.dtype}, {costs.readable(left)} free, allowed: more memory, or leave it out"
        )


def _chosen(sides: Sides, most: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Responses, and as many tokens up to the first rejected one as right after it.

    The rejected token itself is before drift: what the teacher says of it follows a sound prefix.

    Yields:
        Number of the response; (1, T) bool each, T up to the last of these tokens.
    """
    number = 0
    for row in range(len(sides.before)):
        until, later = (int(side[row, :MOST_TOKENS].sum()) for side in (sides.until, sides.after))
        count = min(until, later)
        if count < LEAST:
            continue
        places = torch.arange(until + count).unsqueeze(0)
        yield row, (places >= until - count) & (places < until), places >= until
        number += 1
        if number == most:
            return


def _log_probs(model: Any, temperature: float, rollout: Rollout, candidates: Tensor) -> Tensor:
    """Log-probs with gradient of the candidates of the first tokens of a response.

    Args:
        model: the student.
        temperature: divides its logits.
        rollout: the response.
        candidates: (T, K) int, of its first T tokens.

    Returns:
        (1, T, K) float32 on the CPU.
    """
    first = len(rollout.prompt_ids)
    ids = torch.tensor([rollout.ids[: first + len(candidates) - 1]], device=model.device)
    logits = model(input_ids=ids).logits[0, first - 1 :].float() / temperature
    return log_probs_at(logits, candidates.to(logits.device)).cpu().unsqueeze(0)


def _of_solutions(model: Any, solutions: Sequence[Solution]) -> list[Tensor]:
    """Gradient of the cross-entropy of right solutions, summed over their tokens."""
    total = [torch.zeros_like(one) for one in model.parameters()]
    for solution in tqdm(solutions, desc="gradients of solutions", unit=" solutions"):
        first, ids = len(solution.prompt_ids), solution.solution_ids[:MOST_TOKENS]
        whole = torch.tensor([solution.prompt_ids + ids], device=model.device)
        logits = model(input_ids=whole[:, :-1]).logits[0, first - 1 :].float()
        loss = F.cross_entropy(logits, whole[0, first:], reduction="sum")
        for one, more in zip(total, _gradient(model, loss), strict=True):
            one.add_(more)
    return total


def _cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Cosine of two gradients, tensor by tensor in float32; 0 where one of them is 0."""
    dot = ours = theirs = 0.0
    for a, b in zip(one, other, strict=True):
        x, y = a.flatten().float(), b.flatten().float()
        dot, ours, theirs = dot + float(x @ y), ours + float(x @ x), theirs + float(y @ y)
    return dot / (ours * theirs) ** 0.5 if ours and theirs else 0.0
