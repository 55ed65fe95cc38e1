"""Equality of expressions: exact for rationals, else to a thousand digits relative to their size.

Expressions with letters are compared at points, where their letters are real numbers: there two
different expressions of the kinds that answers have do not agree by chance.
"""

import functools
import random
from collections.abc import Iterator

from sympy import (
    Expr,
    Float,
    I,
    Integer,
    MatrixBase,
    Mod,
    Pow,
    Product,
    Rational,
    Sum,
    Symbol,
    binomial,
    ceiling,
    factorial,
    floor,
    log,
    nan,
    oo,
    postorder_traversal,
    preorder_traversal,
    simplify,
    together,
    zoo,
)

DIGITS, MOST_DIGITS = 400, 1000
"""Digits that sympy is asked for, more than ``NOTHING`` has zeros, and works to at most."""
NOTHING = Float("1e-300")
"""Difference, relative to the numbers' size, that counts as none."""
INEXACT = 6
"""Decimals and significant digits that a decimal needs to stand for a number it does not equal."""

MOST_BITS = 3_000_000
"""Bits of a power's value, and the number whose factorial is taken, at most."""

Point = dict[Symbol, Expr]


def equal(one: Expr, other: Expr) -> bool:
    """Tell whether two expressions or matrices are equal, wherever both are real numbers."""
    if isinstance(one, MatrixBase) or isinstance(other, MatrixBase):
        return _equal_matrices(one, other)
    if one == other:
        return True
    one, other = one_case(_evaluated(one), _evaluated(other))
    if one.has(oo, -oo) or other.has(oo, -oo):
        return one == other
    if one.free_symbols or other.free_symbols:
        return _equal_functions(one, other)
    return equal_numbers(one, other)


def _equal_matrices(one: Expr, other: Expr) -> bool:
    if (
        not isinstance(one, MatrixBase)
        or not isinstance(other, MatrixBase)
        or one.shape != other.shape
    ):
        return False
    return all(equal(a, b) for a, b in zip(one, other, strict=True))


@functools.lru_cache(maxsize=256)
def _evaluated(expression: Expr) -> Expr:
    _check_size(expression)
    expression = expression.doit()
    return expression.replace(_is_odd_root, _real_root)


def _check_size(expression: Expr) -> None:
    """Raise MemoryError for a power or factorial that would take seconds to write down."""
    for node in postorder_traversal(expression):
        if (
            isinstance(node, Pow)
            and node.is_number
            and not (node.exp.is_Integer and abs(node.exp) < 100)
        ):
            size = node.exp.evalf(15) * log(abs(node.base.evalf(15)) + 2, 2).evalf(15)
        elif isinstance(node, factorial) and node.args[0].is_number:
            size = node.args[0].evalf(15)
        else:
            continue
        if size.is_extended_real and abs(size) > MOST_BITS:
            raise MemoryError(str(node)[:80])


def _is_odd_root(expression: Expr) -> bool:
    return (
        isinstance(expression, Pow)
        and expression.exp.is_Rational
        and expression.exp.q > 1
        and expression.exp.q % 2 == 1
        and bool(expression.base.is_extended_negative)
    )


def _real_root(power: Expr) -> Expr:
    """Real one of the odd roots of a negative number."""
    return Integer(-1) ** power.exp.p * (-power.base) ** power.exp


def one_case(one: Expr, other: Expr) -> tuple[Expr, Expr]:
    """Expressions with small letters, unless one letter occurs in both cases."""
    names = {symbol.name for symbol in one.free_symbols | other.free_symbols}
    if len({name.lower() for name in one_side(one)}) < len(one_side(one)):
        return one, other
    if len({name.lower() for name in one_side(other)}) < len(one_side(other)):
        return one, other
    if all(name == name.lower() for name in names):
        return one, other
    small = [
        side.xreplace({symbol: Symbol(symbol.name.lower()) for symbol in side.free_symbols})
        for side in (one, other)
    ]
    return small[0], small[1]


def one_side(expression: Expr) -> set[str]:
    """Names of an expression's letters."""
    return {symbol.name for symbol in expression.free_symbols}


def equal_numbers(one: Expr, other: Expr) -> bool:
    """Tell whether two expressions without letters are equal."""
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    if _far_apart(one.evalf(15), other.evalf(15)):
        return False
    difference = (one - other).evalf(DIGITS, maxn=MOST_DIGITS)
    if difference == 0:
        return True
    if (
        not difference.is_number
        or difference.has(nan, zoo)
        or difference.evalf().atoms(Sum, Product)
    ):
        return bool(simplify(one - other) == 0)
    size = max(_size(one), _size(other))
    return bool(abs(difference) <= max(NOTHING * size, Float(f"1e-{MOST_DIGITS}")))


def _far_apart(one: Expr, other: Expr) -> bool:
    """Tell whether approximate numbers differ for certain, which is quick to know."""
    if not (one.is_Float and other.is_Float) or one == 0 or other == 0:
        return False
    return bool(abs(one - other) > Float("1e-6") * abs(one))


def _size(number: Expr) -> Float:
    return abs(number.evalf(DIGITS, maxn=MOST_DIGITS)).evalf(15)


def rounds_to(number: Expr, decimals: int, exact: Expr) -> bool:
    """Tell whether a decimal stands for a number that has more digits, or none that end.

    It has to agree in six decimals and in six significant digits, and to be no more than its last
    digit away.

    Args:
        number: a decimal as a fraction.
        decimals: how many it is written with.
        exact: the number it may stand for.
    """
    value = exact.doit().evalf(60, maxn=MOST_DIGITS)
    if decimals < INEXACT or not value.is_real or value == 0 or not value.is_Number:
        return False
    size = int((log(abs(value), 10)).evalf(15) // 1)
    places = max(INEXACT, INEXACT - 1 - size)
    value = Rational(str(value))
    scaled = [side * 10**places + Rational(1, 2) for side in (number, value)]
    return floor(scaled[0]) == floor(scaled[1]) and abs(number - value) < Rational(1, 10**decimals)


def _equal_functions(one: Expr, other: Expr) -> bool:
    compared = 0
    for point in points(one, other):
        values = [value_at(side, point) for side in (one, other)]
        if values[0] is None or values[1] is None:
            continue
        if not equal_numbers(values[0], values[1]):
            return False
        compared += 1
    return compared >= 2 or bool(simplify(one - other) == 0)


def points(*expressions: Expr) -> Iterator[Point]:
    """Values for all letters of some expressions: positive, of either sign, and integers."""
    letters = sorted(set().union(*(side.free_symbols for side in expressions)), key=str)
    whole = any(_is_discrete(node) for side in expressions for node in preorder_traversal(side))
    whole |= any(side.has(floor, ceiling) for side in expressions) and {
        str(one) for one in letters
    } <= set("ijkmn")
    positive = whole or any(side.has(I) for side in expressions)
    chance = random.Random(0)
    for number in range(8):
        sign = [1, 1, 1, 1] if positive or number < 3 else [1, -1]
        if whole or number >= 6:
            values = [Integer(chance.randint(2, 9) * chance.choice(sign)) for _ in letters]
        else:
            values = [Rational(chance.randint(21, 199), 60) * chance.choice(sign) for _ in letters]
        yield dict(zip(letters, values, strict=True))


def _is_discrete(node: Expr) -> bool:
    if isinstance(node, Sum | Product | factorial | binomial | Mod):
        return bool(node.free_symbols)
    return (
        isinstance(node, Pow)
        and bool(node.base.is_extended_negative)
        and bool(node.exp.free_symbols)
    )


def value_at(expression: Expr, point: Point) -> Expr | None:
    """Value at a point; None if it is no real number although no imaginary unit occurs."""
    if not expression.has(I) and not all(
        _is_real(node, point) for node in preorder_traversal(expression)
    ):
        return None
    value = _evaluated(expression.xreplace(point))
    return None if value.has(nan, zoo, oo) else value


def _is_real(node: Expr, point: Point) -> bool:
    """Tell whether a root or logarithm is one of a positive number."""
    if isinstance(node, Pow) and not node.exp.is_integer:
        inner, power = node.base, node.exp.xreplace(point)
        if power.is_integer or (power.is_Rational and power.q % 2 == 1):
            return True
    elif isinstance(node, log):
        inner = node.args[0]
    else:
        return True
    value = inner.xreplace(point).evalf(15)
    return not (value.is_real and value < 0)


def proportional(one: Expr, other: Expr, positive: bool) -> bool:
    """Tell whether two expressions with letters are 0 for the same values, by a constant factor.

    Args:
        one: is 0 where an equation holds.
        other: the same of another equation.
        positive: the factor has to be positive, as it has to for inequalities.
    """
    one, other = one_case(_evaluated(one), _evaluated(other))
    if not positive:
        one, other = (together(side).as_numer_denom()[0] for side in (one, other))
    if not one.free_symbols or one.free_symbols != other.free_symbols:
        return False
    pairs = ((value_at(one, point), value_at(other, point)) for point in points(one, other))
    known = [
        (a, b) for a, b in pairs if a is not None and b is not None and not (a.is_zero or b.is_zero)
    ]
    if len(known) < 2:
        return False
    a, b = known[0]
    if positive and not (a * b).is_positive:
        return False
    return all(equal_numbers(a * d, b * c) for c, d in known[1:])
