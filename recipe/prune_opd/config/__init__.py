"""Keys of ``prune_opd.*``: typed, documented under each field, defaults are the paper's.

The one place for a key: the yaml that Hydra reads and the tables of the documentation are made from
these classes by ``docs/generate.py``. Invalid values cannot be built.
"""

from recipe.prune_opd.config.base import ELSEWHERE, LARGEST, require
from recipe.prune_opd.config.loading import allowed_values, load_config, read_config
from recipe.prune_opd.config.recipe import MODES, PruneOPDConfig, RecordsConfig
from recipe.prune_opd.config.rules import (
    PAPER_MAX,
    PAPER_MIN,
    QUESTIONS,
    BudgetConfig,
    DriftConfig,
    GateConfig,
)
from recipe.prune_opd.config.semi import SemiConfig
from recipe.prune_opd.config.teacher import (
    ENGINES,
    TeacherConfig,
    TeacherServerConfig,
    TeacherUrlConfig,
)
from verl_ext.texts import named, shown

__all__ = [
    "ELSEWHERE",
    "ENGINES",
    "LARGEST",
    "MODES",
    "PAPER_MAX",
    "PAPER_MIN",
    "QUESTIONS",
    "BudgetConfig",
    "DriftConfig",
    "GateConfig",
    "PruneOPDConfig",
    "RecordsConfig",
    "SemiConfig",
    "TeacherConfig",
    "TeacherServerConfig",
    "TeacherUrlConfig",
    "allowed_values",
    "load_config",
    "named",
    "read_config",
    "require",
    "shown",
]
