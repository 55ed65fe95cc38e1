"""Forms of what a run records: a page is drawn of values of these types and sizes, and no others.

A file may be damaged, of another version, or of another program altogether.
"""

from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

LARGEST = 2**53
"""Largest count: above it neighbouring whole numbers are one floating-point number."""
Count = Annotated[int, Ge(0), Le(LARGEST)]
Value = Annotated[float, Ge(-1e6), Le(1e6)]
"""Number of which a share, a log-prob or a weight is far from the bounds; NaN is none."""
Mean = Annotated[float, Ge(-1e300), Le(1e300)] | None
"""Mean of a step; None is a gap."""
NAMES = ("overlap", "events", "weight", "student_entropy", "teacher_entropy")


class _Form(BaseModel):
    model_config = ConfigDict(strict=True)


class Positions(_Form):
    """Means by position: N buckets."""

    edges: list[Count]
    """N + 1, ascending; none where there is no token."""
    tokens: list[Count]
    overlap: list[Mean]
    events: list[Mean]
    weight: list[Mean]
    student_entropy: list[Mean]
    teacher_entropy: list[Mean]

    @model_validator(mode="after")
    def _alike(self) -> "Positions":
        buckets = max(len(self.edges) - 1, 0)
        ascending = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        if not ascending or any(len(getattr(self, name)) != buckets for name in ("tokens", *NAMES)):
            raise ValueError("one value for each bucket")
        return self


class Record(_Form):
    """Line of a step, as far as a page needs all of it; other values are looked up one by one."""

    step: Annotated[int, Ge(1), Le(LARGEST)]
    positions: Positions


class Sample(_Form):
    """One response token by token: T tokens."""

    limit: Count
    effective_length: Count
    stopped: Count
    ended: Count
    prompt: str
    tokens: list[int]
    events: list[Count]
    overlap: list[Value | None]
    weight: list[Value]
    student_ids: list[list[int]]
    student_log_probs: list[list[Value | None]]
    teacher_ids: list[list[int]]
    teacher_log_probs: list[list[Value | None]]
    pieces: dict[str, str]

    @model_validator(mode="after")
    def _alike(self) -> "Sample":
        student = self.student_ids, self.student_log_probs
        teacher = self.teacher_ids, self.teacher_log_probs
        columns: list[list[Any]] = [self.overlap, self.weight, *student, *teacher]
        if {len(column) for column in columns} != {len(self.tokens)} or any(
            len(ids) != len(values)
            for rows in (student, teacher)
            for ids, values in zip(*rows, strict=True)
        ):
            raise ValueError("one entry for each token, one log-prob for each candidate")
        if not all(str(token) in self.pieces for token in self.tokens):
            raise ValueError("a text for each token")
        return self


def fault(form: type[BaseModel], value: Any) -> str | None:
    """Say what is wrong with a value for a form, the first of all; None where nothing is."""
    try:
        form.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        return f"{where}: {first['msg']}"
    return None
