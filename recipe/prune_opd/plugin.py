"""Entry point of ``verl.plugins``: registers our parts when verl's own module is imported, and not
before.

Importing the trainer costs seconds, and this runs in every process that imports verl.
"""

import importlib
from functools import partial
from types import ModuleType

from wrapt import when_imported

from verl_ext.logs import isolate

isolate("recipe.prune_opd")

_REGISTER_AFTER = {
    "verl.trainer.ppo.core_algos": "recipe.prune_opd.training.advantage",
    "verl.trainer.ppo.v1": "recipe.prune_opd.training.trainer",
    "verl.experimental.agent_loop": "recipe.prune_opd.training.agent_loop",
}


def _register(ours: str, theirs: ModuleType) -> None:
    importlib.import_module(ours)


for _theirs, _ours in _REGISTER_AFTER.items():
    when_imported(_theirs)(partial(_register, _ours))
