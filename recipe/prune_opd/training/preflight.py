"""All that is asked before a run, of values first and then of files.

The driver asks, before Ray starts, and the trainer asks again in its own process: a configuration
may reach verl by another way, and a cluster have files and packages that the driver has not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recipe.prune_opd.checks.agent_loops import check_agent_loop
from recipe.prune_opd.checks.attention import check_attention, check_sequence_parallelism
from recipe.prune_opd.checks.batches import check_batches
from recipe.prune_opd.checks.engines import check_engine, check_package
from recipe.prune_opd.checks.folders import check_folders
from recipe.prune_opd.checks.inputs import Inputs, check_inputs
from recipe.prune_opd.checks.kinds import unresolved
from recipe.prune_opd.checks.rollouts import check_rollouts, made_by
from recipe.prune_opd.checks.settings import check_settings
from recipe.prune_opd.checks.task_reward import check_task_reward
from recipe.prune_opd.checks.trainer_modes import check_mode
from recipe.prune_opd.config import MODES, PruneOPDConfig
from recipe.prune_opd.teacher.home import Home, build_home
from recipe.prune_opd.training.checkpoint import check_checkpoint
from recipe.prune_opd.training.names import NAME, PruningTrainer


def check_values(config: DictConfig) -> tuple[PruneOPDConfig, Home]:
    """Check values alone: ``prune_opd.*`` and the verl keys it depends on.

    Args:
        config: verl's composed configuration.

    Returns:
        The typed configuration, its lengths resolved, and the teacher's home.

    Raises:
        ValueError: the first key that is not allowed, what it holds, what is allowed and why.
    """
    with _sentences():
        prune_opd = check_settings(config)
        check_engine(config)
        check_mode(config, prune_opd, verl_mode(config.trainer.v1.trainer_mode, prune_opd))
        check_task_reward(config, prune_opd)
        check_agent_loop(config, prune_opd)
        home = build_home(prune_opd)
        home.check(config)
        longest = config.data.max_prompt_length + prune_opd.budget.longest
        check_batches(config, longest, teacher_passes=home.held is not None)
        check_sequence_parallelism(config, home.held)
        return prune_opd, home


@contextmanager
def _sentences() -> Iterator[None]:
    """Say OmegaConf's errors, of a key that no check has looked up before, as ours are said."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise unresolved(error) from error


def check_files(config: DictConfig, prune_opd: PruneOPDConfig, home: Home) -> Inputs:
    """Check what lies outside of the configuration: packages, folders, data, models, URLs.

    Args:
        config: verl's composed configuration.
        prune_opd: of ``check_values``.
        home: of ``check_values``.

    Raises:
        ValueError: names the key and the file, what was found and what is needed.
    """
    with _sentences():
        check_checkpoint(config, prune_opd)
        check_folders(config, prune_opd)
        check_package(config)
        check_attention(config, home.held)
        inputs = check_inputs(config, prune_opd, weights=home.has_files, text_only=home.is_asked)
        for teacher in inputs.teachers:
            home.check_models(config, inputs.student, teacher)
        if prune_opd.semi.enable:
            cached = inputs.teachers[0] if home.cacheable else None  # there is but one
            making = made_by(config, prune_opd, inputs.student, cached)
            check_rollouts(Path(str(prune_opd.semi.dir)), *making)
        return inputs


def verl_mode(given: str, prune_opd: PruneOPDConfig) -> str:
    """verl's mode of a run, by the names of its trainer.

    Args:
        given: ``trainer.v1.trainer_mode``.
        prune_opd: the configuration.

    Raises:
        ValueError: verl would start another trainer than one with Prune-OPD, or there is none of
            the name.
    """
    if given == NAME and prune_opd.trainer_mode in MODES:  # importing verl's trainers takes seconds
        return prune_opd.trainer_mode
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    from recipe.prune_opd.training.modes import find_trainer, mode_of, stands_on

    found: Any = TRAINER_REGISTRY.get(given, object)
    if not issubclass(found, PruningTrainer):
        raise ValueError(
            f"trainer.v1.trainer_mode: got {given!r}, allowed with prune_opd: {NAME}, or a subclass"
            " of recipe.prune_opd.training.trainer.PruneOPD that is registered with verl, because"
            " another trainer would train on task rewards; in a sweep, give verl's mode as"
            " prune_opd.trainer_mode"
        )
    return mode_of(found if stands_on(found) else find_trainer(prune_opd.trainer_mode))
