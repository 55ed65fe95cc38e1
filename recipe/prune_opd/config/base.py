"""Parts that groups of keys are made of."""

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from recipe.prune_opd.method.drift import MOST_WEIGHT
from verl_ext.texts import shown


def _no_bool(value: Any) -> Any:
    """Refuse true and false, which Python counts among the numbers, and what is too large."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) > LARGEST):
        raise PydanticCustomError("no_number", "no number")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Real = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Whole, Ge(1)]
Natural = Annotated[Whole, Ge(0)]
Seconds = Annotated[Real, Gt(0)]
Nats = Annotated[Real, Gt(0)]
Share = Annotated[Real, Gt(0), Le(1)]
Weight = Annotated[Real, Ge(0), Le(MOST_WEIGHT)]
Temperature = Annotated[Real, Ge(0.01), Le(100)]
"""Below 0.01 vLLM would take 0.01; far above, all tokens would be alike."""

ELSEWHERE = "elsewhere"
"""Stands for a key that each recipe sets for itself."""


def recipe(default: Any, value: str) -> Any:
    """A field to which the recipes give another value than its default, a key of verl's mostly."""
    return Field(default, json_schema_extra={"recipe": value})


LARGEST = 2**31 - 1
"""Largest whole number: counts go through 32 bits in places."""


def require(condition: bool, key: str, found: Any, allowed: str) -> None:
    """Refuse a value in one sentence.

    Raises:
        ValueError: ``condition`` is false; names the key, what was found and what is allowed.
    """
    if not condition:
        raise ValueError(f"prune_opd.{key}: got {shown(found)}, allowed: {allowed}")


class Keys(BaseModel):
    """A group of keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # Hydra reads a folder named 7 as a number
    )

    def changed(self, **values: Any) -> Self:
        """The same with other values of some keys, checked anew."""
        return type(self)(**self.own() | values)

    def own(self) -> dict[str, Any]:
        """The keys alone, without what was built of them."""
        return {name: getattr(self, name) for name in type(self).model_fields}
