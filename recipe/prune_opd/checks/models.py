"""Models that must fit each other, known by configuration, tokenizer and template, without weights.

The rules are functions of their own, so that the start check and ``doctor`` word them each in its
way.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.files import is_remote, local_path, reason_of, refuse_pointers
from recipe.prune_opd.config import shown

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SCALED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling that make a longer context of ``max_position_embeddings``."""
SIZES = (
    "vocab_size",
    "max_position_embeddings",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
)
"""Sizes that a configuration may have, under transformers' names."""
KEPT_FREE = {"sglang": 1}
"""Tokens that verl's rollout server leaves free behind a response, by engine; 0 for the others."""


class Model:
    """Model as far as it is known without its weights.

    Args:
        key: what its path was given as, for messages.
        path: folder, hub name or remote folder.
        trust_remote_code: run code that comes with it.
        config: where its configuration is; None: at ``path``.
        tokenizer: where its tokenizer is; None: at ``path``.
        template: chat template in place of the tokenizer's own.

    Raises:
        ValueError: there is no such folder, or it holds no configuration with tokenizer, or a Git
            LFS pointer.
    """

    def __init__(
        self,
        key: str,
        path: str,
        trust_remote_code: bool,
        config: str | None,
        tokenizer: str | None,
        template: str | None = None,
    ):
        from transformers import AutoConfig
        from verl.utils.model import get_generation_config
        from verl.utils.tokenizer import hf_tokenizer

        self.key, self.path = key, local_path(path)
        node = key.rpartition(".")[0]
        folder = _here(key, path)
        config = folder if config is None else _here(f"{node}.hf_config_path", config)
        tokenizer = folder if tokenizer is None else _here(f"{node}.tokenizer_path", tokenizer)
        try:
            hf_config = AutoConfig.from_pretrained(config, trust_remote_code=trust_remote_code)
            # The tokenizer as it is: verl would fill in a missing padding token, and warn of it.
            tokens = hf_tokenizer(
                tokenizer, correct_pad_token=False, trust_remote_code=trust_remote_code
            )
            generation = get_generation_config(config, trust_remote_code)
        except Exception as error:  # KeyError, or plain Exception of the library tokenizers
            raise ValueError(
                f"{key}: {path} holds no model configuration with tokenizer ({reason_of(error)})"
            ) from error
        if template is not None:
            tokens.chat_template = template
        self.config, self.tokenizer = hf_config.get_text_config(), tokens
        sizes = {name: _size(key, path, self.config, name) for name in SIZES}
        self.vocab_size: int = sizes["vocab_size"] or 0
        self.context: int | None = sizes["max_position_embeddings"]
        self.tokens: dict[int, str] = {
            number: token for token, number in tokens.get_vocab().items()
        }
        self.ends = _ends(key, path, generation, tokens)

    def names(self, ids: Iterable[int]) -> str:
        """Token ids for a reader."""
        return ", ".join(f"{i} ({self.tokens.get(i, 'unknown')})" for i in sorted(ids)) or "none"


def _here(key: str, path: str) -> str:
    """Folder of this machine, a copy of a remote one, or a hub name.

    Raises:
        ValueError: there is none, or it holds a Git LFS pointer; names the key and the path.
    """
    from verl.utils.fs import copy_to_local

    folder = local_path(path)
    if os.path.isfile(folder):  # says no where pathlib raises, of a name that is too long
        raise ValueError(f"{key}: {path} is a file, allowed: a model folder or a hub name")
    if not os.path.isdir(folder) and not HUB_NAME.fullmatch(path) and not is_remote(path):
        raise ValueError(f"{key}: {path} does not exist, allowed: a model folder or a hub name")
    try:
        copy = copy_to_local(folder)
    except Exception as error:  # of whatever serves a remote path
        raise ValueError(f"{key}: {path} cannot be copied here ({reason_of(error)})") from error
    # verl does not look whether the program that copies has failed.
    if is_remote(path) and not Path(copy).is_dir():
        raise ValueError(
            f"{key}: {path} cannot be copied here (there is no folder {copy} afterwards)"
        )
    refuse_pointers(key, copy)
    return copy


def _size(key: str, path: str, config: Any, name: str) -> int | None:
    """Size of a model out of its configuration; None where a kind of model does not have it.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    found = getattr(config, name, None)
    if found is None and name != "vocab_size":
        return None
    if type(found) is not int or found < 1:
        raise ValueError(
            f"{key}: {path} has {name} {shown(found)} in its configuration, allowed: a whole number"
            " >= 1"
        )
    return found


def _ends(key: str, path: str, generation_config: Any, tokenizer: Any) -> set[int]:
    """Check the end tokens of the generation settings, and collect all, see ``end_tokens``.

    Raises:
        ValueError: one is no number.
    """
    given = getattr(generation_config, "eos_token_id", None)
    for end in given if isinstance(given, list) else [given]:
        if end is not None and type(end) is not int:
            raise ValueError(
                f"{key}: {path} has the eos_token_id {given!r} in its generation settings, allowed:"
                " a token's number, or a list of them"
            )
    return end_tokens(generation_config, tokenizer)


# -------------------------------------------------------------------------------------------- rules


def end_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    """Ids that end a response: those of the generation settings and the tokenizer's own.

    Args:
        generation_config: ``transformers.GenerationConfig`` or None.
        tokenizer: ``transformers`` tokenizer.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def different_tokens(student: Model, teacher: Model) -> list[int]:
    """Ids that both tokenizers know and mean another token by, sorted."""
    return sorted(
        i
        for i in student.tokens.keys() & teacher.tokens.keys()
        if student.tokens[i] != teacher.tokens[i]
    )


def without_row(model: Model, rows: int) -> list[int]:
    """Ids of a model's tokenizer that an embedding of ``rows`` rows does not hold, sorted."""
    return sorted(i for i in model.tokens if i >= rows)


def wrong_ends(model: Model) -> list[int]:
    """End tokens that are no tokens of the model, or have no row in its embedding, sorted."""
    return sorted(i for i in model.ends if i >= model.vocab_size or i not in model.tokens)


def scaled_context(model: Model) -> int | None:
    """Tokens of context with rotary scaling, as vLLM counts them; None where nothing is known."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor", 1.0)
    if model.context is None or kind not in SCALED:
        return model.context
    return int(factor * (rope.get("original_max_position_embeddings") or model.context))


def render(model: Model, messages: Any, kwargs: Mapping[str, Any], prompt: bool = True) -> str:
    """Render a chat by the model's template.

    Args:
        model: whose template.
        messages: turns with role and content.
        kwargs: ``data.apply_chat_template_kwargs``.
        prompt: whether the beginning of an answer follows.

    Raises:
        ValueError: the model has no template, or its template refuses the chat; says why.
    """
    if not model.tokenizer.chat_template:
        raise ValueError("there is no chat template")
    try:
        return model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **kwargs
        )
    except Exception as error:  # a template may fail in any way that Python code may
        raise ValueError(reason_of(error)) from error


# -------------------------------------------------------------------------------------------- start


def check_pair(student: Model, teacher: Model, topk: int) -> None:
    """Check that teacher and student know the same tokens, and have a row for each of them.

    Raises:
        ValueError: names the key and the model, what was found and what is needed.
    """
    vocabulary = min(student.vocab_size, teacher.vocab_size)
    if topk > vocabulary:
        raise ValueError(
            f"prune_opd.topk: got {topk}, allowed: at most the common vocabulary, {vocabulary}"
        )
    different = different_tokens(student, teacher)
    if different:
        first = different[0]
        raise ValueError(
            f"{teacher.key}: {len(different)} of"
            f" {len(student.tokens.keys() & teacher.tokens.keys())} token ids mean another token"
            f" than in {student.path}, the first is {first}: {teacher.tokens[first]!r} against"
            f" {student.tokens[first]!r}; teacher and student must share one tokenizer"
        )
    for model in (student, teacher):
        beyond = without_row(student, model.vocab_size)
        if beyond:
            raise ValueError(
                f"{model.key}: {model.path} has {model.vocab_size} rows in its embedding, too few"
                f" for {len(beyond)} of the tokens that the student may read or write, the first is"
                f" {student.names(beyond[:1])}; allowed: a row for each"
            )
    _check_ends(student)
    if student.ends != teacher.ends:
        logger.warning(
            f"{teacher.key}: the student ends a response with token {student.names(student.ends)},"
            f" the teacher with {teacher.names(teacher.ends)}: it rates the student's end as"
            " unlikely, so responses tend to grow until the limit cuts them; see"
            " docs/troubleshooting.md"
        )


def _check_ends(student: Model) -> None:
    """Check that the student can end a response: else nothing but the limit would."""
    where = "eos_token of its tokenizer and eos_token_id in generation_config.json"
    if not student.ends:
        raise ValueError(f"{student.key}: {student.path} has no end token, needed: {where}")
    wrong = wrong_ends(student)
    if wrong:
        raise ValueError(
            f"{student.key}: {student.path} ends a response with token"
            f" {student.names(student.ends)}, of which {', '.join(map(str, wrong))} is no token"
            f" with a row in its embedding; correct {where}"
        )


def check_server_context(teacher: Model, longest: int, engine: str) -> None:
    """Check that a teacher's servers take the longest sequence, which a training pass takes anyway.

    Raises:
        ValueError: the teacher's context is too short.
    """
    from verl_ext.rollout.rows import RESERVED

    needed = longest + RESERVED[engine]
    if teacher.context is not None and teacher.context < needed:
        raise ValueError(
            f"{teacher.key}: {teacher.path} has a context of {teacher.context} tokens, needed on"
            f" {engine} servers: {needed}, that is data.max_prompt_length + prune_opd.budget.max +"
            f" {RESERVED[engine]}"
        )


def check_split(key: str, devices: int, model: Model) -> None:
    """Check that a server can split a model's attention heads over its devices.

    Args:
        key: that says how many devices.
        devices: of a server.
        model: what it serves.

    Raises:
        ValueError: heads are left over; names the key, the model and its heads.
    """
    heads = getattr(model.config, "num_attention_heads", None) or devices
    groups = getattr(model.config, "num_key_value_heads", None) or heads
    # Where there are more devices than key-value heads each of these is copied.
    if heads % devices or (groups % devices and devices % groups):
        raise ValueError(
            f"{key}: got {devices}, allowed: a number of devices that the {heads} attention heads"
            f" and {groups} key-value heads of {model.path} can be split over"
        )


def check_rollout_context(config: DictConfig, student: Model) -> None:
    """Check that prompt and response fit: verl cuts without a word what is beyond the context.

    verl counts ``max_position_embeddings`` as it stands in the configuration, without rotary
    scaling.

    Raises:
        ValueError: prompt and response together do not fit.
    """
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    overrides = (
        OmegaConf.select(model, "override_config.model_config") or model.override_config or {}
    )
    context = overrides.get("max_position_embeddings") or student.context
    if context is None:
        raise ValueError(
            f"{student.key}: {student.path} has no max_position_embeddings in its configuration,"
            " needed by verl's rollout servers"
        )
    limit, what = context, f"the context of {student.path}, its max_position_embeddings"
    if rollout.max_model_len is not None:
        if rollout.max_model_len > context:
            raise ValueError(
                f"actor_rollout_ref.rollout.max_model_len: got {rollout.max_model_len}, allowed: at"
                f" most {context}, {what}"
            )
        limit, what = rollout.max_model_len, "actor_rollout_ref.rollout.max_model_len"
    free = KEPT_FREE.get(rollout.name, 0)
    most = limit - free - rollout.prompt_length
    if rollout.response_length > most:
        kept = f" less {free} that {rollout.name} keeps free," if free else ","
        raise ValueError(
            f"data.max_response_length: got {rollout.response_length}, allowed with"
            f" data.max_prompt_length={rollout.prompt_length}: at most {most}, because both must"
            f" fit into {limit} tokens{kept} {what}; verl would cut longer responses without a word"
        )
