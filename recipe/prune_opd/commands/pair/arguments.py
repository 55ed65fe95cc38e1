"""Arguments that ``doctor`` and ``diagnose`` share, and their types. Nothing slow is imported."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from recipe.prune_opd.commands.arguments import one, whole
from verl_ext.files import parse_json

Dtype = Literal["bfloat16", "float16", "float32"]


def count(text: str) -> int:
    """Read a whole number of at least 1, see ``whole``."""
    return whole(text, 1)


def positive(text: str) -> float:
    """Read a finite number above 0.

    Raises:
        ValueError: it is none.
    """
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def share(text: str) -> float:
    """Read a number in (0, 1].

    Raises:
        ValueError: it is none.
    """
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError(text)
    return number


def mapping(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is none.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


COUNT = one(count, "a whole number >= 1")
POSITIVE = one(positive, "a number > 0")
SHARE = one(share, "a number in (0, 1]")
MAPPING = one(mapping, "a JSON object", "JSON")


@dataclass(frozen=True)
class PairArguments:
    """Arguments that say which pair, which prompts, and which run is planned."""

    student: Annotated[Positional[str], arg(metavar="STUDENT")]
    """folder or hub name"""
    teacher: Annotated[Positional[str], arg(metavar="TEACHER")]
    """folder or hub name"""
    data: Annotated[Path | None, arg(metavar="FILE")] = None
    """prompts in verl's format: .parquet, .json or .jsonl"""
    prompt_key: Annotated[str, arg(metavar="NAME")] = "prompt"
    """data.prompt_key"""
    chat_template_kwargs: Annotated[dict[str, Any] | None, MAPPING] = None
    """data.apply_chat_template_kwargs, e.g. '{"enable_thinking": false}'"""
    topk: Annotated[int, COUNT] = 16
    """prune_opd.topk"""
    trust_remote_code: bool = False
    """run code that comes with the models"""
    json: bool = False
    """print one JSON object instead of tables"""

    @property
    def template(self) -> dict[str, Any]:
        """Settings of the chat template."""
        return self.chat_template_kwargs or {}
