"""Code of the user's own that verl would load once Ray runs, and partly in its workers."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.files import reason_of
from recipe.prune_opd.checks.scoring import NAMED


def import_libraries(config: DictConfig) -> None:
    """Import the user's libraries, as verl does in every process.

    Raises:
        ValueError: one cannot be imported; names the key.
    """
    from verl.utils.import_utils import import_external_libs

    names = config.actor_rollout_ref.model.external_lib
    try:
        import_external_libs(names)
    except Exception as error:  # the user's code
        raise ValueError(
            f"actor_rollout_ref.model.external_lib: {names} cannot be imported ({reason_of(error)})"
        ) from error


def check_code(config: DictConfig) -> None:
    """Check that the user's own reward function, reward manager and dataset class can be loaded.

    Raises:
        ValueError: one cannot; names the key.
    """
    from verl.utils.import_utils import load_extern_object

    for key, path, name in _named(config):
        try:
            load_extern_object(path, name)
        except Exception as error:  # the user's code
            cause = error.__cause__ or error
            raise ValueError(
                f"{key}: {name!r} cannot be loaded from {path} ({reason_of(cause)})"
            ) from error


def _named(config: DictConfig) -> Iterator[tuple[str, str, str]]:
    """Key, file or module, and the name of the object in it."""
    for key in (*NAMED, "data.custom_cls.path"):
        if path := OmegaConf.select(config, key):
            yield key, path, OmegaConf.select(config, f"{key.removesuffix('.path')}.name")
    if OmegaConf.select(config, "reward.reward_manager.source") == "importlib":
        manager = config.reward.reward_manager
        yield (
            "reward.reward_manager.module.path",
            OmegaConf.select(manager, "module.path"),
            manager.name,
        )
