"""The worker's part in Semi-OPD: it writes the responses it holds into the cache."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.utils import tensordict_utils as tu

from recipe.prune_opd.teacher.answers import is_missing
from recipe.prune_opd.training.fields import (
    ROLLOUT_LOG_PROBS,
    SESSION,
    SHARD,
    STORED,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    TEACHER_SAMPLED,
    UID,
)
from verl_ext.rollout.cache import CachedResponse, read_manifest, write_shard
from verl_ext.rollout.rows import TopKRows

_on_actor = make_nd_compute_dataproto_dispatch_fn(mesh_name="actor")


class RolloutWriter:
    """Mixin of a worker: its share of a batch is a shard, so nothing of it passes the driver."""

    actor: Any
    rank: int

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def read_rollouts_id(self, folder: str) -> tuple[str, str | None]:
        """Name of this node, and the id of the cache that it sees in ``folder``."""
        manifest = read_manifest(Path(folder))
        return socket.gethostname(), manifest["id"] if manifest else None

    @register(dispatch_mode=_on_actor)
    def store_rollouts(self, data: TensorDict) -> TensorDict | None:
        """Write the responses of this rank, but for padding and for those that the teacher did not
        score whole.

        One rank of a sequence-parallel group writes for all.
        """
        if not self.actor.engine.is_mp_src_rank_with_outputs():
            return None
        found = responses_of(data)
        kept = [one for one in found if one is not None]
        if kept:
            write_shard(Path(f"{data[SHARD]}-rank{self.rank}.safetensors"), kept)
        stored = torch.tensor([one is not None for one in found])
        return TensorDict({STORED: stored}, batch_size=len(data))


def responses_of(data: TensorDict) -> list[CachedResponse | None]:
    """The responses of a batch as they are cached; None for padding, and where a token lacks the
    teacher's score.

    Args:
        data: the fields of ``stored_fields``, jagged (B, tokens) and (B, R, K).
    """
    keys, samples = tu.get(data, UID), tu.get(data, SESSION)
    names = ("prompts", "responses", "response_mask", ROLLOUT_LOG_PROBS)
    teacher = (TEACHER_IDS, TEACHER_LOG_PROBS, TEACHER_SAMPLED)
    columns = {name: data[name].unbind() for name in (*names, *teacher) if name in data}
    found: list[CachedResponse | None] = []
    for row, (key, sample) in enumerate(zip(keys, samples, strict=True)):
        parts = {name: column[row] for name, column in columns.items()}
        found.append(_response(str(key), int(sample), parts))
    return found


def _response(key: str, sample: int, parts: Mapping[str, Tensor]) -> CachedResponse | None:
    padding = not parts["response_mask"].any()
    if padding or (TEACHER_IDS in parts and is_missing(parts[TEACHER_LOG_PROBS]).any()):
        return None
    rows = None
    if TEACHER_IDS in parts:
        rows = TopKRows(_ids(parts[TEACHER_IDS]), _floats(parts[TEACHER_LOG_PROBS]))
    sampled, log_probs = parts.get(TEACHER_SAMPLED), parts.get(ROLLOUT_LOG_PROBS)
    return CachedResponse(
        key,
        sample,
        _ids(parts["prompts"]),
        _ids(parts["responses"]),
        None if log_probs is None else _floats(log_probs),
        rows,
        None if sampled is None else _floats(sampled),
    )


def _ids(values: Tensor) -> NDArray[np.int32]:
    return values.cpu().numpy().astype(np.int32)


def _floats(values: Tensor) -> NDArray[np.float32]:
    return values.cpu().float().numpy()
