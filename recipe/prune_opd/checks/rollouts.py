"""Cached rollouts of Semi-OPD that were made by other models or settings than a run has."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.files import WEIGHTS, check_place
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.checks.numbers import ROLLOUT
from recipe.prune_opd.config import PruneOPDConfig
from verl_ext.rollout.cache import difference, read_manifest

BLOCK, EVERY = 1 << 16, 1 << 22
"""Bytes that are read of a file of weights, out of every so many."""


def made_by(
    config: DictConfig, prune_opd: PruneOPDConfig, student: Model, teacher: Model | None
) -> tuple[dict[str, str], dict[str, str]]:
    """All that the rollouts of a run depend on but its prompts, which are known by their content.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it, lengths resolved.
        student: of the run.
        teacher: of the run, where its scores are cached.

    Returns:
        Key -> value, and key -> words for people. See ``verl_ext.rollout.cache.difference``.
    """
    rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
    template = OmegaConf.to_container(config.data.apply_chat_template_kwargs, resolve=True)
    sampled = ", sampled tokens" if "sampled" in prune_opd.rules.needs else ""
    temperature = prune_opd.teacher.temperature
    scores = f"top {prune_opd.topk}{sampled}, temperature {temperature:g}" if teacher else "none"
    values = {
        student.key: model_digest(student),
        "actor_rollout_ref.model.lora_adapter_path": str(model.get("lora_adapter_path")),
        "tokenizer and chat template": _digest(_texts(student.tokenizer, template)),
        f"{ROLLOUT}.temperature": f"{rollout.temperature:g}",
        f"{ROLLOUT}.top_p": f"{rollout.top_p:g}",
        f"{ROLLOUT}.top_k": str(rollout.top_k),
        f"{ROLLOUT}.calculate_log_probs": str(bool(rollout.calculate_log_probs)),
        "data.max_prompt_length": str(config.data.max_prompt_length),
        "prune_opd.budget.max": str(prune_opd.budget.longest),
        "scores of the teacher": scores,
        "prune_opd.teacher.path": model_digest(teacher) if teacher else "none",
    }
    models = [one for one in (student, teacher) if one is not None]
    return values, {one.key: one.path for one in models}


def check_rollouts(folder: Path, values: dict[str, str], notes: dict[str, str]) -> None:
    """Refuse a folder with rollouts of another making. One without any passes.

    Args:
        folder: ``prune_opd.semi.dir``.
        values: of ``made_by``.
        notes: of ``made_by``.

    Raises:
        ValueError: it holds such, or a damaged manifest; names the folder and the first difference.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        raise ValueError(f"prune_opd.semi.dir: {error}") from error
    check_place("prune_opd.semi.dir", folder)
    if manifest and (differing := difference(manifest, values, notes)):
        raise ValueError(
            f"prune_opd.semi.dir: {folder} holds rollouts that were made with another {differing};"
            " allowed: a folder of the same making, or an empty one"
        )


def read_rollouts_id(folder: Path) -> str | None:
    """Id of the rollouts in a folder; None where it holds none.

    Raises:
        ValueError: the folder's manifest is damaged; names the key and the file.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        raise ValueError(f"prune_opd.semi.dir: {error}") from error
    return str(manifest["id"]) if manifest else None


def model_digest(model: Model) -> str:
    """Name of a model by its content; of a hub's by name and revision.

    Of the weights one part in 64, evenly spread, is read: training changes them everywhere.
    """
    from verl.utils.fs import copy_to_local

    folder = Path(copy_to_local(model.path))
    if not folder.is_dir():
        return f"{model.path}@{getattr(model.config, '_commit_hash', None)}"
    return _digest(_parts(folder))


def _parts(folder: Path) -> Iterator[bytes]:
    for file in folder.glob("config.json"):
        yield file.read_bytes()
    found = (sorted(filter(Path.is_file, folder.glob(pattern))) for pattern in WEIGHTS)
    for file in next(filter(None, found), []):
        size = file.stat().st_size
        yield f"{file.name} {size}".encode()
        with file.open("rb") as weights:
            for start in range(0, size, EVERY):
                weights.seek(start)
                yield weights.read(BLOCK)


def _texts(tokenizer: Any, template: Any) -> Iterator[bytes]:
    yield json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    yield json.dumps([tokenizer.chat_template, template], sort_keys=True, default=str).encode()


def _digest(parts: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return f"sha256:{found.hexdigest()[:16]}"
