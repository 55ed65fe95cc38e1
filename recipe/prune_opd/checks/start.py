"""What ends the driver with one sentence before Ray starts or a model is loaded.

The trainer runs the same checks in its own process, so a configuration that reaches verl by another
way, or a cluster whose files and packages the driver does not have, is checked as well.
"""

import os
import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.attention import check_attention
from recipe.prune_opd.checks.inputs import check_inputs
from recipe.prune_opd.checks.settings import check_settings


class StartCheck(Callback):
    """Hydra callback of the recipe: ends the driver with one sentence instead of a traceback."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See ``hydra.experimental.callback.Callback``."""
        try:
            typed = check_settings(config)
            if not _remote_cluster(config):
                check_attention(config, typed)
                check_inputs(config)
        except Exception as error:
            # Not foreseen, from a model's own code, say: as fatal. OmegaConf's messages have
            # several lines.
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            # Hydra turns exceptions of callbacks into warnings and goes on; SystemExit is none.
            sys.exit(f"prune_opd cannot start: {name}{' '.join(str(error).split())}")


def _remote_cluster(config: DictConfig) -> bool:
    """Whether the trainer may run on another machine, whose files and packages this one need not
    have."""
    return bool(
        os.environ.get("RAY_ADDRESS") or OmegaConf.select(config, "ray_kwargs.ray_init.address")
    )
