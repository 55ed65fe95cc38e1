r"""Sentences around an answer: ``\text{The values are }`` before, ``\text{ for all } n`` behind."""

import re

from recipe.prune_opd.grading.latex import split_outside

PHRASE = re.compile(
    r"\\text\{([^{}]*)\}\s*[:=]?\s*(?=\S)|([A-Za-z'’]+(?:[ ,]+[A-Za-z'’]+)*\s*:?)\s+(?=\S)"
)
LEADS = re.compile(
    r"(?:so|thus|hence|therefore|exactly|only|just|precisely|approximately|about|both|total|point)"
    r"\s*|.*(?:\b(?:is|are|be|equals?|equal to|gives|get|has|have|answers?|values?|solutions?"
    r"|result)\s*[:=]?|[:=])\s*",
    re.IGNORECASE | re.DOTALL,
)
DENIES = re.compile(
    r"\b(?:not|no|n't|never|less|more|greater|fewer|than|least|most|except|minus|negative)\b",
    re.IGNORECASE,
)
WORDS = (
    "for|where|with|when|whenever|if|such that|provided|given|assuming|because|since|whose"
    "|in which|only if|iff|unless"
)
MODULUS = (
    r"\\pmod(?![A-Za-z])|\(\s*\\?(?:b?mod|\\text\{mod\})|\\text\{\(mod\}|(?<=[\d\s])mod(?=\s*\d)"
)
ANY = r",\s*[a-z]\s*\\?(?:text\{)?\s*(?:is )?(?:any|an|a) (?:\w+ )*(?:integer|number|constant|real)"
CONDITION = re.compile(
    rf"{ANY}|\s*[,;]?\s*(?:\\text\{{\s*[(,]?\s*({WORDS})\b|(?<![A-Za-z\\])({WORDS})(?![A-Za-z])"
    rf"|\\forall(?![A-Za-z])|{MODULUS})",
    re.IGNORECASE,
)
NOTE = re.compile(
    r"(?<=[\s\d)}])\(([^()]*(?:\\(?:ge|le|in|ne)(?![A-Za-z])|[<>=]|\\text\{)[^()]*)\)\s*$"
)
MODULI = re.compile(MODULUS)
DECIDES = re.compile(r"\b(?:if|when|whenever|provided|unless|iff)\b", re.IGNORECASE)


def without_prose(text: str) -> tuple[str, str]:
    """Split a text into its answer and the condition behind that, "" for none."""
    text = re.sub(r"^(?:\\text\{the\}|the)\s+(?=\d)", "", _without_lead(text))
    note = NOTE.search(text)
    if note and re.search(r"\w", text[: note.start()]) and text[: note.start()][-1:].isspace():
        text = text[: note.start()].strip()
    match = CONDITION.search(text)
    if not match or not re.search(r"[\w)}]", text[: match.start()]):
        return text, ""
    main, condition = text[: match.start()], text[match.start() :].strip(" ,;")
    if (
        len(CONDITION.findall(condition)) > 1
        and len(split_outside(condition, {",", ";", r"\and", r"\or"})[0]) > 1
    ):
        return text, ""  # several cases, each with its own
    return main.strip(" ,;"), condition


def _without_lead(text: str) -> str:
    match = PHRASE.match(text)
    if not match:
        return text
    phrase = match[1] if match[1] is not None else match[2]
    colon = text[: match.end()].rstrip().endswith(":")
    if DENIES.search(phrase) or not (colon or LEADS.fullmatch(phrase)):
        return text
    rest = text[match.end() :].lstrip(" :=")
    return rest or text


def contradict(one: str, other: str) -> bool:
    """Tell whether two conditions decide and differ: ``if n is even`` and ``if n is odd``."""
    if (
        not one
        or not other
        or not (
            (MODULI.match(one) and MODULI.match(other))
            or DECIDES.search(one)
            or DECIDES.search(other)
        )
    ):
        return False
    return _plain(one) != _plain(other)


def _plain(text: str) -> str:
    return re.sub(r"\\text|\\[pb]?(?=mod)|[{}()\s.,;]", "", text).lower()
