"""Data files, read row by row before a run: prompts, and what a reward function needs of a row.

Files may hold millions of rows. Only the columns that matter are read, in batches, and the rows of
a batch are told apart by the shape of their values alone; one row of each shape is then looked at
closely.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from recipe.prune_opd.checks.files import check_readable, local_path
from recipe.prune_opd.checks.scoring import SCORER
from recipe.prune_opd.checks.shapes import first_of_each
from recipe.prune_opd.checks.sources import Source, open_source, read_rows
from recipe.prune_opd.config import shown

Rules = dict[str, Callable[[Any], str | None]]
"""Column -> what is wrong with a value of it and what is allowed, or None."""
KEYS = ("train_files", "val_files")
FORMATS = "parquet or JSON files in verl's format"
REWARD_COLUMNS = ("data_source", "reward_model")
"""Columns that verl's reward managers read of every row, beside the response."""
EXACT = ("data_source", "agent_name")
"""Columns whose texts are names: every one is looked at, not only each of its shape."""
LAST_ROLES = ("user", "tool", "system")
"""Roles that a model may answer: those verl knows, but the model's own."""


@dataclass(frozen=True)
class Prompt:
    """Prompt of a row, the first of its shape."""

    where: str
    """Key, file, row and column, for messages."""
    messages: Any


@dataclass
class Data:
    """Content of data files, as far as it was asked for."""

    rows: int = 0
    schema: Any = None
    """Columns and types of a file, Arrow's."""
    prompts: list[Prompt] = field(default_factory=list)
    """A prompt of every set of roles and shapes."""
    sources: dict[Any, str] = field(default_factory=dict)
    """``data_source`` -> key, file and row of the first that has it; empty where not asked for."""

    def take(self, where: str, column: str, value: Any, rules: "Rules") -> None:
        """Judge a value, and keep it.

        Raises:
            ValueError: a rule finds fault with it.
        """
        fault = rules[column](value)
        if fault:
            raise ValueError(f"{where} of column {column!r} holds {shown(value)}, {fault}")
        if column == "data_source":
            self.sources[value] = where
        elif rules[column] is prompt_fault:
            self.prompts.append(Prompt(f"{where} of column {column!r}", value))


def check_data(
    config: DictConfig, reader: str | None, optional: Rules, teacher: Rules | None = None
) -> Data:
    """Check the files of training and validation.

    Args:
        config: verl's composed configuration.
        reader: who reads ``data_source`` and ``reward_model``, see ``scoring.reads_rows``.
        optional: rules for columns of training data, where it has them.
        teacher: rule for the column that must name the teacher of every training row.

    Returns:
        Prompts and sources of both; empty where a dataset class of the user's own reads them.
        Remote files stay unread.

    Raises:
        ValueError: names key, file and row, what was found and what is allowed.
    """
    both = Data()
    if OmegaConf.select(config, "data.custom_cls.path"):
        return both
    for key in KEYS:
        files = _named(config, key)
        here = [Path(local_path(file)) for file in files if "://" not in file]
        more = (optional, teacher) if key == "train_files" else ()
        name = config.data.prompt_key
        parts = [check_file(f"data.{key}", file, name, reader, *more) for file in here]
        _check_together(f"data.{key}", here, parts)
        for part in parts:
            both.prompts += part.prompts
            both.sources = part.sources | both.sources
        if key == "train_files" and len(here) == len(files):
            _check_enough(config, sum(part.rows for part in parts))
    return both


def _named(config: DictConfig, key: str) -> list[str]:
    """Files at a key, one or several."""
    given = config.data[key]
    files = list(given) if isinstance(given, ListConfig) else [given]
    if not files or not all(isinstance(file, str) and file for file in files):
        raise ValueError(f"data.{key}: got {given!r}, allowed: {FORMATS}")
    return files


def _check_together(key: str, files: list[Path], parts: list[Data]) -> None:
    """Check that a column has one type in all files of a key, which verl joins by ``datasets``."""
    import datasets

    first: dict[str, tuple[Path, Any]] = {}
    for file, part in zip(files, parts, strict=True) if len(files) > 1 else ():
        for name, kind in datasets.Features.from_arrow_schema(part.schema).items():
            other, known = first.setdefault(name, (file, kind))
            rows = [
                datasets.Dataset.from_dict({name: [None]}, datasets.Features({name: one}))
                for one in (known, kind)
            ]
            try:
                datasets.concatenate_datasets(rows)
            except ValueError as error:
                raise ValueError(
                    f"{key}: column {name!r} is {shown(kind)} in {file} and {shown(known)} in"
                    f" {other}, allowed: one type in all files, because verl joins them; write them"
                    " by one library in one format"
                ) from error


def _check_enough(config: DictConfig, rows: int) -> None:
    """Check for a full batch: another is dropped, and an epoch without one trains nothing."""
    most, needed = config.data.get("train_max_samples", -1), config.data.train_batch_size
    if rows < needed:
        raise ValueError(
            f"data.train_files: {rows} prompts, allowed: at least data.train_batch_size, {needed}"
        )
    if 0 < most < needed:
        raise ValueError(
            f"data.train_max_samples: got {most}, allowed: at least data.train_batch_size,"
            f" {needed}, or -1 for all"
        )


def check_file(
    key: str,
    file: Path,
    prompt_key: str,
    reader: str | None = None,
    optional: Rules | None = None,
    teacher: Rules | None = None,
) -> Data:
    """Check a data file in verl's format: all of its rows.

    Args:
        key: what the file was given as, for messages.
        file: .parquet, .json or .jsonl.
        prompt_key: column of the prompts.
        reader: who reads ``data_source`` and ``reward_model`` of every row; None: nobody, they are
            not looked at.
        optional: rules for columns that the file may have.
        teacher: rule for the column that must name the teacher of every row.

    Raises:
        ValueError: the file is not there, unreadable or empty, lacks a column, or a row is not as
            it should be.
    """
    check_readable(f"{key}: ", file, FORMATS)
    source = open_source(key, file)
    required = teacher or {}
    named = {prompt_key: "data.prompt_key"} | dict.fromkeys(required, "prune_opd.teacher.key")
    _check_columns(key, file, source, named, reader)
    data, given = Data(source.rows, source.schema), source.schema.names
    more = {name: rule for name, rule in (optional or {}).items() if name in given}
    rules = _rules(prompt_key, reader) | more | required
    exact, seen = (*EXACT, *required), set[tuple[str, Any]]()
    for start, batch in source.batches(list(rules)):
        for column, values in batch.items():
            for shape, row in first_of_each(values, exact=column in exact):
                if (column, shape) not in seen:
                    seen.add((column, shape))
                    value = values[row] if isinstance(values, list) else values[row].as_py()
                    data.take(f"{key}: {file}, row {start + row}", column, value, rules)
    return data


def _check_columns(
    key: str, file: Path, source: Source, named: Mapping[str, str], reader: str | None
) -> None:
    """Look for the columns ``named``, each by the key that names it, and for those of rewards."""
    names = source.schema.names
    columns = f"its columns: {names}"
    for column, by in named.items():
        if column not in names:
            raise ValueError(f"{key}: {file} has no column {column!r} ({by}), {columns}")
    for column in REWARD_COLUMNS if reader else ():
        if column not in names:
            raise ValueError(
                f"{key}: {file} has no column {column!r}, which {reader} needs, {columns}"
            )
    extra = source.schema.field("extra_info").type if "extra_info" in names else None
    if extra is not None and not _may_hold_objects(extra):
        raise ValueError(
            f"{key}: {file} has a column 'extra_info' of type {extra}, allowed: objects"
        )
    if not source.rows:
        raise ValueError(f"{key}: {file} holds no prompts")


# -------------------------------------------------------------------------------------------- rules


def _rules(prompt_key: str, reader: str | None) -> Rules:
    if reader is None:
        return {prompt_key: prompt_fault}
    strict = reader == SCORER

    def truth_fault(value: Any) -> str | None:
        known = isinstance(value, dict) and "ground_truth" in value
        if known and not (strict and value["ground_truth"] is None):
            return None
        return f"allowed: an object with ground_truth, which {reader} needs"

    def source_fault(value: Any) -> str | None:
        if strict and not isinstance(value, str):
            return f"allowed: text, which {reader} needs"
        return None

    return {prompt_key: prompt_fault, "reward_model": truth_fault, "data_source": source_fault}


def is_chat(prompt: Any) -> bool:
    """Tell whether a prompt is a list of turns with role and content."""
    known = isinstance(prompt, list) and bool(prompt)
    return known and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in prompt
    )


def prompt_fault(prompt: Any) -> str | None:
    """Fault that keeps a prompt from being answered, and what is allowed; None without fault."""
    if not is_chat(prompt):
        first = prompt[0] if isinstance(prompt, list) and prompt else None
        foreign = isinstance(first, dict) and {"from", "value"} <= first.keys()
        other = " instead of from and value" if foreign else ""
        return f"allowed: a list of messages with role and content{other}"
    for number, turn in enumerate(prompt):
        role, content = turn["role"], turn["content"]
        if not isinstance(role, str) or not role:
            return f"whose turn {number} has no role, allowed: user, system, assistant or tool"
        if not isinstance(content, str | list) and not (content is None and role == "assistant"):
            return f"whose turn {number} has the content {shown(content)}, allowed: text"
    last = prompt[-1]
    if last["role"] not in LAST_ROLES:
        return (
            f"which ends with a turn of {last['role']}, allowed: a last turn of"
            f" {' or '.join(LAST_ROLES)}, which the model answers; an answer belongs into"
            " reward_model.ground_truth"
        )
    if not last["content"] or not str(last["content"]).strip():
        return "whose last turn is empty, allowed: text"
    return None


def read_prompts(file: Path, prompt_key: str, most: int) -> list[Any]:
    """Read the first ``most`` prompts of a file that ``check_file`` has passed."""
    return [row[prompt_key] for row in read_rows(file, (prompt_key,), most)]


def _may_hold_objects(kind: Any) -> bool:
    """Tell whether values of an Arrow type may be read as dictionaries."""
    import pyarrow as pa

    return (
        pa.types.is_struct(kind) or pa.types.is_null(kind) or isinstance(kind, pa.BaseExtensionType)
    )
