"""Sequence parallelism changes nothing in what a pass returns and trains.

Runs verl's FSDP2 engine on two gloo ranks.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import answers_of

from verl_ext import cpu

PROGRAM = Path(__file__).with_name("ulysses_rank.py")

pytestmark = pytest.mark.skipif(
    not cpu.no_accelerator(), reason="this PyTorch is built for an accelerator"
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Without parallelism, of all sequences: each data-parallel rank had half; then with it, of
    each rank."""
    first, second = answers_of(PROGRAM, tmp_path_factory.mktemp("ulysses"))
    halves = [found["data parallel"] for found in (first, second)]
    whole = {name: halves[0][name] + halves[1][name] for name in halves[0] if name != "gradient"}
    whole["gradient"] = halves[0]["gradient"]
    return {
        "plain": whole,
        "rank 0": first["sequence parallel"],
        "rank 1": second["sequence parallel"],
    }


@pytest.mark.parametrize("rank", ["rank 0", "rank 1"])
@pytest.mark.parametrize(
    "name", ["top_ids", "top_log_probs", "log_probs_at", "log_probs", "entropy"]
)
def test_a_scoring_pass_returns_the_same(answers, name, rank):
    plain, parallel = answers["plain"][name], answers[rank][name]
    assert len(plain) == len(parallel) == 4
    for theirs, ours in zip(plain, parallel, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.cat(plain).float().std() > 0.1  # not all the same anyway


@pytest.mark.parametrize("rank", ["rank 0", "rank 1"])
def test_an_update_has_the_same_gradient(answers, rank):
    plain, parallel = answers["plain"]["gradient"], answers[rank]["gradient"]
    assert plain.keys() == parallel.keys()
    assert len(plain) > 20
    for name, gradient in plain.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(parallel[name], gradient, rtol=1e-3, atol=1e-6)
