"""Intervals for there being few prompts: prompts are drawn again with replacement."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

LEVEL = 0.95
"""Share of resamplings inside an interval."""


def over_prompts(
    statistic: Callable[[Tensor], float], groups: Tensor, resamplings: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of a number that is made of responses.

    NaN with a single prompt, and where a draw has no such number.

    Args:
        statistic: the number, of the rows (N,) int64 of the responses to the prompts drawn.
        groups: (B,) int64, number of each response's prompt.
        resamplings: draws of as many prompts as there are.
        seed: of the draws.
    """
    members = [(groups == group).nonzero().squeeze(-1) for group in groups.unique()]
    if len(members) == 1:
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # the NaN says it
        found = stats.bootstrap(
            (np.arange(len(members)),),
            lambda drawn: statistic(torch.cat([members[i] for i in drawn])),
            n_resamples=resamplings,
            vectorized=False,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(seed % 2**32),  # numpy takes no negative seed, torch does
        ).confidence_interval
    return float(found.low), float(found.high)


def of_mean(
    values: Tensor, mask: Tensor, groups: Tensor, resamplings: int, seed: int
) -> tuple[float, float]:
    """Interval of a mean over all tokens.

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.
        groups: (B,) int64, number of each response's prompt.
        resamplings: number of draws.
        seed: of the draws.
    """
    sums, counts = (values * mask).double().sum(-1), mask.sum(-1).double()

    def mean(rows: Tensor) -> float:
        return (sums[rows].sum() / counts[rows].sum()).item()

    return over_prompts(mean, groups, resamplings, seed)
