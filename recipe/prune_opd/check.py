"""Bad input refused before Ray starts or a model is loaded, each in one sentence. The docs list every refusal.

``StartCheck`` runs in the driver as a Hydra callback; the trainer runs the same checks in its own process, so a
configuration that reaches verl by another way, or a cluster whose files the driver cannot see, is checked as well.
"""

import logging
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.config import PruneOPDConfig, load_config

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Setting:
    """A verl key that this method ignores or cannot go with, unless it has one of the allowed values."""

    key: str
    allowed: tuple[Any, ...]
    why: str


ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
SETTINGS = (
    Setting("trainer.use_v1", (True,), "the trainer is built on verl's V1 trainer"),
    Setting("trainer.v1.trainer_mode", ("prune_opd",), "another trainer would train on task rewards"),
    Setting("algorithm.adv_estimator", ("prune_opd",), "the reward is given per candidate token"),
    Setting("algorithm.use_kl_in_reward", (False,), "the reference model is the teacher, its KL is the reward"),
    Setting("algorithm.gamma", (1.0,), "the advantage is not discounted"),
    Setting("algorithm.rollout_correction.bypass_mode", (False,), "old log-probs come from the trainer's own pass"),
    Setting("algorithm.rollout_correction.rollout_is", (None,), "candidates are not sampled, so have no such weight"),
    Setting("algorithm.rollout_correction.rollout_rs", (None,), "the loss mask must stay that of the generated tokens"),
    Setting("critic.enable", (False, None), "the advantage has no baseline"),
    Setting("distillation.enabled", (False,), "it would replace the actor's loss"),
    Setting(f"{ACTOR}.strategy", ("fsdp", "fsdp2"), "the scoring pass reads FSDP's logits"),
    Setting(f"{ACTOR}.use_kl_loss", (False,), "the reference model is the teacher, its KL is the reward"),
    Setting(f"{ACTOR}.entropy_coeff", (0,), "the loss has no entropy term"),
    Setting(f"{ACTOR}.calculate_entropy", (False,), "the update does not compute it; actor/entropy is always logged"),
    Setting(f"{ACTOR}.loss_agg_mode", ("token-mean",), "the loss is divided by the number of generated tokens"),
    Setting(f"{ACTOR}.policy_loss.loss_mode", ("vanilla",), "the loss is the clipped one over candidates"),
    Setting(f"{ACTOR}.use_prefix_grouper", (False,), "it takes another path through the model"),
    Setting(f"{ACTOR}.pad_to_length", (False,), "rows of padded logits would not match the candidates"),
    Setting("actor_rollout_ref.ref.pad_to_length", (False,), "rows of padded logits would not match the candidates"),
    Setting("actor_rollout_ref.model.use_fused_kernels", (False,), "fused kernels never show the logits"),
    Setting("actor_rollout_ref.hybrid_engine", (True,), "the trainer is synchronous and colocated"),
    Setting(f"{ROLLOUT}.multi_turn.enable", (False,), "the limit acts on single-turn responses"),
    Setting(f"{ROLLOUT}.agent.default_agent_loop", ("prune_opd",), "another agent loop would not see the limit"),
)


def check_settings(config: DictConfig) -> PruneOPDConfig:
    """Check values alone: ``prune_opd.*`` and the verl keys it depends on.

    Args:
        config: verl's composed configuration.

    Raises:
        ValueError: the first key that is not allowed, what it holds, what is allowed and why.
    """
    if OmegaConf.select(config, "prune_opd") is None:
        raise ValueError("prune_opd: the configuration has no such node, start with +recipe=prune_opd")
    typed = load_config(config.prune_opd)
    typed.budget.build(config.actor_rollout_ref.rollout.response_length)
    for setting in SETTINGS:
        found = OmegaConf.select(config, setting.key)
        if found not in setting.allowed:
            allowed = " or ".join(str(value) for value in setting.allowed)
            raise ValueError(f"{setting.key}: got {found!r}, allowed with prune_opd: {allowed}, because {setting.why}")
    ref = config.actor_rollout_ref.ref
    if not (ref.log_prob_use_dynamic_bsz or ref.log_prob_micro_batch_size_per_gpu):
        raise ValueError(  # verl asks for it only where its own KL terms need a reference model
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu: got None, allowed with "
            "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false: a whole number, the teacher's micro-batch"
        )
    return typed


def check_inputs(config: DictConfig) -> None:
    """Check files: the two models' configurations and tokenizers, and the data. Loads no weights.

    Raises:
        ValueError: names the key and the file, what was found and what is needed.
    """
    prune_opd, model = load_config(config.prune_opd), config.actor_rollout_ref.model
    _check_data(config)
    student = _Model("actor_rollout_ref.model.path", model.path, model.get("trust_remote_code", False))
    teacher = _Model("prune_opd.teacher.path", str(prune_opd.teacher.path), prune_opd.teacher.trust_remote_code)
    vocabulary = min(student.vocab_size, teacher.vocab_size)
    if prune_opd.topk > vocabulary:
        raise ValueError(f"prune_opd.topk: got {prune_opd.topk}, allowed: at most the common vocabulary, {vocabulary}")
    _check_same_tokens(student, teacher)
    _warn_of_different_ends(student, teacher)


class StartCheck(Callback):
    """Hydra callback of the recipe: ends the driver with one sentence instead of a traceback."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See ``hydra.experimental.callback.Callback``."""
        try:
            check_settings(config)
            if not _remote_cluster(config):
                check_inputs(config)
        except ValueError as error:
            # Hydra turns exceptions of callbacks into warnings; SystemExit is none.
            sys.exit(f"prune_opd cannot start: {error}")


def _remote_cluster(config: DictConfig) -> bool:
    """Whether the trainer may run on another machine, whose files this one need not have."""
    return bool(os.environ.get("RAY_ADDRESS") or OmegaConf.select(config, "ray_kwargs.ray_init.address"))


class _Model:
    """What can be known of a model without its weights."""

    def __init__(self, key: str, path: str, trust_remote_code: bool):
        from transformers import AutoConfig, GenerationConfig
        from verl.utils.fs import copy_to_local
        from verl.utils.tokenizer import hf_tokenizer

        self.key, self.path = key, path
        if not Path(path).expanduser().is_dir() and not HUB_NAME.fullmatch(path) and "://" not in path:
            raise ValueError(f"{key}: {path} does not exist, allowed: a model folder or a hub name")
        try:
            local = copy_to_local(str(Path(path).expanduser()) if "://" not in path else path)
            hf_config = AutoConfig.from_pretrained(local, trust_remote_code=trust_remote_code)
            tokenizer = hf_tokenizer(local, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{key}: {path} holds no model configuration with tokenizer ({reason})") from error
        self.vocab_size: int = hf_config.get_text_config().vocab_size
        self.tokens: dict[int, str] = {number: token for token, number in tokenizer.get_vocab().items()}
        try:
            ends = GenerationConfig.from_pretrained(local).eos_token_id
        except OSError:  # a model without generation_config.json ends at its tokenizer's token alone
            ends = None
        ends = ends if isinstance(ends, list) else [ends]
        self.ends = {end for end in (*ends, tokenizer.eos_token_id) if end is not None}

    def names(self, ids: Iterable[int]) -> str:
        """Token ids for a reader."""
        return ", ".join(f"{i} ({self.tokens.get(i, 'unknown')})" for i in sorted(ids)) or "none"


def _check_same_tokens(student: _Model, teacher: _Model) -> None:
    """Ids both tokenizers know must mean the same; rows of the embedding beyond that may differ in number."""
    common = student.tokens.keys() & teacher.tokens.keys()
    different = sorted(i for i in common if student.tokens[i] != teacher.tokens[i])
    if different:
        first = different[0]
        raise ValueError(
            f"{teacher.key}: {len(different)} of {len(common)} token ids mean another token than in {student.path}, "
            f"the first is {first}: {teacher.tokens[first]!r} against {student.tokens[first]!r}; teacher and student "
            "must share one tokenizer"
        )


def _warn_of_different_ends(student: _Model, teacher: _Model) -> None:
    if student.ends != teacher.ends:
        logger.warning(
            "the student ends a response with token %s, the teacher with %s: the teacher rates the student's end as "
            "unlikely, so responses tend to grow until the limit cuts them; see docs/troubleshooting.md",
            student.names(student.ends),
            teacher.names(teacher.ends),
        )


def _check_data(config: DictConfig) -> None:
    if OmegaConf.select(config, "data.custom_cls.path"):
        return  # a dataset class of the user's own reads what it likes
    for key in ("train_files", "val_files"):
        files = config.data[key] or []
        if not files:
            raise ValueError(f"data.{key}: got {config.data[key]!r}, allowed: parquet or JSON files in verl's format")
        for file in [files] if isinstance(files, str) else files:
            if "://" not in file:
                _check_file(f"data.{key}", Path(file).expanduser(), config.data.prompt_key)


def _check_file(key: str, file: Path, prompt_key: str) -> None:
    if not file.is_file():
        raise ValueError(f"{key}: {file} does not exist, allowed: parquet or JSON files in verl's format")
    columns, rows = _columns(key, file)
    if prompt_key not in columns:
        raise ValueError(f"{key}: {file} has no column {prompt_key!r} (data.prompt_key), its columns: {columns}")
    if not rows:
        raise ValueError(f"{key}: {file} holds no prompts")
    if "agent_name" in columns:
        raise ValueError(
            f"{key}: {file} has a column 'agent_name', which would bypass the response limit; remove the column"
        )


def _columns(key: str, file: Path) -> tuple[list[str], int]:
    if file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            metadata = parquet.ParquetFile(file)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{key}: {file} is no readable parquet file ({error})") from error
        return metadata.schema_arrow.names, metadata.metadata.num_rows
    if file.suffix in (".json", ".jsonl"):
        import datasets

        try:
            rows = datasets.load_dataset("json", data_files=str(file), split="train")
        except (datasets.exceptions.DatasetGenerationError, StopIteration, ValueError) as error:
            raise ValueError(f"{key}: {file} is no readable JSON file, or an empty one ({error})") from error
        return rows.column_names, len(rows)
    raise ValueError(f"{key}: {file} ends in {file.suffix!r}, allowed: .parquet, .json, .jsonl")
