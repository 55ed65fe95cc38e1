"""Statistics of sampled answers: average and pass rates, lengths and failures, with intervals.

Pure functions. Shapes: P problems, N responses of a problem, which may differ between problems.

Every number is the mean over problems of the problem's own value. Intervals are over problems, not
over responses: responses to one problem are alike, and it is from other problems that another
result would come.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

SEED = 260507804
"""Seed of the bootstrap: the number of the paper on arXiv."""
RESAMPLES = 10_000
LEVEL = 0.95
"""Share of intervals that shall hold the true mean."""
FEW = 10
"""Problems below which a bootstrap is too narrow: of 5 it holds the true mean 82 to 90 times of
100."""
BOOTSTRAP, WILSON, NONE = "bootstrap", "wilson", "none"
"""Methods by which an interval was made."""
CELLS = 1_000_000
"""Values that are resampled at once: all of them would not fit into memory with many problems."""


@dataclass(frozen=True)
class Response:
    """One graded response."""

    benchmark: str
    problem: str
    """Key that the responses to one problem have in common."""
    correct: bool
    unread: str = ""
    """Reason why its answer could not be read; "" where it could."""
    tokens: int | None = None
    """Length. None where not known."""
    truncated: bool | None = None
    """True where the limit cut it; None where not known."""


@dataclass(frozen=True)
class Estimate:
    """Mean over problems and its interval; low and high are NaN where the method is ``NONE``."""

    mean: float
    low: float
    high: float
    method: str
    """``BOOTSTRAP``, ``WILSON`` or ``NONE``."""


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
    """Estimate the probability that at least one of k responses is right, without bias.

    See arXiv:2107.03374.

    Args:
        n: responses of the problem.
        correct: right ones among them.
        k: responses drawn without replacement.

    Raises:
        ValueError: not 0 <= correct <= n or not 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(
            f"pass@{k} of {n} responses with {correct} right ones, allowed: k from 1 to the"
            " responses"
        )
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def estimate(values: Sequence[float], share: bool, seed: int = SEED) -> Estimate:
    """Average over problems, with an interval at ``LEVEL``.

    A bootstrap resamples problems. It is of no use where all values are the same, and too narrow
    with fewer problems than ``FEW``: there a share has Wilson's interval of P observations, and so
    it has where every problem counts 0 or 1. A value between 0 and 1 varies less than one that is 0
    or 1, so Wilson's interval is wide enough. For a length there is nothing like it. One problem
    says nothing about others.

    Args:
        values: (P,), one per problem.
        share: whether they lie in [0, 1].
        seed: of the resampling. The same values and seed give the same interval.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no problems to average over")
    mean, number = math.fsum(values) / len(values), len(values)
    same = max(values) - min(values) <= 1e-9 * abs(mean)
    if number > 1 and share and (number < FEW or same or set(values) <= {0, 1}):
        return Estimate(mean, *_wilson(mean, number), WILSON)
    if number < FEW or same:
        return Estimate(mean, math.nan, math.nan, NONE)
    return Estimate(mean, *_bootstrap(values, seed), BOOTSTRAP)


def _wilson(mean: float, number: int) -> tuple[float, float]:
    """Bound a mean by Wilson's score interval, which scipy has for whole counts alone."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    mean = min(max(mean, 0.0), 1.0)
    middle = (mean + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * math.sqrt(mean * (1 - mean) / number + z**2 / (4 * number**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _bootstrap(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Bound a mean by scipy's bias-corrected and accelerated bootstrap."""
    import numpy as np
    from scipy import stats  # a second: help need not wait for it

    interval = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, CELLS // len(values)),
        confidence_level=LEVEL,
        method="BCa",
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise(
    responses: Iterable[Response], ks: Sequence[int] = (), seed: int = SEED
) -> list[Summary]:
    """Summarise responses by benchmark, sorted by name.

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
    return [
        _summary(name, list(problems.values()), ks, seed)
        for name, problems in sorted(grouped.items())
    ]


def _summary(
    benchmark: str, problems: list[list[Response]], ks: Sequence[int], seed: int
) -> Summary:
    counts = [len(responses) for responses in problems]
    if ks and max(ks) > min(counts):
        raise ValueError(
            f"pass@{max(ks)}: {benchmark} has a problem with {min(counts)} responses, allowed: k up"
            " to it"
        )
    right = [sum(response.correct for response in responses) for responses in problems]
    everyone = [response for responses in problems for response in responses]

    def mean(value: Callable[[Response], float], share: bool = True) -> Estimate:
        means = [sum(map(value, responses)) / len(responses) for responses in problems]
        return estimate(means, share, seed)

    def mean_if_known(name: str, share: bool) -> Estimate | None:
        known = all(getattr(response, name) is not None for response in everyone)
        return mean(lambda response: float(getattr(response, name)), share) if known else None

    def passed(k: int) -> Estimate:
        rates = [pass_at_k(n, correct, k) for n, correct in zip(counts, right, strict=True)]
        return estimate(rates, True, seed)

    return Summary(
        benchmark=benchmark,
        problems=len(problems),
        responses=(min(counts), max(counts)),
        average=mean(lambda response: response.correct),
        passed={k: passed(k) for k in (ks or (min(counts),))},
        unread=mean(lambda response: bool(response.unread)),
        reasons=_count(response.unread for response in everyone if response.unread),
        tokens=mean_if_known("tokens", share=False),
        truncated=mean_if_known("truncated", share=True),
    )


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
