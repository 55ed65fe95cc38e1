import copy

import pytest
from omegaconf import DictConfig


@pytest.fixture(scope="session")
def composed(compose):
    return compose("+recipe=prune_opd", "prune_opd.teacher.path=T")


@pytest.fixture
def config(composed) -> DictConfig:
    """The recipe's configuration, free to change."""
    return copy.deepcopy(composed)
