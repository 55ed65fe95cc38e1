"""Start check: ends the driver with one sentence, before Ray starts or a model is loaded."""

import os
import sys
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.drift_weights import check_drift_weights
from recipe.prune_opd.training.preflight import check_files, check_values
from verl_ext.texts import visible


class StartCheck(Callback):
    """Hydra callback of the recipe: ends the driver with one sentence instead of a traceback."""

    recipe: ClassVar[str] = "prune_opd"

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


def _remote_cluster(config: DictConfig) -> bool:
    """Tell whether the trainer may run on another machine, whose files and packages this one need
    not have."""
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    return bool(os.environ.get("RAY_ADDRESS") or address)
