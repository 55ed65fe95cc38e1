"""Rollout servers that can be followed by token, and teachers that score a growing sequence."""

from typing import Any

from verl.workers.rollout import replica

ENGINES = ("vllm", "sglang")
"""Engines, by verl's names, whose servers can be followed and asked."""


def register(engine: str) -> None:
    """Have verl start our servers of an engine under its own name, which it compares literally.

    To be called in the process that starts the servers.
    """
    replica.RolloutReplicaRegistry.register(
        engine, {"vllm": _load_vllm, "sglang": _load_sglang}[engine]
    )


def _load_vllm() -> Any:
    from verl_ext.rollout.vllm_server import TopKReplica

    return TopKReplica


def _load_sglang() -> Any:
    replica._load_sglang()  # prepares a process without a GPU for the import
    from verl_ext.rollout.sglang_server import TopKSGLangReplica

    return TopKSGLangReplica
