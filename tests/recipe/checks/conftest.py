import copy

import pytest
from made import row, save_data, save_model
from omegaconf import DictConfig


@pytest.fixture(scope="session")
def composed(compose):
    return compose("+recipe=prune_opd", "prune_opd.teacher.path=T")


@pytest.fixture
def config(composed) -> DictConfig:
    """The recipe's configuration, free to change."""
    return copy.deepcopy(composed)


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> dict[str, str]:
    """A model folder, which is both student and teacher, and a data file."""
    folder = tmp_path_factory.mktemp("good")
    return {"model": save_model(folder / "model"), "data": save_data(folder / "d.parquet", [row()])}


@pytest.fixture
def inputs(config, good, tmp_path, monkeypatch) -> DictConfig:
    """A configuration whose files are all there and good; in the current folder is code of a user's
    own, mine.py."""
    (tmp_path / "mine.py").write_text(
        "def compute_score(**row):\n    return 0.0\n\n\nclass Mine:\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    config.actor_rollout_ref.model.path = config.prune_opd.teacher.path = good["model"]
    config.data.train_files = config.data.val_files = good["data"]
    config.data.train_batch_size = 1
    return config
