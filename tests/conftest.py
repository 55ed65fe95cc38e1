"""Fixtures shared by the packages' tests. Nothing here imports verl: that takes seconds, and most
tests do without."""

import logging
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from omegaconf import DictConfig

from verl_ext.logs import isolate

if TYPE_CHECKING:
    from recipe.prune_opd.records.tally import Tally

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
        facts = Facts(none.bool(), none.long(), limits, [Reports()] * len(responses))
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
