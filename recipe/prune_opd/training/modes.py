"""Trainer modes: which of verl's trainers, or which of the user's own, the method is put over."""

from typing import Any

import ray
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer

from recipe.prune_opd.config import MODES
from recipe.prune_opd.method.registry import Registry
from recipe.prune_opd.training.names import PruningTrainer
from recipe.prune_opd.training.worker import PruneOPDWorker

KEY = "prune_opd.trainer_mode"


def find_trainer(name: str) -> type[PPOTrainer]:
    """Find the trainer without the method that a name stands for.

    Args:
        name: one of verl's ``register_trainer``, or ``package.module:Name``.

    Raises:
        ValueError: there is none, it has the method already, or its mode cannot be told.
    """
    names = {given: one for one, given in _without_method().items()}
    found: type[PPOTrainer] = Registry(KEY, PPOTrainer, **names).find(name)
    if issubclass(found, PruningTrainer):
        raise ValueError(
            f"{KEY}: got {name!r}, which has the method already, allowed: a trainer without it; or"
            f" register yours with verl and give its name as trainer.v1.trainer_mode"
        )
    mode_of(found)
    return found


def _without_method() -> dict[type[PPOTrainer], str]:
    """Trainers that verl knows, but for those with the method, and their names."""
    known = TRAINER_REGISTRY.items()
    return {one: name for name, one in known if not issubclass(one, PruningTrainer)}


def stands_on(trainer: type[PPOTrainer]) -> list[str]:
    """Names of the trainers without the method that a trainer inherits from or is, the nearest
    first."""
    names = _without_method()
    return [names[one] for one in trainer.__mro__ if one in names]


def mode_of(trainer: type[PPOTrainer]) -> str:
    """Name that verl's base class is to see, which compares it literally: that of the nearest of
    verl's own trainers, else that under which the trainer is registered.

    Args:
        trainer: with the method or without.

    Raises:
        ValueError: it stands on none that verl knows.
    """
    found = stands_on(trainer)
    if not found:
        raise ValueError(
            f"{KEY}: got {trainer.__module__}:{trainer.__qualname__}, allowed: a subclass of one of"
            f" verl's trainers ({', '.join(MODES)}), or one that is registered with verl"
        )
    return next((name for name in found if name in MODES), found[0])


def with_method(worker: Any) -> Any:
    """The Ray actor class that takes a worker's place: the same with teacher and pruning.

    Args:
        worker: the actor class that a trainer gives the student's role.
    """
    base = worker.__ray_actor_class__
    if issubclass(PruneOPDWorker, base):
        return ray.remote(PruneOPDWorker)
    return ray.remote(type(f"PruneOPD{base.__name__}", (PruneOPDWorker, base), {}))
