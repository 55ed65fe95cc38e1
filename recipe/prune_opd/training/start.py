"""All that is asked before a run: what ends the driver with one sentence before Ray starts.

The trainer asks the same in its own process, so a configuration that reaches verl by another way,
or a cluster whose files and packages the driver does not have, is checked as well.
"""

import os
import sys
from typing import Any

from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.attention import check_attention, check_sequence_parallelism
from recipe.prune_opd.checks.batches import check_batches
from recipe.prune_opd.checks.inputs import Inputs, check_inputs
from recipe.prune_opd.checks.settings import check_settings
from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.teacher.home import Home, build_home

NAME = "prune_opd"
"""Of our trainer and our agent loop in verl's registries."""


class StartCheck(Callback):
    """Hydra callback of the recipe: ends the driver with one sentence instead of a traceback."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See ``hydra.experimental.callback.Callback``."""
        try:
            prune_opd, home = check_values(config)
            if not _remote_cluster(config):
                check_files(config, prune_opd, home)
        except Exception as error:
            # Not foreseen, from a model's own code, say: as fatal. OmegaConf's messages have
            # several lines.
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            # Hydra turns exceptions of callbacks into warnings and goes on; SystemExit is none.
            sys.exit(f"prune_opd cannot start: {name}{' '.join(str(error).split())}")


def check_values(config: DictConfig) -> tuple[PruneOPDConfig, Home]:
    """Check values alone: ``prune_opd.*`` and the verl keys it depends on.

    Args:
        config: verl's composed configuration.

    Returns:
        The typed configuration, its lengths resolved, and the teacher's home.

    Raises:
        ValueError: the first key that is not allowed, what it holds, what is allowed and why.
    """
    prune_opd = check_settings(config)
    check_trainer(config.trainer.v1.trainer_mode)
    check_agent_loop(config.actor_rollout_ref.rollout.agent)
    home = build_home(prune_opd)
    home.check(config)
    longest = config.data.max_prompt_length + prune_opd.budget.longest
    check_batches(config, longest, teacher_passes=home.reference_model)
    check_sequence_parallelism(config, home.held)
    return prune_opd, home


def check_files(config: DictConfig, prune_opd: PruneOPDConfig, home: Home) -> Inputs:
    """Check what lies outside of the configuration: packages, data, models, a teacher's URLs.

    Args:
        config: verl's composed configuration.
        prune_opd: of ``check_values``.
        home: of ``check_values``.

    Raises:
        ValueError: names the key and the file, what was found and what is needed.
    """
    check_attention(config, home.held)
    inputs = check_inputs(config, prune_opd, weights=home.has_files)
    home.check_models(config, inputs.student, inputs.teacher)
    return inputs


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


def check_agent_loop(agent: DictConfig) -> None:
    """Check that the agent loop of a run keeps to the response limit.

    Args:
        agent: verl's node ``actor_rollout_ref.rollout.agent``.

    Raises:
        ValueError: it does not, or there is none of this name.
    """
    name = agent.default_agent_loop
    if name == NAME:
        return
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.utils.import_utils import resolve_config_path

    from recipe.prune_opd.training.agent_loop import LimitedAgentLoop

    known = dict(_agent_loop_registry)
    if agent.agent_loop_config_path:
        loops: Any = OmegaConf.load(resolve_config_path(agent.agent_loop_config_path))
        known |= {loop.name: loop for loop in loops}
    found = get_class(known[name]["_target_"]) if name in known else object
    if not issubclass(found, LimitedAgentLoop):
        base = f"{LimitedAgentLoop.__module__}.{LimitedAgentLoop.__name__}"
        raise ValueError(
            f"actor_rollout_ref.rollout.agent.default_agent_loop: got {name!r}, allowed with"
            f" prune_opd: {NAME}, or a subclass of {base}, because another agent loop would not see"
            " the limit"
        )


def _remote_cluster(config: DictConfig) -> bool:
    """Whether the trainer may run on another machine, whose files and packages this one need not
    have."""
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    return bool(os.environ.get("RAY_ADDRESS") or address)
