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


def run(agent_loop, monkeypatch, sampling_params: dict[str, Any], manager: Any = None, **kwargs: Any) -> tuple:
    """Sampling parameters, other arguments and server manager that verl's loop is called with."""
    seen = []

    async def stock(self, sampling_params, **kwargs):
        seen.append((sampling_params, kwargs, self.server_manager))
        return "output"

    monkeypatch.setattr(agent_loop.SingleTurnAgentLoop, "run", stock)
    loop = object.__new__(agent_loop.LimitedAgentLoop)
    loop.server_manager = manager
    assert asyncio.run(loop.run(sampling_params, **kwargs)) == "output"
    return seen[0]


@pytest.mark.parametrize("limit", [300, np.int64(300)])
def test_a_training_prompt_is_limited(agent_loop, monkeypatch, limit):
    shared = {"temperature": 1.0, "max_tokens": 4096}
    params, kwargs, _ = run(agent_loop, monkeypatch, shared, raw_prompt=["p"], **{agent_loop.LIMIT: limit})
    assert params == {"temperature": 1.0, "max_tokens": 300}
    assert type(params["max_tokens"]) is int
    assert kwargs == {"raw_prompt": ["p"]}
    assert shared == {"temperature": 1.0, "max_tokens": 4096}, "one dict serves all samples of a prompt"


def test_a_validation_prompt_is_not(agent_loop, monkeypatch):
    shared = {"temperature": 1.0}
    params, kwargs, _ = run(agent_loop, monkeypatch, shared, raw_prompt=["p"], priority=3)
    assert params == {"temperature": 1.0}
    assert kwargs == {"raw_prompt": ["p"], "priority": 3}


def test_a_training_prompt_alone_goes_through_the_gate(agent_loop, monkeypatch):
    client = object.__new__(agent_loop.GatedClient)
    monkeypatch.setattr(agent_loop.GatedClient, "gated", lambda self: "gated")
    limited = {agent_loop.LIMIT: 300}
    assert run(agent_loop, monkeypatch, {}, client, **limited)[2] == "gated"
    assert run(agent_loop, monkeypatch, {}, client)[2] is client
    assert run(agent_loop, monkeypatch, {}, "verl's own", **limited)[2] == "verl's own"
