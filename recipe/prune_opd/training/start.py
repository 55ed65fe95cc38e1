"""Start of the driver: a command of verl's becomes one of this recipe, and what cannot work ends in
one sentence, before Ray starts or a model is loaded."""

import os
import sys
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.drift_weights import check_drift_weights
from recipe.prune_opd.config import MODES
from recipe.prune_opd.training.names import NAME, PruningTrainer
from recipe.prune_opd.training.preflight import check_files, check_values
from verl_ext.texts import visible


class StartCheck(Callback):
    """Hydra callback of the recipe: ends the driver with one sentence instead of a traceback."""

    recipe: ClassVar[str] = "prune_opd"

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take a trainer that the command names for the one the method is put over, so that a
        command of verl's needs no other change than the recipe.

        Hydra copies the configuration for the job after this, and calls it in no sweep, where
        ``on_job_start`` refuses such a name.
        """
        mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
        if not isinstance(OmegaConf.select(config, "prune_opd"), DictConfig) or _prunes(mode):
            return
        given = OmegaConf.select(config, "prune_opd.trainer_mode")
        if given not in ("sync", mode):
            sys.exit(
                f"prune_opd cannot start: trainer.v1.trainer_mode: got {mode!r} beside"
                f" prune_opd.trainer_mode={given}, allowed: one of the two"
            )
        config.prune_opd.trainer_mode = mode
        config.trainer.v1.trainer_mode = NAME

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See ``hydra.experimental.callback.Callback``."""
        try:
            self.check(config)
        except Exception as error:
            # Not foreseen, from a model's own code, say: as fatal. OmegaConf's messages have
            # several lines.
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            # Hydra turns exceptions of callbacks into warnings and goes on; SystemExit is none.
            said = f"{self.recipe} cannot start: {name}{' '.join(str(error).split())}"
            sys.exit(visible(said))

    def check(self, config: DictConfig) -> None:
        """Check the configuration, and files unless the trainer may run on another machine.

        Raises:
            ValueError: the first thing that is not allowed.
        """
        prune_opd, home = check_values(config)
        if not _remote_cluster(config):
            check_files(config, prune_opd, home)


class DriftWeightsCheck(StartCheck):
    """Hydra callback of ``+recipe=drift_weights``."""

    recipe = "drift_weights"

    def check(self, config: DictConfig) -> None:
        """See ``check_drift_weights``."""
        check_drift_weights(config)


def _prunes(mode: Any) -> bool:
    """Tell whether verl's name of a trainer stands for one with Prune-OPD."""
    if mode == NAME or mode in MODES:  # importing verl's trainers takes seconds
        return bool(mode == NAME)
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    return issubclass(TRAINER_REGISTRY.get(mode, object), PruningTrainer)


def _remote_cluster(config: DictConfig) -> bool:
    """Tell whether the trainer may run on another machine, whose files and packages this one need
    not have."""
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    return bool(os.environ.get("RAY_ADDRESS") or address)
