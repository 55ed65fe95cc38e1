"""Files a run starts from, checked without loading weights: two models that must fit each other, and the data."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.config import load_config

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
FILES = ("train_files", "val_files")


def local_path(path: str) -> str:
    """A path as verl takes it: its own code expands no ``~`` and stumbles over a trailing slash."""
    return path if _is_remote(path) else str(Path(path).expanduser())


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line: the first of its message, with its class where that says more."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, KeyError):
        return f"{first} is missing"
    if first and isinstance(error, (OSError, ValueError, RuntimeError)):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def end_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    """Ids that end a response: those of the generation settings and the tokenizer's own.

    Args:
        generation_config: ``transformers.GenerationConfig`` or None.
        tokenizer: ``transformers`` tokenizer.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def _is_remote(path: str) -> bool:
    from verl.utils.fs import is_non_local

    return is_non_local(path)


def check_inputs(config: DictConfig) -> int:
    """Check files: the two models' configurations and tokenizers, and the data; and a teacher's URLs. Loads no weights.

    Returns:
        Number of token ids the teacher has.

    Raises:
        ValueError: names the key and the file, what was found and what is needed.
    """
    from verl.utils.import_utils import import_external_libs

    prune_opd, model = load_config(config.prune_opd), config.actor_rollout_ref.model
    _check_data(config)
    import_external_libs(model.external_lib)
    student = Model(
        "actor_rollout_ref.model.path",
        str(model.path),
        model.trust_remote_code,
        model.hf_config_path,
        model.tokenizer_path,
    )
    teacher = Model(
        "prune_opd.teacher.path", str(prune_opd.teacher.path), prune_opd.teacher.trust_remote_code, None, None
    )
    vocabulary = min(student.vocab_size, teacher.vocab_size)
    if prune_opd.topk > vocabulary:
        raise ValueError(f"prune_opd.topk: got {prune_opd.topk}, allowed: at most the common vocabulary, {vocabulary}")
    _check_same_tokens(student, teacher)
    _warn_of_different_ends(student, teacher)
    if prune_opd.asks_servers:
        budget = prune_opd.budget.build(config.actor_rollout_ref.rollout.response_length)
        engine = prune_opd.teacher.url.api if prune_opd.teacher.home == "url" else prune_opd.teacher.server.engine
        longest = config.data.max_prompt_length + budget.max
        _check_context(teacher, longest, engine)
        if prune_opd.teacher.home == "url":
            from recipe.prune_opd.urls import check_urls  # its client imports verl's, which takes seconds

            check_urls(prune_opd.teacher, prune_opd.topk, student, vocabulary, longest)
    return teacher.vocab_size


class Model:
    """What can be known of a model without its weights."""

    def __init__(self, key: str, path: str, trust_remote_code: bool, config: str | None, tokenizer: str | None):
        from transformers import AutoConfig
        from verl.utils.fs import copy_to_local
        from verl.utils.model import get_generation_config
        from verl.utils.tokenizer import hf_tokenizer

        self.key, self.path = key, local_path(path)
        if not Path(self.path).is_dir() and not HUB_NAME.fullmatch(path) and not _is_remote(path):
            raise ValueError(f"{key}: {path} does not exist, allowed: a model folder or a hub name")
        try:
            config, tokenizer = (copy_to_local(local_path(other or path)) for other in (config, tokenizer))
            hf_config = AutoConfig.from_pretrained(config, trust_remote_code=trust_remote_code)
            # As it is: verl would fill in a missing padding token, and say so each time.
            tokens = hf_tokenizer(tokenizer, correct_pad_token=False, trust_remote_code=trust_remote_code)
        except Exception as error:  # what reads a tokenizer raises KeyError, and the tokenizers library plain Exception
            raise ValueError(
                f"{key}: {path} holds no model configuration with tokenizer ({reason_of(error)})"
            ) from error
        self.config, self.tokenizer = hf_config.get_text_config(), tokens
        self.vocab_size: int = self.config.vocab_size
        self.context: int | None = getattr(self.config, "max_position_embeddings", None)
        self.tokens: dict[int, str] = {number: token for token, number in tokens.get_vocab().items()}
        self.ends = end_tokens(get_generation_config(config, trust_remote_code), tokens)

    def names(self, ids: Iterable[int]) -> str:
        """Token ids for a reader."""
        return ", ".join(f"{i} ({self.tokens.get(i, 'unknown')})" for i in sorted(ids)) or "none"


def _check_same_tokens(student: Model, teacher: Model) -> None:
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


def _warn_of_different_ends(student: Model, teacher: Model) -> None:
    if student.ends != teacher.ends:
        logger.warning(
            "the student ends a response with token %s, the teacher with %s: the teacher rates the student's end as "
            "unlikely, so responses tend to grow until the limit cuts them; see docs/troubleshooting.md",
            student.names(student.ends),
            teacher.names(teacher.ends),
        )


def _check_context(teacher: Model, longest: int, engine: str) -> None:
    """A server refuses a longer sequence than its model was made for; a training pass does not."""
    from verl_ext.rollout.rows import RESERVED

    needed = longest + RESERVED[engine]
    if teacher.context is not None and teacher.context < needed:
        raise ValueError(
            f"{teacher.key}: {teacher.path} has a context of {teacher.context} tokens, needed on {engine} servers: "
            f"{needed}, that is data.max_prompt_length + prune_opd.budget.max + {RESERVED[engine]}"
        )


def _check_data(config: DictConfig) -> None:
    if OmegaConf.select(config, "data.custom_cls.path"):
        return  # a dataset class of the user's own reads what it likes
    rows = {key: _check_files(f"data.{key}", config.data[key], config.data.prompt_key) for key in FILES}
    needed, usable = config.data.train_batch_size, rows["train_files"]
    if usable is not None and usable < needed:
        raise ValueError(f"data.train_files: {usable} prompts, allowed: at least data.train_batch_size, {needed}")


def _check_files(key: str, files: str | list[str] | None, prompt_key: str) -> int | None:
    """Number of rows in all files; None where some are remote and stay unread here."""
    if not files:
        raise ValueError(f"{key}: got {files!r}, allowed: parquet or JSON files in verl's format")
    files = [files] if isinstance(files, str) else list(files)
    rows = [check_file(key, Path(file), prompt_key) for file in files if not _is_remote(file)]
    return sum(rows) if len(rows) == len(files) else None


def check_file(key: str, file: Path, prompt_key: str) -> int:
    """Number of rows of a data file in verl's format.

    Raises:
        ValueError: it is not there, unreadable, empty, or lacks the column of the prompts.
    """
    if not file.is_file():
        raise ValueError(f"{key}: {file} does not exist, allowed: parquet or JSON files in verl's format")
    columns, rows = _columns(key, file)
    if prompt_key not in columns:
        raise ValueError(f"{key}: {file} has no column {prompt_key!r} (data.prompt_key), its columns: {columns}")
    if not rows:
        raise ValueError(f"{key}: {file} holds no prompts")
    if key == "data.train_files" and "agent_name" in columns:
        raise ValueError(
            f"{key}: {file} has a column 'agent_name', which would bypass the response limit; remove the column"
        )
    return rows


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
