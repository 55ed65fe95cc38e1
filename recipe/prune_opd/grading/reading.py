r"""Reading of answers: text as a ``Value``.

The structure (lists, sets, tuples, relations) is read here; single expressions are left to
latex2sympy, the parser of math-verify.
"""

import re

from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy import Expr, Float, I, MatrixBase, MatrixExpr, Rational, Symbol, nan, zoo
from sympy.core.function import AppliedUndef

from recipe.prune_opd.grading.latex import CLOSING, OPENING, TOKEN, replace_command, split_outside
from recipe.prune_opd.grading.notation import canonical
from recipe.prune_opd.grading.sentences import without_prose
from recipe.prune_opd.grading.units import split_unit, without_ordinals
from recipe.prune_opd.grading.values import (
    Group,
    Listing,
    Quantity,
    Region,
    Relation,
    UnreadableError,
    Value,
    Word,
)

LISTS = {",": ",", ";": ",", r"\and": "and", r"\or": "or"}
SIGNS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\in": "in",
    r"\notin": "not in",
}
SIGNS |= {r"\approx": "=", r"\equiv": "=", r"\to": "=", r"\mapsto": "=", r"\coloneqq": "="}
BEFORE = {"=", r"\in", r"\approx", r"\equiv", r"\to", r"\mapsto", r"\coloneqq"}
CONDITIONS = {"<", ">", "<=", ">=", "!=", "in", "not in"}
OPERATORS = {r"\cup", r"\cap", r"\setminus"}
ALL_REALS = re.compile(
    r"(?:\\text\{)?\s*(?:all |the |set of )*real(?: numbers|s)\s*\}?", re.IGNORECASE
)
NAMED_SET = re.compile(r"\\mathbb\s*\{?\s*[RZQNC]\s*\}?|\\emptyset")

THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?!\d)")
BASE = re.compile(r"\(?\s*(-?\d+)\s*\)?\s*_\s*\{?\s*(?:\\text\{\s*)?([A-Za-z]{3,}|\d+)\s*\}?\s*\}?")
NAMED_BASE = re.compile(
    r"(\d)\s*(?:_\{?)?\s*(?:\\text\{)?\s*\(?(?:in )?base[\s~}]*(\d+|[a-z]+)[\s)}]*$"
)
DECIMAL = re.compile(r"[(\s]*[+-]?\s*\d*\.(\d+)[)\s]*")
POINT = re.compile(r"^[A-Z]'?\s*(?=\([^()]*,.*\)$)")
TIME = re.compile(r"\d{1,2}\s*:\s*\d\d(?:\s*(?:\\text\{)?\s*[ap]\.?m\.?\s*\}?)?", re.IGNORECASE)
LETTERS = re.compile(r"(?:\\text\{[^{}]*\}|[A-Za-z\s.,'()-])+")
WORDS = {"yes", "no", "true", "false", "even", "odd", "none"}
"""Words that are no product of letters."""
DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?")
NUMERALS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
NUMERALS |= {"ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"}
CONVERSION = ConversionConfig(lowercase_symbols=False)


def read(text: str) -> tuple[Value, str]:
    """Read a text, and the condition it puts on what it says, "" for none.

    Raises:
        UnreadableError: it says nothing that can be compared.
    """
    main, condition = without_prose(without_ordinals(canonical(text)))
    if not main:
        raise UnreadableError(text)
    return _read(main), condition


def _read(text: str) -> Value:
    """Read a list or a single answer."""
    text = text.strip()
    pieces, separators = split_outside(_joined_thousands(text), set(LISTS))
    items = [value for piece in pieces if piece.strip() for value in _signs(piece.strip())]
    if not items:
        raise UnreadableError(text)
    kinds = {LISTS[separator] for separator in separators} - {","}
    items = items if "or" in kinds else _without_conditions(items)
    if len(items) == 1:
        return items[0]
    return Listing(text, tuple(items), kinds.pop() if len(kinds) == 1 else ",")


def _joined_thousands(text: str) -> str:
    """Text without the commas of ``1,234``; in a list only if spaces tell them apart."""
    number = split_unit(text)[0]
    alone = THOUSANDS.fullmatch(re.sub(r"\.\d+$", "", number.strip(" %")))
    if alone or (", " in text and re.search(r"\d,\d{3}(?!\d)", text)):
        return THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return text


def _signs(text: str) -> list[Value]:
    r"""Values of ``a \pm b``, one for each sign, or the one value of anything else."""
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", re.sub(r"\\\{.*?\\\}", "", text)):
        return [_single(text)]
    both = []
    for plus, minus in (("+", "-"), ("-", "+")):
        chosen = re.sub(r"\\pm(?![A-Za-z])", plus, text)
        both.append(_single(re.sub(r"\\mp(?![A-Za-z])", minus, chosen)))
    return both


def _without_conditions(items: list[Value]) -> list[Value]:
    r"""Items without relations at the end that only say which letters are meant, ``n \ge 1``."""

    def condition(item: Value) -> bool:
        return isinstance(item, Relation) and bool(CONDITIONS & set(item.signs))

    kept = list(items)
    while len(kept) > 1 and condition(kept[-1]) and not condition(kept[0]):
        if not _letters(kept[-1].text) & _letters(" ".join(item.text for item in kept[:-1])):
            return items
        kept.pop()
    return kept


def _letters(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+|\{[A-Za-z]{2,}\}", " ", text)))


def _single(text: str) -> Value:
    """Read an answer that is no list."""
    if not text.strip():
        raise UnreadableError(text)
    if ALL_REALS.fullmatch(text):
        return Region(r"\mathbb{R}", (), ())
    if TIME.fullmatch(text) or text.lower() in WORDS or re.fullmatch(r"\\text\{[^{}]*\}", text):
        return Word(text)
    exact = split_outside(text, {r"\approx"})[0][0]
    text = text if re.fullmatch(r"[A-Za-z\s_{}()]*", exact) else exact.strip()
    pieces, signs = split_outside(text, set(SIGNS))
    if signs:
        if not pieces[0].strip():
            if set(signs) - BEFORE:
                raise UnreadableError(text)  # > 5 is not 5
            return _single(pieces[-1].strip())
        terms = (*(_left_side(piece) for piece in pieces[:-1]), _read(pieces[-1]))
        return Relation(text, terms, tuple(SIGNS[sign] for sign in signs))
    pieces, operators = split_outside(text, OPERATORS)
    if operators:
        return Region(text, tuple(_read(piece) for piece in pieces), tuple(operators))
    if NAMED_SET.fullmatch(text):
        return Region(text, (), ())
    return _ratio(text) or _bracketed(POINT.sub("", text)) or quantity(text)


def _ratio(text: str) -> Value | None:
    """Ratio ``2:4:6`` as what it is to 1, so that it equals ``1:2:3``; None for two terms."""
    pieces = split_outside(text, {":"})[0]
    if len(pieces) < 3:
        return None
    first = pieces[0].strip()
    return Group(
        text, ":", tuple(quantity(f"\\frac{{{piece.strip()}}}{{{first}}}") for piece in pieces), ":"
    )


def _left_side(text: str) -> Value:
    """Read a term that only names the answer, and so may be anything: ``P(X=2)``."""
    try:
        return _read(text)
    except UnreadableError:
        return Word(text)


def _bracketed(text: str) -> Value | None:
    """Read a set, a tuple, an interval or parentheses; None if brackets are not all around."""
    tokens = [token for token in TOKEN.finditer(text) if not token.group().isspace()]
    first, last = tokens[0].group(), tokens[-1].group()
    if first not in ("(", "[", r"\{", r"\langle") or last not in (")", "]", r"\}", r"\rangle"):
        return None
    depth = 0
    for token in tokens[:-1]:
        depth += (token.group() in OPENING) - (token.group() in CLOSING)
        if depth == 0:
            return None
    content = text[tokens[0].end() : tokens[-1].start()].strip()
    if first == r"\{":
        return _set(text, content)
    pieces, separators = split_outside(content, {",", ";"})
    if not separators:
        return _single(content) if (first, last) == ("(", ")") and content else None
    first, last = first.replace(r"\langle", "("), last.replace(r"\rangle", ")")
    return Group(text, first, tuple(_read(piece) for piece in pieces), last)


def _set(text: str, content: str) -> Value:
    builder, found = split_outside(content, {"|", ":"})
    if len(found) == 1 and re.fullmatch(
        r"\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\{?R\}?\s*)?", builder[0]
    ):
        return _read(builder[1])
    inner = _read(content)
    items = inner.items if isinstance(inner, Listing) else (inner,)
    return Listing(text, items, "{}")


def quantity(text: str) -> Value:
    """Read an expression with its unit, base and percent sign, or a word."""
    number, unit = split_unit(NAMED_BASE.sub(r"\1_{\2}", text))
    number, percent = number.strip(), unit in ("percent", "%")
    if number.endswith("%"):
        number, percent = number[:-1].strip(), True
    base = BASE.fullmatch(number)
    if base:
        number = base[1]
    if re.search(r"(?<![_^\d.])\d+\.?\s+\d", number):
        return Word(text)  # a product, a mixed number or a missing comma
    decimal = DECIMAL.fullmatch(number)
    try:
        expression = parse_expression(number)
    except UnreadableError:
        if LETTERS.fullmatch(text):
            return Word(text)
        raise
    return Quantity(
        text,
        expression,
        unit="" if percent else unit,
        base=NUMERALS.get(base[2], base[2]) if base else "",
        percent=percent,
        decimals=len(decimal[1]) if decimal else None,
    )


def parse_expression(text: str) -> Expr | MatrixBase:
    """Parse one text, unevaluated; decimals as exact fractions, the letter i as the imaginary unit.

    Raises:
        UnreadableError: latex2sympy cannot parse it, or it divides by 0.
    """
    if "!!" in text:
        raise UnreadableError(text)  # the parser takes a double factorial for two
    text = DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = replace_command(text, "binom", 2, lambda top, bottom: rf"(\Binom{{{top}}}{{{bottom}}})")
    text = text.replace(r"\Binom", r"\binom")
    # latex2sympy takes 2(3), as 2\frac{1}{2}, for a mixed number
    text = re.sub(r"(?<=[\d)])\s*(?=\()|(?<=\))\s*(?=\d|\\frac)", r" \\cdot ", text)
    text = re.sub(r"(?<![A-Za-z\\])([abcdeklmnrstuvwxyz])\s*(?=\()", r"\1 \\cdot ", text)
    try:
        found = latex2sympy(
            text, is_real=None, normalization_config=None, conversion_config=CONVERSION
        )
        found = _exact(found)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # of any kind, by the parser and by sympy's constructors
        raise UnreadableError(text) from error
    if isinstance(found, MatrixExpr):
        found = found.as_explicit()
    if not isinstance(found, Expr | MatrixBase) or found.has(nan, zoo):
        raise UnreadableError(text)
    return found


def _exact(expression: Expr) -> Expr:
    floats = {number: Rational(str(number)) for number in expression.atoms(Float)}
    functions = {
        call: Symbol(str(call).replace(" ", "")) for call in expression.atoms(AppliedUndef)
    }
    imaginary = {Symbol("i"): I} if Symbol("i") in expression.free_symbols else {}
    replaced = {**floats, **functions, **imaginary}
    return expression.xreplace(replaced) if replaced else expression
