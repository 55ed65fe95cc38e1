"""Attention of student and teacher: it can be imported here, and goes with sequence parallelism."""

import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from recipe.prune_opd.checks.code import import_libraries
from recipe.prune_opd.checks.engines import FSDP, MEGATRON, engine_of
from recipe.prune_opd.config import TeacherConfig, shown

logger = logging.getLogger(__name__)

VERLS = "flash_attention_2"
"""Attention that verl takes where none is named."""
FLASH = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
"""Module from which transformers imports ``flash_attn_varlen_func``, by attention."""
INSTALL = "pip install flash-attn==2.8.3 --no-build-isolation"
BLIND = ("sdpa", "eager", "flex_attention")
"""Attentions that see no further than their own rank."""


@dataclass(frozen=True)
class Attention:
    """Attention of one model.

    Args:
        key: where it is set.
        name: of the implementation; None is transformers' choice, sdpa.
        ranks: that share a sequence.
        ranks_key: where their number is set.
    """

    key: str
    name: str | None
    ranks: int
    ranks_key: str

    @property
    def base(self) -> str:
        """Name without transformers' prefix ``paged|``."""
        return (self.name or "sdpa").rpartition("|")[2]

    @property
    def found(self) -> str:
        """Name for a message."""
        return f"{self.name!r}, verl's default," if self.name == VERLS else f"{self.name!r},"


def attentions(config: DictConfig, teacher: TeacherConfig | None) -> Iterator[Attention]:
    """Attention in force for each model that a worker holds; none with other engines than FSDP,
    which have their own.

    verl passes on ``override_config.attn_implementation``, one name or one for each part of a
    model.

    Args:
        config: verl's composed configuration.
        teacher: None where no worker holds it.

    Raises:
        ValueError: a name is none.
    """
    node = config.actor_rollout_ref
    if engine_of(config) is not FSDP:
        return
    models: list[tuple[str, str, Any]] = [
        ("actor_rollout_ref.model", "actor", node.model.override_config)
    ]
    if teacher is not None:
        models.append(("prune_opd.teacher", "ref", teacher.override_config))
    for key, part, override in models:
        node_key = f"{key}.override_config.attn_implementation"
        given = (override or {}).get("attn_implementation", VERLS)
        names = given.values() if isinstance(given, Mapping) else [given]
        for name in names:
            if not (name is None or isinstance(name, str)):
                raise ValueError(
                    f"{node_key}: got {shown(name)}, allowed: a text, a group of texts, or null"
                )
            yield Attention(
                node_key,
                name,
                FSDP.sequence_parallel_size(node[part]),
                f"actor_rollout_ref.{part}.ulysses_sequence_parallel_size",
            )


def check_sequence_parallelism(config: DictConfig, teacher: TeacherConfig | None) -> None:
    """Check that ranks which share a sequence see all of it, as verl teaches flash attention only.

    Raises:
        ValueError: an attention, or padded batches, with more than one rank to a sequence.
    """
    for one in attentions(config, teacher):
        if one.ranks > 1 and one.base in BLIND:
            raise ValueError(
                f"{one.key}: got {one.name!r}, allowed with {one.ranks_key}={one.ranks}: a flash"
                " attention, or one of your own that gathers the sequence, because each rank would"
                " attend to its own part alone"
            )
    engine = engine_of(config)
    for part in ("actor",) if teacher is None else ("actor", "ref"):
        ranks = engine.sequence_parallel_size(config.actor_rollout_ref[part])
        if ranks > 1 and not config.actor_rollout_ref.model.use_remove_padding:
            raise ValueError(
                "actor_rollout_ref.model.use_remove_padding: got False, allowed with"
                f" actor_rollout_ref.{part}.{engine.sequence[0]}={ranks}: True"
            )


def check_attention(config: DictConfig, teacher: TeacherConfig | None) -> None:
    """Check that the attention can be imported in this process, so ask where the trainer runs.

    Whether there is a GPU is not asked: Ray hides them from the trainer's own process.

    Raises:
        ValueError: it cannot be imported, or is unknown to transformers; says how to install it.
    """
    import_libraries(config)  # where users register their own
    for one in attentions(config, teacher):
        if one.base in FLASH:
            _check_flash(one, config.trainer.device)
        elif "/" in one.base:
            _check_kernel(one)
        else:
            _check_known(one)


def _check_flash(one: Attention, device: str) -> None:
    from transformers.utils import is_kernels_available, is_torch_npu_available

    if device == "cpu":
        raise ValueError(
            f"{one.key}: got {one.found} which needs a GPU, allowed with trainer.device=cpu: sdpa"
            " or eager; +platform=cpu sets sdpa"
        )
    if is_torch_npu_available() or is_kernels_available():
        return  # Ascend has its own, and the hub's kernels stand in for a missing package
    if reason := _why_not(FLASH[one.base]):
        plus = "+" if one.key.startswith("actor_rollout_ref.") else ""  # verl's node is empty
        other = (
            f"; or choose {plus}{one.key}=sdpa, which is slower and goes without sequence"
            " parallelism"
        )
        raise ValueError(
            f"{one.key}: got {one.found} which cannot be imported ({reason}): install it on every"
            f" node, {INSTALL if one.base == VERLS else f'the package of {FLASH[one.base]}'}{other}"
        )


def _why_not(module: str) -> str:
    """Reason why ``flash_attn_varlen_func`` cannot be imported from a module, or nothing."""
    try:
        importlib.import_module(module).flash_attn_varlen_func  # noqa: B018
    except Exception as error:  # built for another PyTorch, say: OSError, RuntimeError
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _check_kernel(one: Attention) -> None:
    from transformers.utils import is_kernels_available

    if not is_kernels_available():
        raise ValueError(
            f"{one.key}: got {one.name!r}, a kernel of the hub, which needs the package kernels:"
            " pip install kernels, on every node"
        )


def _check_known(one: Attention) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name)]
    if one.base not in known:
        raise ValueError(
            f"{one.key}: got {one.name!r}, allowed: {', '.join(sorted(known))}, a kernel of the"
            " hub, or one that actor_rollout_ref.model.external_lib registers with"
            " transformers.AttentionInterface"
        )


def warn_of_slow_log_probs(config: DictConfig) -> None:
    """Warn that without flash-attn verl's log-probs are slow, and not only its attention."""
    from verl.utils import torch_functional

    kernel = (
        torch_functional.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE
        or torch_functional.NPU_CROSS_ENTROPY_LOSS_AVAILABLE
    )
    if config.trainer.device == "cuda" and engine_of(config) is not MEGATRON and not kernel:
        logger.warning(
            "flash_attn cannot be imported: verl takes the log-probs of sampled tokens in a Python"
            " loop over tokens (logprobs_from_logits_v2) instead of one Triton kernel, so the"
            " scoring passes are slower; %s",
            INSTALL,
        )
