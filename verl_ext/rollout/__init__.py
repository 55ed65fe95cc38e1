"""Rollout servers that can be followed token by token, and teachers that score a sequence while it grows."""

from typing import Any

from verl.workers.rollout.replica import RolloutReplicaRegistry


def register_vllm() -> None:
    """Have verl start our vLLM servers under its own name "vllm", which it compares literally.

    To be called in the process that starts the servers.
    """
    RolloutReplicaRegistry.register("vllm", _load_vllm)


def _load_vllm() -> Any:
    from verl_ext.rollout.vllm_server import TopKReplica

    return TopKReplica
