"""Checkpoint engine over gloo: a trainer's weights to rollout servers of its own, without a GPU.

verl imports it by ``rollout.checkpoint_engine.custom_backend_module``, its name is ``gloo``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import ray
import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

TIMEOUT = timedelta(minutes=10)


@CheckpointEngineRegistry.register("gloo")
class GlooCheckpointEngine(CheckpointEngine):
    """Broadcast of one tensor after the other from the trainer's first rank to all rollout workers.

    Args:
        bucket_size: verl's, not used: no tensor is kept longer than it takes to send it.
        is_master: this is the rank that sends.
    """

    def __init__(self, bucket_size: int, is_master: bool = False):
        self.is_master = is_master
        self.rank = -1

    def prepare(self) -> dict[str, Any]:
        """Open the store where the group meets; its address on the rank that sends."""
        if not self.is_master:
            return {}
        self.store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        return {"host": ray.util.get_node_ip_address().strip("[]"), "port": self.store.port}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """See ``CheckpointEngine``: the trainer's other ranks, -1, stay outside of the group."""
        ranks = [0, *[-1] * (actor_wg_world_size - 1), *range(1, 1 + rollout_world_size)]
        size = 1 + rollout_world_size
        rows = [{"rank": rank, "world_size": size, "address": metadata[0]} for rank in ranks]
        both = rows[:actor_wg_world_size], rows[actor_wg_world_size:]
        actor, rollout = ({name: [row[name] for row in part] for name in rows[0]} for part in both)
        return actor, rollout

    def init_process_group(self, rank: int, world_size: int, address: dict[str, Any]) -> None:
        """Meet the others.

        Args:
            rank: in the group, -1 outside of it.
            world_size: of the group.
            address: of the store, from ``prepare``.
        """
        self.rank = rank
        if rank < 0:
            return
        if not self.is_master:
            self.store = TCPStore(address["host"], address["port"], timeout=TIMEOUT)
        self.group = ProcessGroupGloo(PrefixStore("weights", self.store), rank, world_size, TIMEOUT)

    def finalize(self) -> None:
        """Leave the group."""
        if self.rank >= 0:
            del self.group, self.store
        self.rank = -1

    async def send_weights(
        self, weights: Iterator[tuple[str, Tensor]], global_steps: int | None = None
    ) -> None:
        """See ``CheckpointEngine``. Ranks outside of the group only help to gather the weights."""
        async for name, weight in ensure_async_iterator(weights):
            if self.rank == 0:
                kind = str(weight.dtype).removeprefix("torch.")
                await self._send([name, list(weight.shape), kind])
                await self._broadcast(_bytes(weight.detach().cpu().contiguous()))
        if self.rank == 0:
            await self._send(None)

    async def receive_weights(
        self, global_steps: int | None = None
    ) -> AsyncIterator[tuple[str, Tensor]]:
        """See ``CheckpointEngine``."""
        while (header := await self._receive()) is not None:
            name, shape, kind = header
            weight = torch.empty(shape, dtype=getattr(torch, kind))
            await self._broadcast(_bytes(weight))
            yield name, weight

    async def _send(self, header: Any) -> None:
        data = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
        await self._broadcast(torch.tensor([len(data)]))
        await self._broadcast(data)

    async def _receive(self) -> Any:
        size = torch.zeros(1, dtype=torch.long)
        await self._broadcast(size)
        data = torch.empty(int(size), dtype=torch.uint8)
        await self._broadcast(data)
        return json.loads(data.numpy().tobytes())

    async def _broadcast(self, tensor: Tensor) -> None:
        if tensor.numel():
            work = self.group.broadcast(tensor, 0)  # type: ignore[attr-defined]
            await asyncio.to_thread(work.wait)


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory, (bytes,) uint8: gloo knows few dtypes."""
    return tensor.view(-1).view(torch.uint8)
