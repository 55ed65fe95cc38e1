r"""Units, ordinals, percent signs and other words behind a number."""

import re

from recipe.prune_opd.grading.symbols import table, words

NUMBER = re.compile(r"\d|\\pi|\}")
WORDS = re.compile(
    r"(?P<number>.*?)\s*(?P<words>(?:\\text\{[^{}]*\}|(?<=[\d\s)}])"
    r"(?:(?:[mcdk]m|inch(?:es)?|in|ft|feet|yd)(?=\s*\^)|[A-Za-z]{2,}\.?(?![A-Za-z(\\{_^=])))"
    r"(?:[\s/-]*(?:\\text\{[^{}]*\}|[A-Za-z]{1,}\.?))*)"
    r"\s*(?:\^\s*\{?\s*(?P<power>\\circ|\d+)\s*\}?)?",
    re.DOTALL,
)
"""Number, the words behind it that end an answer, and their power."""
BARE = set(
    words("""
        mm cm dm km in ft yd mi mg kg lb lbs oz ml sec hr hrs min mph kmh rpm inch inches feet foot
        day days cent cents deg degree degrees unit units sq cubic usd yen men pts
    """)
)
r"""Units without ``\text`` that are no product of letters; nor are longer words behind a space."""
LETTERS = set(words("in ft mi hr lb oz mg ml dm yd"))
r"""Units that are a product behind other letters: ``2\pi hr``."""
DEGREES = re.compile(r"(.*?)\s*\^\s*\{?\s*\\circ\s*\}?\s*(\\text\{[^{}]*\}|[CFK])?", re.DOTALL)
FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
ORDINAL = re.compile(
    r"((?<![\d.])\d+)\s*-?\s*(?:\^\s*\{?\s*)?"
    r"(?:\\text\{\s*-?(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)(?![A-Za-z]))\s*\}?"
)
MULTIPLES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
QUALIFIERS = set(
    words("""
        or more less fewer greater least most not to plus minus times than and between below above
        under over by factorial half divided halves thirds quarters fourths fifths sixths eighths
        tenths hundredths
    """)
)
"""Words that say that the number alone is not the answer."""
POWERS = table("""
    2 square sq sq. squared
    3 cubic cu cu. cubed
""")
SYMBOLS = table("""
    mm millimeter millimetre
    cm centimeter centimetre
    m meter metre
    km kilometer kilometre
    in inch inches
    ft foot feet
    yd yard
    mi mile
    g gram
    kg kilogram
    lb pound lbs
    L liter litre
    s second sec
    min minute
    h hour hr hrs
    ° degree degrees deg
    cents cent
    dollars dollar usd
    % percentage
""")
"""Names of units that are as common as their symbols."""


def split_unit(answer: str) -> tuple[str, str]:
    """Split a number from the unit behind it, ``cm^2`` for ``square centimeters``; "" for none.

    Args:
        answer: in the notation of ``canonical``.
    """
    answer = answer.strip()
    degrees = DEGREES.fullmatch(answer)
    if degrees and NUMBER.search(degrees[1]) and not FUNCTION.search(degrees[1]):
        scale = re.sub(r"\\text|[{}\s]", "", degrees[2] or "")
        return degrees[1], "°" + (scale if scale in ("C", "F", "K") else "")
    match = WORDS.fullmatch(answer)
    if (
        not match
        or not NUMBER.search(match["number"])
        or match["number"].rstrip().endswith(("^", "_"))
    ):
        return answer, ""
    if not _is_unit(match["number"], match["words"], answer[match.end("number") :]):
        return answer, ""
    words = re.sub(r"\\text|[{}]", " ", match["words"]).split()
    lower = [word.lower() for word in words]
    if QUALIFIERS & set(lower) or lower in (["squared"], ["cubed"]):
        return answer, ""
    power = match["power"] or ""
    if words and words[0].lower() in MULTIPLES:
        factor = MULTIPLES[words.pop(0).lower()]
        return rf"({match['number']}) \cdot {factor}", _unit(words, power)
    return match["number"], _unit(words, power)


def _is_unit(number: str, words: str, rest: str) -> bool:
    """Tell whether words, with what precedes them, are a unit and not letters to multiply."""
    if words.startswith(r"\text"):
        return True
    first = re.match(r"[A-Za-z]+", words)
    name = first.group().lower() if first else ""
    if name in LETTERS and re.search(r"[A-Za-z]", number):
        return False
    return name in BARE or (rest[:1].isspace() and len(name) >= 4)


def _unit(words: list[str], power: str) -> str:
    words = (
        [word for word in words if word.lower() not in ("of", "in")] if len(words) > 2 else words
    )
    if len(words) > 1 and words[0].lower() in POWERS:
        power = POWERS[words.pop(0).lower()]
    elif len(words) > 1 and words[-1].lower() in POWERS:
        power = POWERS[words.pop().lower()]
    words = [_symbol(word) for word in words]
    return " ".join(words) + (f"^{power}" if words and power else "")


def _symbol(word: str) -> str:
    word = word.strip(".") or word
    if word not in SYMBOLS and len(word) > 4 and word.endswith("s"):
        word = word.removesuffix("s")
    return SYMBOLS.get(word.lower() if len(word) > 2 else word, word)


def without_ordinals(answer: str) -> str:
    r"""Replace ``12^{\text{th}}`` in an answer by ``12``."""
    return ORDINAL.sub(r"\1 ", answer)
