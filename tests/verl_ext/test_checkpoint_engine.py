"""Weights arrive at every rollout worker as they were sent, update after update.

What is real: the engine, gloo, the store; ranks are threads.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from verl.checkpoint_engine.base import CheckpointEngineRegistry

from verl_ext.cpu import checkpoint_engine
from verl_ext.cpu.checkpoint_engine import GlooCheckpointEngine

WEIGHTS = {
    "float": torch.randn(3, 5),
    "half": torch.randn(7).bfloat16(),
    "turned": torch.randn(4, 2).t(),
    "number": torch.tensor(2.5),
    "whole": torch.arange(6),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr(checkpoint_engine.ray.util, "get_node_ip_address", lambda: "127.0.0.1")


async def received(engine: GlooCheckpointEngine) -> dict[str, torch.Tensor]:
    return {name: weight async for name, weight in engine.receive_weights(7)}


def update(
    engines: list[GlooCheckpointEngine], actors: int, weights: dict[str, torch.Tensor]
) -> list[Any]:
    """What verl's ``CheckpointEngineManager.update_weights`` has the workers do."""
    metadata = [engine.prepare() for engine in engines]
    topology = GlooCheckpointEngine.build_topology(actors, len(engines) - actors, metadata)
    assert [len(given["rank"]) for given in topology] == [actors, len(engines) - actors]
    given = [
        {name: values[row] for name, values in part.items()}
        for part in topology
        for row in range(len(part["rank"]))
    ]

    def work(row: int) -> Any:
        engine = engines[row]
        engine.init_process_group(**given[row])
        told = engine.send_weights(iter(weights.items()), 7) if row < actors else received(engine)
        found = asyncio.run(told)
        engine.finalize()
        return found

    with ThreadPoolExecutor(len(engines)) as pool:
        return list(pool.map(work, range(len(engines))))


def test_verl_finds_it_by_its_name():
    assert CheckpointEngineRegistry.get("gloo") is GlooCheckpointEngine


@pytest.mark.parametrize(("actors", "rollouts"), [(1, 1), (2, 2)])
def test_every_rollout_worker_gets_the_weights(actors, rollouts):
    engines = [
        CheckpointEngineRegistry.new("gloo", is_master=row == 0, bucket_size=8)
        for row in range(actors + rollouts)
    ]
    for factor in (1, 2):  # groups are built anew for each update
        sent = {name: weight * factor for name, weight in WEIGHTS.items()}
        found = update(engines, actors, sent)
        assert found[:actors] == [None] * actors
        for got in found[actors:]:
            assert list(got) == list(sent)
            for name, weight in sent.items():
                assert got[name].dtype == weight.dtype
                assert torch.equal(got[name], weight)
