"""Configuration of the run that is estimated, composed as verl does it, and its numbers checked."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

RECIPE = "+recipe=prune_opd"
COUNTS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.response_length",
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
)
"""Keys that are reckoned with, whole numbers; verl checks some of them, and only when it starts."""
OPTIONAL_COUNTS = (
    "trainer.total_training_steps",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
)
"""Keys of whole numbers that may be null."""
DTYPES = (
    "actor_rollout_ref.actor.fsdp_config.model_dtype",
    "actor_rollout_ref.ref.fsdp_config.model_dtype",
)
STRATEGY = "actor_rollout_ref.actor.strategy"
MOST_RESPONSES = 1_000_000
"""Responses of a step that are reckoned with, one by one."""
SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization"


def compose(overrides: list[str]) -> "DictConfig":
    """Compose verl's configuration under overrides, as its trainer would see it.

    Args:
        overrides: as typed; the recipe may be left out.

    Raises:
        ValueError: Hydra refuses one of them.
    """
    import hydra
    from hydra.errors import HydraException

    verl = find_spec("verl")
    assert verl is not None
    assert verl.submodule_search_locations
    folder = Path(verl.submodule_search_locations[0]) / "trainer" / "config"
    if not any(override.startswith("+recipe=") for override in overrides):
        overrides = [RECIPE, *overrides]
    try:
        with hydra.initialize_config_dir(str(folder), version_base=None):
            return hydra.compose("ppo_trainer", overrides)
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the overrides do not compose ({reason})") from error


def check_numbers(config: "DictConfig") -> None:
    """Refuse numbers that cannot be reckoned with.

    Raises:
        ValueError: names the key.
    """
    from omegaconf import OmegaConf

    from recipe.prune_opd.commands.estimate.costs import BYTES

    if (strategy := OmegaConf.select(config, STRATEGY)) not in ("fsdp", "fsdp2"):
        raise ValueError(
            f"{STRATEGY}: got {strategy!r}, allowed: fsdp, fsdp2, the engines whose memory and time"
            " estimate knows"
        )
    for key in (*COUNTS, *OPTIONAL_COUNTS):
        value = OmegaConf.select(config, key)
        if (type(value) is not int or value < 1) and (value is not None or key in COUNTS):
            raise ValueError(f"{key}: got {value!r}, allowed: a whole number >= 1")
    for key in DTYPES:
        value = OmegaConf.select(config, key)
        if value not in BYTES:
            raise ValueError(f"{key}: got {value!r}, allowed: {', '.join(BYTES)}")
    responses = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    if responses > MOST_RESPONSES:
        raise ValueError(
            f"data.train_batch_size x actor_rollout_ref.rollout.n: got {responses:,}, allowed: at"
            f" most {MOST_RESPONSES:,}"
        )
    value = OmegaConf.select(config, SHARE)
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{SHARE}: got {value!r}, allowed: a number in (0, 1]")
