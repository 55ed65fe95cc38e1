"""Fixtures shared by the packages' tests. Nothing here imports verl: that takes seconds, and most
tests do without."""

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import DictConfig

from verl_ext.logs import isolate

PACKAGES = ("recipe.prune_opd", "verl_ext")


@pytest.fixture(scope="session")
def compose() -> Callable[..., DictConfig]:
    """verl's configuration with overrides, composed as ``python -m verl.trainer.main_ppo``
    would."""
    import hydra

    folder = Path(find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"

    def composed(*overrides: str) -> DictConfig:
        with hydra.initialize_config_dir(str(folder), version_base=None):
            return hydra.compose("ppo_trainer", list(overrides))

    return composed


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Our loggers do not pass their records on to the root logger, where caplog listens."""
    for package in PACKAGES:
        isolate(package)
        logging.getLogger(package).addHandler(caplog.handler)
    yield
    for package in PACKAGES:
        logging.getLogger(package).removeHandler(caplog.handler)
