"""Sets of real numbers: intervals, unions and inequalities, and whether two are the same."""

import re

from sympy import (
    And,
    Complement,
    Dummy,
    EmptySet,
    Eq,
    Expr,
    FiniteSet,
    Ge,
    Gt,
    Intersection,
    Interval,
    Le,
    Lt,
    Ne,
    S,
    Set,
    Symbol,
    Union,
)

from recipe.prune_opd.grading.numbers import equal
from recipe.prune_opd.grading.values import Group, Listing, Quantity, Region, Relation, Value

SIGNS = {"<": Lt, ">": Gt, "<=": Le, ">=": Ge, "!=": Ne, "=": Eq}
NAMED_SETS = {"R": S.Reals, "Z": S.Integers, "N": S.Naturals, "Q": S.Rationals, "C": S.Complexes}


def is_equation(relation: Relation) -> bool:
    """Tell whether a relation says what its first term is."""
    return set(relation.signs) <= {"=", "in"}


def same_set(truth: Value, found: Value) -> bool:
    """Tell whether both are the same set of real numbers, as intervals, unions or inequalities."""
    if not any(is_region(value) for value in (truth, found)):
        return False
    one, other = as_set(truth), as_set(found)
    if one is None or other is None:
        return False
    if one == other:
        return True
    left, right = _parts(one), _parts(other)
    if left and right:
        return _same_parts(*left, *right)
    return bool(one.symmetric_difference(other).is_empty)


def is_region(value: Value) -> bool:
    """Tell whether a value is, or holds, an inequality or a union."""
    if isinstance(value, Listing):
        return any(is_region(item) for item in value.items)
    return isinstance(value, Region) or (isinstance(value, Relation) and not is_equation(value))


def _parts(region: Set) -> tuple[list[Interval], list[Expr]] | None:
    """Intervals from left to right, and single points; None for a set that is not made of these."""
    parts = region.args if isinstance(region, Union) else (region,)
    if not all(isinstance(part, Interval | FiniteSet) or part == EmptySet for part in parts):
        return None
    intervals = sorted(
        (part for part in parts if isinstance(part, Interval)), key=lambda part: part.start.evalf()
    )
    return intervals, [
        point for part in parts if isinstance(part, FiniteSet) for point in part.args
    ]


def _same_parts(intervals: list, points: list, others: list, other_points: list) -> bool:
    if len(intervals) != len(others) or len(points) != len(other_points):
        return False
    return all(_same_interval(*pair) for pair in zip(intervals, others, strict=True)) and all(
        any(equal(point, other) for other in other_points) for point in points
    )


def _same_interval(one: Interval, other: Interval) -> bool:
    if (one.left_open, one.right_open) != (other.left_open, other.right_open):
        return False
    return equal(one.start, other.start) and equal(one.end, other.end)


def as_set(value: Value) -> Set | None:
    """Set of real numbers that a value is, None if it is none."""
    if isinstance(value, Region):
        return _region(value)
    if isinstance(value, Group):
        if len(value.items) != 2 or not all(isinstance(item, Quantity) for item in value.items):
            return None
        start, end = (item.expression.doit() for item in value.items if isinstance(item, Quantity))
        if start.free_symbols or end.free_symbols:
            return None
        return Interval(start, end, value.opening == "(", value.closing == ")")
    if isinstance(value, Listing):
        return _listed(value)
    if isinstance(value, Relation):
        return as_set(value.terms[-1]) if value.signs == ("in",) else _solutions(value)
    return FiniteSet(value.expression.doit()) if isinstance(value, Quantity) else None


def _region(region: Region) -> Set | None:
    if not region.operators:
        return (
            EmptySet
            if "emptyset" in region.text
            else NAMED_SETS[re.sub(r"\\mathbb|[{}\s]", "", region.text)]
        )
    parts = [as_set(part) for part in region.parts]
    if any(part is None for part in parts):
        return None
    found = parts[0]
    for operator, part in zip(region.operators, parts[1:], strict=True):
        found = {r"\cup": Union, r"\cap": Intersection, r"\setminus": Complement}[operator](
            found, part
        )
    return found


def _listed(listing: Listing) -> Set | None:
    """Finite set, or what inequalities say; a comma means both if some number meets both."""
    parts = [as_set(item) for item in listing.items]
    if any(part is None for part in parts):
        return None
    if not any(is_region(item) for item in listing.items) or listing.kind in ("or", "{}"):
        return Union(*parts)
    both = Intersection(*parts)
    return Union(*parts) if both.is_empty and listing.kind == "," else both


def _solutions(relation: Relation) -> Set | None:
    """Numbers for which an inequality of one letter holds."""
    if not all(isinstance(term, Quantity) for term in relation.terms) or not set(
        relation.signs
    ) <= set(SIGNS):
        return None
    terms = [term.expression for term in relation.terms if isinstance(term, Quantity)]
    letters: set[Symbol] = set().union(*(term.free_symbols for term in terms))
    if len(letters) != 1:
        return None
    letter = Dummy("x", real=True)
    terms = [term.doit().xreplace({next(iter(letters)): letter}) for term in terms]
    signs = zip(terms, relation.signs, terms[1:], strict=False)
    try:
        return And(*(SIGNS[sign](left, right) for left, sign, right in signs)).as_set()
    except (NotImplementedError, TypeError, AttributeError):
        return None
