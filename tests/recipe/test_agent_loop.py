import asyncio
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def agent_loop():
    """Our module, as verl's plugin loads it."""
    import sys

    from verl.experimental.agent_loop import agent_loop

    registered = agent_loop._agent_loop_registry["prune_opd"]["_target_"]
    assert registered == "recipe.prune_opd.agent_loop.LimitedAgentLoop"
    return sys.modules["recipe.prune_opd.agent_loop"]


def run(agent_loop, monkeypatch, sampling_params: dict[str, Any], **kwargs: Any) -> tuple[dict, dict]:
    """Sampling parameters and other arguments that verl's loop is called with."""
    seen = []

    async def stock(self, sampling_params, **kwargs):
        seen.append((sampling_params, kwargs))
        return "output"

    monkeypatch.setattr(agent_loop.SingleTurnAgentLoop, "run", stock)
    loop = object.__new__(agent_loop.LimitedAgentLoop)
    assert asyncio.run(loop.run(sampling_params, **kwargs)) == "output"
    return seen[0]


@pytest.mark.parametrize("limit", [300, np.int64(300)])
def test_a_training_prompt_is_limited(agent_loop, monkeypatch, limit):
    shared = {"temperature": 1.0, "max_tokens": 4096}
    params, kwargs = run(agent_loop, monkeypatch, shared, raw_prompt=["p"], **{agent_loop.LIMIT: limit})
    assert params == {"temperature": 1.0, "max_tokens": 300}
    assert type(params["max_tokens"]) is int
    assert kwargs == {"raw_prompt": ["p"]}
    assert shared == {"temperature": 1.0, "max_tokens": 4096}, "one dict serves all samples of a prompt"


def test_a_validation_prompt_is_not(agent_loop, monkeypatch):
    shared = {"temperature": 1.0}
    params, kwargs = run(agent_loop, monkeypatch, shared, raw_prompt=["p"], priority=3)
    assert params == {"temperature": 1.0}
    assert kwargs == {"raw_prompt": ["p"], "priority": 3}
