"""Keys out of a composed configuration, and what they may hold in words."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from recipe.prune_opd.config.base import LARGEST
from recipe.prune_opd.config.recipe import PruneOPDConfig
from verl_ext.texts import named, shown

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a group of keys",
}


def load_config(node: DictConfig) -> PruneOPDConfig:
    """Typed ``prune_opd.*`` out of the composed configuration.

    Args:
        node: the node ``prune_opd``.

    Raises:
        ValueError: a value is of the wrong type or outside what is allowed; names the key.
    """
    if not isinstance(node, DictConfig):
        raise ValueError(
            f"prune_opd: got {node!r}, allowed: the keys that +recipe=prune_opd brings"
        )
    try:
        given: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        parts = str(error.full_key or "").removeprefix("prune_opd").strip(".").split(".")
        missing = isinstance(error, MissingMandatoryValue)
        reason = "no value was given" if missing else str(error.msg).splitlines()[0]
        raise ValueError(f"{named('prune_opd', *filter(None, parts))}: {reason}") from error
    try:
        return PruneOPDConfig.model_validate(given)
    except ValidationError as error:
        raise ValueError(sentence(error) + _source(node, error)) from error


def _source(node: DictConfig, error: ValidationError) -> str:
    """Say where a complained value was taken from, if not from its own key."""
    raw: Any = OmegaConf.to_container(node, resolve=False)
    for part in error.errors()[0]["loc"]:
        if not isinstance(raw, dict) or part not in raw:
            return ""
        raw = raw[part]
    taken = isinstance(raw, str) and raw.startswith("${")
    return f"; the value is that of {raw[2:-1]}" if taken else ""


def read_config(config: DictConfig) -> PruneOPDConfig:
    """Typed ``prune_opd.*`` out of verl's whole configuration, the budget's lengths and the
    factor of task rewards resolved.

    Raises:
        ValueError: see ``load_config``, ``BudgetConfig.resolved`` and
            ``TaskRewardConfig.resolved``.
    """
    typed = load_config(config.prune_opd)
    budget = typed.budget.resolved(config.actor_rollout_ref.rollout.response_length)
    task_reward = typed.task_reward.resolved(str(config.algorithm.adv_estimator))
    return typed.changed(budget=budget, task_reward=task_reward)


def sentence(error: ValidationError) -> str:
    """Say the first of pydantic's complaints about ``prune_opd`` in one sentence."""
    first = error.errors()[0]
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" else ""
    if said.startswith("prune_opd"):  # one of ours
        return said
    group: type[BaseModel] = PruneOPDConfig
    field, path = None, list[str]()
    for part in first["loc"]:
        field = group.model_fields.get(str(part))
        path.append(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        group = inner
    key = named("prune_opd", *path)
    if said:
        return f"{key}: got {shown(first['input'])}, which is refused: {' '.join(said.split())}"
    if first["type"] == "extra_forbidden":
        return f"{key}: there is no such key, allowed: {', '.join(group.model_fields)}"
    assert field is not None
    large = isinstance(first["input"], int) and abs(first["input"]) > LARGEST
    most = f", at most {LARGEST}" if large else ""
    return f"{key}: got {shown(first['input'])}, allowed: {allowed_values(field)}{most}"


def allowed_values(field: FieldInfo) -> str:
    """Say in words what a key may hold: ``a whole number >= 1, or null``."""
    return _words(field.annotation, field.metadata)


def _words(kind: Any, bounds: list[Any]) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *more = get_args(kind)
        return _words(inner, [*bounds, *more])
    if origin in (Union, UnionType):
        kinds = [_words(each, bounds) for each in get_args(kind) if each is not type(None)]
        return ", or ".join([*kinds, "null"])
    if origin is Literal:
        return ", ".join(map(str, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a group of keys"
    return WORDS[origin or kind] + _range(bounds)


def _range(bounds: list[Any]) -> str:
    """Bounds as ``>= 1``, or as an interval where there are two."""
    low = next((each for each in bounds if isinstance(each, (Ge, Gt))), None)
    high = next((each for each in bounds if isinstance(each, (Le, Lt))), None)
    if low is None:
        return ""
    least, closed = (low.ge, True) if isinstance(low, Ge) else (low.gt, False)
    if high is None:
        return f" {'>=' if closed else '>'} {least}"
    most, end = (high.le, "]") if isinstance(high, Le) else (high.lt, ")")
    return f" in {'[' if closed else '('}{least}, {most}{end}"
