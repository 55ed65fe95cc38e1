"""Values as somebody else's file or server may hold them: of another type, size or shape."""

from typing import Any

from hypothesis import strategies as st

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**60, 10**400, 1e300, -1e308, float("inf"), float("nan"), 0.5]),
    st.sampled_from(["", "x", "\ud800", "9" * 300]),
    st.just([]),
    st.just({}),
    st.just([[1]]),
    st.just([None, "x"]),
    st.just({"a": 1}),
)


@st.composite
def mutated(draw: Any, value: Any) -> Any:
    """The same with another value somewhere in it, or without one."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 8)) == 0:
            return {name: one for name, one in value.items() if name != key}
        return value | {key: draw(mutated(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        if draw(st.integers(0, 8)) == 0:
            return value[:at] + value[at + 1 :]
        return [*value[:at], draw(mutated(value[at])), *value[at + 1 :]]
    return draw(ODD)
