"""A folder that cannot be made is refused before a run, and none is made by asking."""

import pytest
from omegaconf import OmegaConf

from recipe.prune_opd.checks.folders import check_folder, check_folders
from recipe.prune_opd.config import read_config


def test_a_folder_that_can_be_made_is_left_to_be_made(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b"):
        check_folder("key", str(folder))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made_is_refused(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("")
    link.symlink_to(tmp_path / "nowhere")
    wrong = (file, file / "below", link, tmp_path / "a" / ("x" * 300), "/proc/records", "nu\0l")
    for folder in wrong:
        with pytest.raises(ValueError, match=r"^key: .* cannot be made or written into \(") as said:
            check_folder("key", str(folder))
        assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "key",
    [
        "trainer.default_local_dir",
        "trainer.validation_data_dir",
        "trainer.rollout_data_dir",
        "prune_opd.records.dir",
        "prune_opd.dump_dir",
        "prune_opd.semi.dir",
    ],
)
def test_every_folder_of_a_run_is_asked_about(config, key, tmp_path):
    config.trainer.default_local_dir = str(tmp_path)
    config.prune_opd.semi.enable = True
    check_folders(config, read_config(config))
    OmegaConf.update(config, key, "/proc/no/folder")
    with pytest.raises(ValueError, match=r"^\S+: '/proc/no/folder.* cannot be made") as said:
        check_folders(config, read_config(config))
    assert str(said.value).startswith(f"{key}: ")
