"""Rollout servers that can be followed by token, and teachers that score a growing sequence."""

from threading import Lock
from typing import Any

from verl.workers.rollout import replica

ENGINES = ("vllm", "sglang")
"""Engines, by verl's names, whose servers can be followed and asked."""

_LOADING = Lock()


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
    # It prepares a process without a GPU for the import, by a variable of the environment that it
    # takes away again: not while another thread, which starts the teacher's servers, does the same.
    with _LOADING:
        replica._load_sglang()
    from verl_ext.rollout.sglang_server import TopKSGLangReplica

    return TopKSGLangReplica
