"""Equality of two answers that have been read."""

import re
from collections.abc import Sequence

from sympy import Expr, MatrixBase, pi

from recipe.prune_opd.grading.numbers import equal, proportional, rounds_to
from recipe.prune_opd.grading.regions import is_equation, is_region, same_set
from recipe.prune_opd.grading.values import Group, Listing, Quantity, Relation, Value, Word

FLIPPED = {">": "<", ">=": "<="}
WORD = re.compile(r"\(?\s*(?:\\text\{\(?[A-Za-z .]+\)?\}|[A-Za-z ]+)\s*\)?")


def same(truth: Value, found: Value) -> bool:
    """Tell whether an answer is the truth, whose form decides: ``x=5`` is right for ``5``."""
    if truth.text == found.text or _same_word(truth, found):
        return True
    if isinstance(truth, Word) or isinstance(found, Word):
        return _same_word(truth, found, strict=False)
    truth, found = _unwrapped(truth, found)
    if isinstance(truth, Word) or isinstance(found, Word):
        return _same_word(truth, found, strict=False)
    if isinstance(truth, Quantity) and isinstance(found, Quantity):
        return _same_quantity(truth, found)
    if isinstance(truth, Relation) and isinstance(found, Relation):
        return _same_relation(truth, found)
    if isinstance(truth, Listing) and isinstance(found, Listing):
        return _same_listing(truth, found)
    if isinstance(truth, Group) and isinstance(found, Group):
        return _same_group(truth, found)
    if _is_vector(truth, found) or _is_vector(found, truth):
        return _same_vector(truth, found)
    if _is_bare_tuple(truth, found) or _is_bare_tuple(found, truth):
        return _same_sequence(truth.items, found.items)  # type: ignore[attr-defined]
    for one, other in ((truth, found), (found, truth)):
        coordinates = _coordinates(one, other)
        if coordinates is not None:
            return _same_sequence(coordinates, other.items)  # type: ignore[attr-defined]
    return same_set(truth, found)


def _is_bare_tuple(listing: Value, group: Value) -> bool:
    """Tell whether one is ``1,2`` and the other ``(1,2)``."""
    if not isinstance(listing, Listing) or not isinstance(group, Group) or listing.kind != ",":
        return False
    relations = any(isinstance(item, Relation) for item in listing.items)
    return (group.opening, group.closing) == ("(", ")") and not relations


def _is_vector(column: Value, group: Value) -> bool:
    r"""Tell whether one is ``\begin{pmatrix}1\\2\end{pmatrix}`` and the other ``(1,2)``."""
    return (
        isinstance(column, Quantity)
        and isinstance(group, Group)
        and (group.opening, group.closing) == ("(", ")")
        and getattr(column.expression, "shape", None) == (len(group.items), 1)
    )


def _same_vector(truth: Value, found: Value) -> bool:
    return _same_sequence(_entries(truth), _entries(found))


def _entries(value: Value) -> Sequence[Value]:
    if isinstance(value, Quantity):
        return [Quantity(str(entry), entry) for entry in value.expression]
    return value.items if isinstance(value, Group) else ()


def _coordinates(listing: Value, group: Value) -> Sequence[Value] | None:
    """Values of ``y=2, x=1`` by name, for the tuple ``(1,2)``; None if it is something else."""
    if not isinstance(listing, Listing) or not isinstance(group, Group) or listing.kind == "or":
        return None
    by_name = {
        item.terms[0].text: item.terms[-1]
        for item in listing.items
        if isinstance(item, Relation)
        and item.signs == ("=",)
        and re.fullmatch("[a-z]", item.terms[0].text)
    }
    whole = len(by_name) == len(listing.items) and (group.opening, group.closing) == ("(", ")")
    return [by_name[name] for name in sorted(by_name)] if whole else None


def _same_word(truth: Value, found: Value, strict: bool = True) -> bool:
    """Tell whether both are the same word, in any type; ``strict`` asks for letters alone."""
    if strict and not (WORD.fullmatch(truth.text) and WORD.fullmatch(found.text)):
        return False
    return _letters(truth.text) == _letters(found.text)


def _letters(text: str) -> str:
    text = re.sub(r"(?<=[\d.,])\s+(?=\d)", "_", text)  # 1 2 is not 12
    text = re.sub(r"^(?:\\text\{)?\s*(?:an?|the)\s+(?=[a-z]{3})", "", text, flags=re.IGNORECASE)
    return re.sub(r"\\text|\\(?=and|or)|[{}()\s'\"]|(?<!\d)[.,-]|[.,-](?!\d)", "", text).casefold()


def _unwrapped(truth: Value, found: Value) -> tuple[Value, Value]:
    r"""Parts to compare of ``x=5`` and ``5``, of ``x \in S`` and ``S``, and of a list of one."""
    truth, found = _only_item(truth), _only_item(found)
    if isinstance(found, Relation) and not isinstance(truth, Relation) and is_equation(found):
        if found.terms[-1].text != "0" or _is_name(found.terms[0]):
            found = found.terms[-1]
        return truth, found
    assigned = isinstance(truth, Relation) and is_equation(truth) and _is_name(truth.terms[0])
    if assigned and not isinstance(found, Relation):
        truth = truth.terms[-1]  # type: ignore[attr-defined]
    return truth, found


def _only_item(value: Value) -> Value:
    if not isinstance(value, Listing):
        return value
    items = _distinct(value.items)
    return items[0] if len(items) == 1 else value


def _is_name(value: Value) -> bool:
    """Tell whether a term is a letter, a product of letters, a call of a function, or a word."""
    if isinstance(value, Quantity):
        return all(
            node.is_Symbol or node.is_Mul or node.is_Add
            for node in [value.expression, *value.expression.args]
        )
    return isinstance(value, Word) or (
        isinstance(value, Group) and all(_is_name(item) for item in value.items)
    )


def _same_quantity(truth: Quantity, found: Quantity) -> bool:
    if truth.base != found.base and "" not in (truth.base, found.base):
        return False
    if truth.unit != found.unit and "" not in (truth.unit, found.unit):
        return {truth.unit, found.unit} == {"°", "radian"} and _same_angle(truth, found)
    one, other = truth.expression, found.expression
    if _same_number(truth, found, one, other):
        return True
    if truth.percent != found.percent:
        one, other = (one / 100, other) if truth.percent else (one, other / 100)
        return _same_number(truth, found, one, other)
    return "°" in (truth.unit, found.unit) and _same_angle(truth, found)


def _same_angle(truth: Quantity, found: Quantity) -> bool:
    """Tell whether one is in degrees and the other, with π in it, in radians."""
    degrees, radians = (truth, found) if truth.unit == "°" else (found, truth)
    return radians.expression.has(pi) and equal(degrees.expression * pi / 180, radians.expression)


def _same_number(truth: Quantity, found: Quantity, one: Expr, other: Expr) -> bool:
    if equal(one, other):
        return True
    if (
        isinstance(one, MatrixBase)
        or isinstance(other, MatrixBase)
        or one.free_symbols
        or other.free_symbols
    ):
        return False
    sides = [
        (one, truth.decimals, other, found.decimals),
        (other, found.decimals, one, truth.decimals),
    ]
    return any(
        rounds_to(number, decimals + 2 * percent, exact)
        for (number, decimals, exact, more), percent in zip(
            sides, (truth.percent, found.percent), strict=True
        )
        if decimals is not None and (more is None or decimals <= more)
    )


def _same_items(truth: Sequence[Value], found: Sequence[Value]) -> bool:
    """Tell whether two lists hold the same, in any order, however often."""
    left, right = _distinct(truth), _distinct(found)
    if len(left) != len(right):
        return False
    for item in left:
        match = next((number for number, other in enumerate(right) if same(item, other)), None)
        if match is None:
            return False
        right.pop(match)
    return True


def _same_listing(truth: Listing, found: Listing) -> bool:
    regions = any(is_region(item) for item in (*truth.items, *found.items))
    if regions and {truth.kind, found.kind} == {"and", "or"}:
        return same_set(truth, found)
    return _same_items(truth.items, found.items) or same_set(truth, found)


def _distinct(items: Sequence[Value]) -> list[Value]:
    kept: list[Value] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return kept


def _same_sequence(truth: Sequence[Value], found: Sequence[Value]) -> bool:
    return len(truth) == len(found) and all(
        same(one, other) for one, other in zip(truth, found, strict=True)
    )


def _same_group(truth: Group, found: Group) -> bool:
    brackets = (truth.opening, truth.closing) == (found.opening, found.closing)
    return brackets and _same_sequence(truth.items, found.items)


def _same_relation(truth: Relation, found: Relation) -> bool:
    if is_equation(truth) and is_equation(found):
        ends = [(relation.terms[0], relation.terms[-1]) for relation in (truth, found)]
        if same(ends[0][0], ends[1][0]) and same(ends[0][1], ends[1][1]):
            return True
        differences = [_difference(*terms) for terms in ends]
        if None in differences:
            return False
        return proportional(differences[0], differences[1], positive=False)
    links, others = _links(truth), _links(found)
    if links and others and len(links) == len(others):
        left = list(others)
        for link in links:
            match = next((other for other in left if _same_link(link, other)), None)
            if match is None:
                break
            left.remove(match)
        else:
            return True
    return _names(truth) == _names(found) and same_set(truth, found)


def _difference(left: Value, right: Value):  # type: ignore[no-untyped-def]
    if isinstance(left, Quantity) and isinstance(right, Quantity):
        return left.expression - right.expression
    return None


def _links(relation: Relation) -> list[tuple[str, object]]:
    """Relations of a chain, each as a sign and what is on its left less what is on its right."""
    found = []
    for left, sign, right in zip(relation.terms, relation.signs, relation.terms[1:], strict=False):
        if sign in FLIPPED:
            left, sign, right = right, FLIPPED[sign], left
        difference = _difference(left, right)
        if difference is None:
            return []
        found.append((sign, difference))
    return found


def _same_link(one: tuple, other: tuple) -> bool:
    return one[0] == other[0] and proportional(one[1], other[1], positive=one[0] in ("<", "<="))


def _names(value: Value) -> set[str]:
    if isinstance(value, Quantity):
        return {symbol.name.lower() for symbol in value.expression.free_symbols}
    inner = (
        getattr(value, "terms", ()) or getattr(value, "items", ()) or getattr(value, "parts", ())
    )
    return set().union(*(_names(item) for item in inner))
