"""Entry point of ``verl.plugins``: registers our parts when verl's own module is imported, and not before.

Importing the trainer costs seconds, and this runs in every process that imports verl.
"""

import importlib

from wrapt import when_imported

_REGISTER_AFTER = {
    "verl.trainer.ppo.core_algos": "recipe.prune_opd.advantage",
    "verl.trainer.ppo.v1": "recipe.prune_opd.trainer",
    "verl.experimental.agent_loop": "recipe.prune_opd.agent_loop",
}

for _theirs, _ours in _REGISTER_AFTER.items():
    when_imported(_theirs)(lambda _, ours=_ours: importlib.import_module(ours))
