"""Start check: ends the driver with one sentence, before Ray starts or a model is loaded."""

import os
import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.training.preflight import NAME, check_files, check_values


class StartCheck(Callback):
    """Hydra callback of the recipe: ends the driver with one sentence instead of a traceback."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See ``hydra.experimental.callback.Callback``."""
        try:
            check_trainer(config.trainer.v1.trainer_mode)
            prune_opd, home = check_values(config)
            if not _remote_cluster(config):
                check_files(config, prune_opd, home)
        except Exception as error:
            # Not foreseen, from a model's own code, say: as fatal. OmegaConf's messages have
            # several lines.
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            # Hydra turns exceptions of callbacks into warnings and goes on; SystemExit is none.
            sys.exit(f"prune_opd cannot start: {name}{' '.join(str(error).split())}")


def check_trainer(mode: str) -> None:
    """Check that verl's name of a trainer stands for one with Prune-OPD.

    Raises:
        ValueError: it stands for another one, or for none.
    """
    if mode == NAME:  # importing verl's trainers takes seconds
        return
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    from recipe.prune_opd.training.trainer import PruneOPD

    if not issubclass(TRAINER_REGISTRY.get(mode, object), PruneOPD):
        raise ValueError(
            f"trainer.v1.trainer_mode: got {mode!r}, allowed with prune_opd: {NAME}, or a subclass"
            f" of {PruneOPD.__module__}.{PruneOPD.__name__} that a module of"
            " VERL_USE_EXTERNAL_MODULES registers, because another trainer would train on task"
            " rewards"
        )


def _remote_cluster(config: DictConfig) -> bool:
    """Tell whether the trainer may run on another machine, whose files and packages this one need
    not have."""
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    return bool(os.environ.get("RAY_ADDRESS") or address)
