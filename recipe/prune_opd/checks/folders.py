"""Folders that a run will write into: can they be made, and written?"""

import contextlib
import os
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.files import reason_of
from recipe.prune_opd.config import PruneOPDConfig

VERLS = ("trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir")
"""Keys of verl that name such a folder, or none."""


def check_folders(config: DictConfig, prune_opd: PruneOPDConfig) -> None:
    """Check every folder of a run, and make none.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it.

    Raises:
        ValueError: names the key, the folder and the reason.
    """
    folders = {key: OmegaConf.select(config, key) for key in VERLS}
    folders["prune_opd.records.dir"] = prune_opd.records.dir
    folders["prune_opd.dump_dir"] = prune_opd.dump_dir
    folders["prune_opd.semi.dir"] = prune_opd.semi.dir if prune_opd.semi.enable else None
    for key, folder in folders.items():
        if folder:
            check_folder(key, str(folder))


def check_folder(key: str, folder: str) -> None:
    """Check that a folder can be made and written into.

    Args:
        key: what it was given as.
        folder: its path.

    Raises:
        ValueError: names the key, the folder and the reason.
    """
    path = Path(folder).absolute()
    try:
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        for name in path.relative_to(there).parts:
            with contextlib.suppress(FileNotFoundError):  # but not a name that is too long
                os.lstat(there / name)
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{key}: {folder!r} cannot be made or written into ({reason_of(error)}), allowed: a"
            " folder that can"
        ) from error
