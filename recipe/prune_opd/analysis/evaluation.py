"""What sampled answers say about a model: average and pass rates, lengths and failures, with intervals.

Pure functions. Shapes: P problems, N responses of a problem, which may differ between problems.

Every number is the mean over problems of the problem's own value. Intervals resample problems, not responses: responses
to one problem are alike, and it is from other problems that another result would come.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEED = 260507804
"""Seed of the bootstrap: the number of the paper on arXiv."""
RESAMPLES = 10_000
LEVEL = 0.95
"""Share of resamples inside an interval."""


@dataclass(frozen=True)
class Response:
    """One graded response."""

    benchmark: str
    problem: str
    """What the responses to one problem have in common."""
    correct: bool
    unread: str = ""
    """Why its answer could not be read; "" where it could."""
    tokens: int | None = None
    """Length. None where not known."""
    truncated: bool | None = None
    """Whether the limit cut it. None where not known."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and the percentile interval of its bootstrap, NaN with a single problem."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One benchmark."""

    benchmark: str
    problems: int
    responses: tuple[int, int]
    """Fewest and most of a problem."""
    average: Estimate
    """avg@n: share of right responses."""
    passed: dict[int, Estimate]
    """pass@k by k: probability that at least one of k responses is right."""
    unread: Estimate
    """Share of responses whose answer could not be read."""
    reasons: dict[str, int]
    """Responses by why not."""
    tokens: Estimate | None
    """Mean length. None where not known of every response, as the next."""
    truncated: Estimate | None
    """Share of responses that the limit cut."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k responses is right (arXiv:2107.03374).

    Args:
        n: responses of the problem.
        correct: right ones among them.
        k: responses drawn without replacement.

    Raises:
        ValueError: not 0 <= correct <= n or not 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} responses with {correct} right ones, allowed: k from 1 to the responses")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def bootstrap(values: Sequence[float], seed: int = SEED, resamples: int = RESAMPLES) -> Estimate:
    """Mean with its percentile interval.

    Args:
        values: (P,), one per problem.
        seed: of the resampling. The same values and seed give the same interval.
        resamples: number of resamples.

    Raises:
        ValueError: there are no values.
    """
    value_P = np.asarray(values, dtype=np.float64)
    if not value_P.size:
        raise ValueError("no problems to average over")
    if value_P.size == 1:
        return Estimate(float(value_P[0]), math.nan, math.nan)
    generator = np.random.default_rng(seed)
    means = [_resampled_means(generator, value_P, part) for part in _parts(resamples, 500)]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value_P.mean()), float(low), float(high))


def _resampled_means(generator: np.random.Generator, value_P: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return value_P[generator.integers(value_P.size, size=(count, value_P.size))].mean(axis=1)


def _parts(total: int, size: int) -> list[int]:
    """Sizes of chunks: all resamples at once would not fit into memory with many problems."""
    return [min(size, total - start) for start in range(0, total, size)]


def summarise(responses: Iterable[Response], ks: Sequence[int] = (), seed: int = SEED) -> list[Summary]:
    """One summary per benchmark, sorted by name.

    Args:
        responses: of any benchmarks, in any order.
        ks: k of pass@k. Without any, the responses of the problem with the fewest.
        seed: of the intervals.

    Raises:
        ValueError: a k is above the responses of a problem.
    """
    grouped: dict[str, dict[str, list[Response]]] = defaultdict(lambda: defaultdict(list))
    for response in responses:
        grouped[response.benchmark][response.problem].append(response)
    return [_summary(name, list(problems.values()), ks, seed) for name, problems in sorted(grouped.items())]


def _summary(benchmark: str, problems: list[list[Response]], ks: Sequence[int], seed: int) -> Summary:
    counts = [len(responses) for responses in problems]
    if ks and max(ks) > min(counts):
        raise ValueError(f"pass@{max(ks)}: {benchmark} has a problem with {min(counts)} responses, allowed: k up to it")
    right = [sum(response.correct for response in responses) for responses in problems]
    everyone = [response for responses in problems for response in responses]

    def mean(value: Callable[[Response], float]) -> Estimate:
        return bootstrap([sum(map(value, responses)) / len(responses) for responses in problems], seed)

    def mean_if_known(name: str) -> Estimate | None:
        known = all(getattr(response, name) is not None for response in everyone)
        return mean(lambda response: float(getattr(response, name))) if known else None

    return Summary(
        benchmark=benchmark,
        problems=len(problems),
        responses=(min(counts), max(counts)),
        average=mean(lambda response: response.correct),
        passed={
            k: bootstrap([pass_at_k(n, correct, k) for n, correct in zip(counts, right, strict=True)], seed)
            for k in (ks or (min(counts),))
        },
        unread=mean(lambda response: bool(response.unread)),
        reasons=_count(response.unread for response in everyone if response.unread),
        tokens=mean_if_known("tokens"),
        truncated=mean_if_known("truncated"),
    )


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
