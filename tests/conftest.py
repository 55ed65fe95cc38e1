"""Fixtures shared by the packages' tests. Nothing here imports verl: that takes seconds, and most
tests do without."""

import contextlib
import logging
import math
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from omegaconf import DictConfig

from verl_ext.logs import isolate

if TYPE_CHECKING:
    from recipe.prune_opd.records.tally import Tally

PACKAGES = ("recipe.prune_opd", "verl_ext")

COMMON = settings(
    deadline=None,  # machines are slow at times, and first calls of torch always
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", COMMON, max_examples=40)
settings.register_profile("long", COMMON, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A context in which no file grows beyond a hundred bytes: writing fails as on a full disk."""
    return _full_disk


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Every run of generated tests has a seed, by which it can be repeated."""
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_report_header(config: pytest.Config) -> str:
    return f"generated tests: --hypothesis-seed={config.getoption('--hypothesis-seed')}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Repeat the seed where somebody looks for it."""
    if exitstatus:
        terminalreporter.write_line(pytest_report_header(config))


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


@pytest.fixture(scope="session")
def tally_of() -> "Callable[..., Tally]":
    """A tally of responses of which so many ``tokens`` count, from position 0 on."""
    import torch

    from recipe.prune_opd.method.drift import reliability
    from recipe.prune_opd.method.pruning import Pruned
    from recipe.prune_opd.method.reward import Scores, TopK, TopKReward
    from recipe.prune_opd.records.tally import COLUMNS, Facts, Reports, Tally

    def made(
        *responses: dict[str, float],
        longest: int = 16,
        overlap: float = 0.5,
        reward: float = -1.0,
        log_prob: float = math.log(0.5),
    ) -> Tally:
        """Numbers of each response replace what would be in its row."""
        tokens = torch.tensor([[int(given.get("tokens", 0))] for given in responses])
        mask = torch.arange(max(1, int(tokens.max()))) < tokens
        values = torch.full((*mask.shape, 2), log_prob)
        ids, rewards = torch.zeros_like(values).long(), torch.full_like(values, reward / 2)
        weights = reliability(~mask, mask, 0.5, 0.25)
        given = TopKReward(rewards, ids, ids == 0, values)
        pruned = Pruned(mask, torch.full(mask.shape, overlap), ~mask, weights, given, rewards)
        own, none = TopK(ids, values), torch.zeros(len(responses))
        limits = torch.full_like(none, longest).long()
        facts = Facts(mask, none.bool(), none.long(), limits, [Reports()] * len(responses))
        tally = Tally.of(pruned, Scores(ids[..., 0], own, own), facts, longest)
        for row, numbers in zip(tally.rows, responses, strict=True):
            for name, value in numbers.items():
                row[COLUMNS.index(name)] = value
        return tally

    return made


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Our loggers do not pass their records on to the root logger, where caplog listens."""
    for package in PACKAGES:
        isolate(package)
        logging.getLogger(package).addHandler(caplog.handler)
    yield
    for package in PACKAGES:
        logging.getLogger(package).removeHandler(caplog.handler)
