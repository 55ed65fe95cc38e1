"""Shape of a value: its types, keys and roles, what is null and what is blank, but no other text.

Two rows of one shape are alike to a chat template and to the checks, so of millions of rows a few
are worth a look.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

NULL, BLANK, TEXT, OTHER = "-", "b", "t", "o"
FIELDS, ITEMS = "\x1f", "\x1e"
"""Separators that no role has."""


def first_of_each(values: Any, exact: bool = False) -> Iterator[tuple[Any, int]]:
    """Find every shape among the values and the first value that has it, in their order.

    Args:
        values: (N,) Arrow array, or a list.
        exact: tell texts apart by what they say, not by their shape.
    """
    if isinstance(values, list) or not regular(values.type):
        values = values if isinstance(values, list) else values.to_pylist()
        found: dict[Any, int] = {}
        for row, value in enumerate(values):
            found.setdefault(value if exact and isinstance(value, str) else shape_of(value), row)
        yield from found.items()
        return
    import pyarrow.compute as pc

    marks = values if exact and _is_text(values.type) else marks_of(values)
    encoded = pc.dictionary_encode(marks, null_encoding="encode")
    codes, rows = np.unique(encoded.indices.to_numpy(), return_index=True)
    for row, code in sorted(zip(rows.tolist(), codes.tolist(), strict=True)):
        yield encoded.dictionary[code].as_py(), row


def shape_of(value: Any) -> Any:
    """Shape of a Python value, hashable."""
    if value is None:
        return NULL
    if isinstance(value, str):
        return TEXT if value.strip() else BLANK
    if isinstance(value, list):
        return ("list", *map(shape_of, value))
    if isinstance(value, dict):
        roles = {key: one for key, one in value.items() if key == "role" and isinstance(one, str)}
        return tuple((key, roles.get(key) or shape_of(one)) for key, one in value.items())
    return type(value).__name__


def marks_of(values: Any) -> Any:
    """Shapes of an Arrow array of a ``regular`` type, (N,) as texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, null = values.type, pc.is_null(values)
    if _is_text(kind):
        blank = pc.or_(pc.equal(pc.binary_length(values), 0), pc.utf8_is_space(values))
        marks = pc.if_else(blank, BLANK, TEXT)
    elif pa.types.is_struct(kind) and kind.num_fields:
        fields = [(kind.field(i).name, pc.struct_field(values, i)) for i in range(kind.num_fields)]
        columns = [_role(column) if name == "role" else marks_of(column) for name, column in fields]
        marks = pc.binary_join_element_wise("{", *columns, FIELDS)
    elif _is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        items = pa.ListArray.from_arrays(offsets, marks_of(values.flatten()))
        marks = pc.binary_join_element_wise("[", pc.binary_join(items, ITEMS), ITEMS)
    else:
        marks = pa.array(np.full(len(values), OTHER, dtype=object), pa.string())
    return pc.if_else(null, NULL, marks)


def _role(values: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return (
        pc.fill_null(pc.cast(values, pa.string()), NULL)
        if _is_text(values.type)
        else marks_of(values)
    )


def regular(kind: Any) -> bool:
    """Tell whether an Arrow type is of texts, numbers, lists and structs, as ``marks_of`` needs."""
    import pyarrow as pa

    if _is_list(kind):
        return regular(kind.value_type)
    if pa.types.is_struct(kind):
        return all(regular(kind.field(i).type) for i in range(kind.num_fields))
    return _is_text(kind) or pa.types.is_primitive(kind) or pa.types.is_null(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
