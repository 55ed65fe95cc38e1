r"""Notation of answers: what people and models write, as the LaTeX that ``reading`` understands.

Nothing here decides what an answer means: ``4√2``, ``4*sqrt(2)`` and ``\mathbf{4\sqrt2}`` become
``4\sqrt{2}``.
"""

import ast
import re
import unicodedata

from recipe.prune_opd.grading import symbols
from recipe.prune_opd.grading.latex import (
    closing_brace,
    closing_parenthesis,
    replace_command,
    split_outside,
)
from recipe.prune_opd.grading.symbols import CHARACTERS, GREEK, NUMERALS, OPERATORS, ROW, SYNONYMS


def _any(alternatives: list[str]) -> str:
    """Join alternatives of an expression."""
    return "|".join(alternatives)


def _run_of(table: dict[int, int]) -> re.Pattern[str]:
    """Match a run of characters that ``str.translate`` has in its table."""
    return re.compile(rf"[{''.join(map(chr, table))}]+")


RAISED, LOWERED = _run_of(symbols.SUPERSCRIPTS), _run_of(symbols.SUBSCRIPTS)
DECORATIONS, TEXTS, COLOURS, FUNCTIONS = (
    _any(names)
    for names in (symbols.DECORATIONS, symbols.TEXTS, symbols.COLOURS, symbols.FUNCTIONS)
)
SEPARATOR = r"(?:\\[,;:! ]|\{,\}|,\\!\s*)"
THOUSANDS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{SEPARATOR}+\d{{3}})+(?!\d)")
LAYOUT = re.compile(rf"\\(?:{_any(symbols.LAYOUTS)})(?![A-Za-z])")
SPACES = re.compile(rf"(?<!\\)\\(?:{_any(symbols.SPACES)})(?![A-Za-z])|(?<!\\)\\[,;:!> \n]|~")
DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$")
UPRIGHT = re.compile(r"[ei]|\\?(?:up)?pi|\\[A-Za-z]+", re.ASCII)
PLAIN_TEXT = re.compile(r"[\d\s.,:;/+*^()%=<>$-]*")
NAME = re.compile(r"\\(?:[A-Za-z]+|[%$&#])")
ENVIRONMENT = re.compile(rf"\\(?:begin|end)\s*\{{(?:{_any(symbols.ENVIRONMENTS)})\*?\}}")
NEXT_ANSWER = re.compile(r"\\\\(?=\s*[^\s&=<>\\])(?!\s*\\?[A-Za-z]*\s*$)")
"""End of a line, in an environment of several, before one that does not go on with a sign."""
DOLLARS = re.compile(r"\\\$\s*((?:[\d.,! ]|\{,\}|\\[,!])+)")
TAGS = re.compile(rf"</?(?:{_any(symbols.TAGS)})\s*/?>", re.IGNORECASE)
MEASURES = re.compile(rf"(?<=\d)\s*(?:平方|立方)?(?:{_any(symbols.MEASURES)})$")
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?")
MIXED = re.compile(r"(?<![\d.^_{])(\d+)(?:\s|~|\\[ ,;:])+(\d+)\s*/\s*(\d+)(?![\d.])")
SCIENTIFIC = re.compile(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])")
RING = re.compile(r"(?<=\d)\s*\^\s*(?:\{\s*)?(?:\\text\{o\}|o(?![A-Za-z]))\s*\}?")
CHOOSE = re.compile(
    r"(?<![\\\w])(?:\{\s*\}\s*)?[_^]?\{?(?<!\d)(\d+)\}?\s*C\s*_?\{?(\d+)\}?(?!\w)"
    r"|(?<![\\\w])C_\{?(\d+)\}?\^\{?(\d+)\}?|(?<![\\\w{])(\w+)\s+choose\s+(\w+)"
)
"""Binomial coefficients written ``{}_8C_3``, ``C_8^3``, ``8 choose 3``."""
LEADING = re.compile(
    r"^(?:=|\\approx(?![A-Za-z])|\\sim(?![A-Za-z])|:|\\therefore|\\implies|\\Rightarrow)\s*"
)
FOLLOWING = re.compile(r"(?:\\\\|\\|[.,;:?]|\\(?:dots|newline|par|qed|blacksquare|square))+\s*$")
VULGAR = re.compile(r"(\d*)\s*([¼½¾⅐-⅞])")


def canonical(text: str) -> str:
    """Rewrite an answer in one notation, in time linear in all but the nesting of commands."""
    text = _rows(_characters(_amount(TAGS.sub(" ", _unlisted(text)))))
    text = THOUSANDS.sub(lambda number: re.sub(SEPARATOR, "", number[0]), text)
    text = REPEATING.sub(_repeating, text)
    text = DELIMITERS.sub(" ", ENVIRONMENT.sub(" ", text.replace("`", "")))
    text = NAME.sub(lambda name: SYNONYMS.get(name[0], name[0]), text)
    text = re.sub(r"(?<![A-Za-z^_}\]])\s*\{\s*\}", "", _undecorated(text))
    pieces = re.split(r"(\\text\{[^{}]*\})", text)
    pieces = [piece if piece.startswith(r"\text{") else _plain(piece) for piece in pieces]
    text = RING.sub(r"^\\circ ", "".join(pieces))
    text = _arguments(text)
    text = " ".join(_stripped(text).split()).replace(ROW, r" \\ ")
    word = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).lower()
    return str(NUMERALS.index(word)) if word in NUMERALS else text


def _amount(text: str) -> str:
    r"""Amount ``\$5.40`` as ``5.40\text{ dollars}``, and a number without a Chinese measure."""
    dollars = DOLLARS.fullmatch(text.strip())
    return (
        rf"{dollars[1].rstrip('., ')}\text{{ dollars}}"
        if dollars
        else MEASURES.sub("", text.strip())
    )


def _rows(text: str) -> str:
    """Text whose double backslashes are a matrix's rows, as ``ROW``, its brackets of one kind."""
    if not re.search(r"matrix|\{array\}", text):
        if ENVIRONMENT.search(text):
            text = re.sub(r"&\s*(?=[=<>\\])", "", NEXT_ANSWER.sub(", ", text))
        return re.sub(r"\\\\(?=[A-Za-z])", r"\\", text).replace(r"\\", " ")
    text = text.replace(r"\\", ROW)
    text = re.sub(r"\\(begin|end)\s*\{(?:[pb]|small)?matrix\}", r"\\\1{pmatrix}", text)
    text = re.sub(r"\\begin\s*\{array\}\s*(?:\{[^{}]*\})?", r"\\begin{pmatrix}", text)
    text = text.replace(r"\end{array}", r"\end{pmatrix}")
    text = re.sub(rf"{ROW}\s*(?=\\end\{{pmatrix\}})", "", text)
    left, right = r"(?:\\left\s*)?[(\[]\s*", r"\s*(?:\\right\s*)?[)\]]"
    return re.sub(
        rf"{left}(\\begin\{{pmatrix\}}.*?\\end\{{pmatrix\}}){right}", r"\1", text, flags=re.DOTALL
    )


def _unlisted(text: str) -> str:
    """Items of a Python list in text form, ``['70']``; its backslashes may be doubled."""
    text = text.strip()
    if not re.fullmatch(r"\[\s*(['\"]).*\1\s*,?\s*\]", text, re.DOTALL):
        return text
    try:
        items = ast.literal_eval(text) if r"\\" in text else re.findall(r"(['\"])(.*?)\1", text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return ", ".join(str(item[1] if isinstance(item, tuple) else item) for item in items)


def _characters(text: str) -> str:
    text = VULGAR.sub(_vulgar, text)
    text = RAISED.sub(lambda found: f"^{{{found[0].translate(symbols.SUPERSCRIPTS)}}}", text)
    text = LOWERED.sub(lambda found: f"_{{{found[0].translate(symbols.SUBSCRIPTS)}}}", text)
    text = "".join(CHARACTERS.get(one, one) for one in text)
    text = unicodedata.normalize("NFKC", text)
    return "".join(_character(one) for one in text)


def _character(one: str) -> str:
    if one.isascii():
        return one
    if unicodedata.category(one) in ("Cf", "Cc", "Mn", "So", "Sc"):
        return ""  # invisible, a picture or a currency
    name = unicodedata.name(one, "")
    if name.startswith("GREEK SMALL LETTER "):
        return f"\\{name.split()[-1].lower()} "
    if name.startswith("GREEK CAPITAL LETTER "):
        return f"\\{name.split()[-1].capitalize()} "
    if unicodedata.category(one) == "Zs":
        return " "
    if unicodedata.category(one) == "Nd":
        return str(unicodedata.digit(one))
    return CHARACTERS.get(one, one)


def _vulgar(found: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", found[2]).split("⁄")
    return rf"{found[1]}\frac{{{top}}}{{{bottom}}}"


def _repeating(found: re.Match[str]) -> str:
    r"""Fraction for ``0.1\overline{6}``."""
    whole, fixed, period = found[1] or "0", found[2], found[3]
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    top = int(whole + fixed + period) - int(whole + fixed)
    return rf"(\frac{{{top}}}{{{nines}}})"


def _undecorated(text: str) -> str:
    """Text without what changes only its looks; upright words as ``\\text{..}``."""
    text = re.sub(rf"\\({DECORATIONS}|{TEXTS})\s+([A-Za-z\d])(?![A-Za-z])", r"\\\1{\2}", text)
    text = re.sub(rf"\\({COLOURS})\s*\[[^\[\]]*\]", r"\\\1", text)
    text = replace_command(text, COLOURS, 2, lambda colour, content: content)
    text = re.sub(r"\\(?:left|right)\s*\.", " ", text)
    text = SPACES.sub(" ", LAYOUT.sub(" ", replace_command(text, DECORATIONS, 1, str, braces=True)))
    text = replace_command(text, TEXTS, 1, _text, braces=True)
    text = re.sub(
        r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}",
        r"\\text{\1/\2}",
        text,
    )
    text = re.sub(r"(?:^|(?<=\\cup)|(?<=\\in))\s*\](?=[^\[\]()]*,[^\[\]()]*[\[\]])", " (", text)
    text = re.sub(r"(?<=[\[(])([^\[\]()]*,[^\[\]()]*)\[(?=\s*(?:$|\\cup))", r"\1)", text)
    text = re.sub(r"(\\mathbb\s*\{?R\}?)\s*[-/]\s*(?=\\\{)", r"\1\\setminus ", text)
    text = re.sub(r"(?<=[)\]}])\s*\\text\{U\}\s*(?=[(\[{\\])", r"\\cup ", text)
    text = re.sub(r"(?<=\d)\s*(?:\\text\{\s*to\s*\}|(?<=\s)to(?=\s))\s*(?=\d)", ":", text)
    return re.sub(r"\\emptyset|\\\{\s*\\\}", r"\\emptyset ", text)


def _text(content: str) -> str:
    """Upright text as mathematics if it looks like it, else in one form for all."""
    word = content.strip()
    if UPRIGHT.fullmatch(word) or PLAIN_TEXT.fullmatch(word):
        return f" {word} "
    if word.lower() == "infinity":
        return r" \infty "
    if re.fullmatch(r"(?:the )?empty set", word, re.IGNORECASE):
        return r" \emptyset "
    if word in symbols.FUNCTIONS:
        return rf"\{word} "
    if re.fullmatch(r"[,;]?\s*(?:and|or)\s*[,;]?", word):
        return rf" \{word.strip(',; ')} "
    if any(sign in content for sign in "\\^_{}") or re.search(r"\d", content):
        return f" {content} "  # as a formula with words
    return rf"\text{{{' '.join(content.split())}}}"


def _plain(text: str) -> str:
    """Plain text with its functions, powers and words as LaTeX's."""
    text = re.sub(r"^\s*\*\*|\*\*\s*$", "", text)
    text = re.sub(r"\*\*(?=\s*[\w(\\+-])", "^", text).replace('"', "")
    text = re.sub(r"(?<=[\w)}])\s*\*\s*(?=[\w(\\.+-])", r" \\cdot ", text).replace("*", "")
    text = MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text)
    text = re.sub(r"(?<![\w.)}^])(\d+)\s*/\s*(\d+)\s+(?=[A-Za-z\\(])", r"\\frac{\1}{\2} ", text)
    for operator, command in OPERATORS.items():
        text = text.replace(operator, command)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)|(?<=\d)\s+[xX]\s+(?=\d)", r" \\cdot ", text)
    text = re.sub(r"(?<![\\A-Za-z])(?:[Ii]nfinity|inf|oo)(?![A-Za-z])", r"\\infty ", text)
    text = re.sub(r"(?<!\\)(?:sqrt|\broot)\s*(?=[({\d\\A-Za-z])", r"\\sqrt ", text)
    text = re.sub(r"(?<!\\)(?:cbrt|cuberoot)\s*(?=[({\d\\])", r"\\sqrt[3] ", text)
    text = re.sub(r"(?<![\\A-Za-z])log(2|10)(?=\s*\()", r"\\log_{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])asin(?=[\s(])|(?<![\\A-Za-z])a(?=(?:cos|tan)[\s(])", "arc", text)
    text = re.sub(rf"(?<![\\A-Za-z])({FUNCTIONS})(?![A-Za-z])(?=\s*[\w(\\^])", r"\\\1 ", text)
    text = re.sub(rf"(?<![\\A-Za-z])({_any(GREEK)})(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(
        r"(?<![\\A-Za-z])(?:n?C|n?Cr|binom|comb)\(\s*(\w+)\s*,\s*(\w+)\s*\)",
        r"\\binom{\1}{\2}",
        text,
    )
    text = CHOOSE.sub(_binomial, text)
    text = re.sub(r"(?<![\\A-Za-z])abs\s*\(([^()]*)\)", r"|\1|", text)
    text = re.sub(r"(?<![\\A-Za-z])(floor|ceil)\s*\(([^()]*)\)", r"\\l\1 \2\\r\1 ", text)
    text = re.sub(r"(?<![\\A-Za-z])(?:U|union)(?=\s*[(\[{])(?<=[)\]}]\s[Uu])", r"\\cup ", text)
    text = re.sub(r"(?:,\s*)?(?<![\\A-Za-z])(and|or)(?![A-Za-z])", r" \\\1 ", text)
    return re.sub(r"\s*\b(?:percent|pct)\b", "%", text)


def _arguments(text: str) -> str:
    r"""Text whose fractions, roots, powers have braces: ``\frac12``, ``\sqrt(2)``, ``x^(1/2)``."""
    text = re.sub(r"\\(sqrt)\s*\[([^\[\]]*)\]\s*", r"\\\1[\2]", text)
    text = _parenthesised(text, r"\\sqrt(?:\[[^\[\]]*\])?\s*|\^\s*|\\exp\s*")
    text = re.sub(r"(\\sqrt(?:\[[^\[\]]*\])?)\s*(\d+(?:\.\d+)?)", r"\1{\2}", text)
    text = re.sub(r"(\\sqrt(?:\[[^\[\]]*\])?)\s*(\\?[A-Za-z]+?)(?![A-Za-z])", _root_of_letter, text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d+)", r"\\frac{\1}{\2}", text)
    text = replace_command(text, "frac", 2, lambda top, bottom: rf"\frac{{{top}}}{{{bottom}}}")
    text = replace_command(text, "binom", 2, lambda top, bottom: rf"\binom{{{top}}}{{{bottom}}}")
    text = _choose(text)
    text = replace_command(text, "exp", 1, lambda power: rf"e^{{{power}}}", braces=True)
    text = re.sub(
        r"([A-Za-z]|(?<![\d.])\d+)!\s*(?=\^)", r"(\1!)", re.sub(r"_\s*(\d+)", r"_{\1}", text)
    )
    text = re.sub(r"\^\s*(\d+(?:\.\d+)?|[+-]\s*(?:\d+(?:\.\d+)?|[A-Za-z]))", r"^{\1}", text)
    return _groups(text)


def _binomial(found: re.Match[str]) -> str:
    top, bottom = (part for part in found.groups() if part)
    return rf"\binom{{{top}}}{{{bottom}}} "


def _parenthesised(text: str, before: str) -> str:
    """Text with the parentheses behind a pattern as braces."""
    pattern, position = re.compile(rf"({before})\("), 0
    while match := pattern.search(text, position):
        end = closing_parenthesis(text, match.end())
        if end is not None:
            head = match[1].rstrip()
            text = f"{text[: match.start()]}{head}{{{text[match.end() : end]}}}{text[end + 1 :]}"
        position = match.start() + 1
    return text


def _root_of_letter(found: re.Match[str]) -> str:
    root, name = found[1], found[2]
    if name.startswith("\\"):
        return f"{root}{{{name}}}" if name[1:] in GREEK else found[0]
    return f"{root}{{{name[0]}}}{name[1:]}"


def _choose(text: str) -> str:
    r"""Rewrite ``{n \choose k}`` as ``\binom{n}{k}``."""
    while match := re.search(r"\\choose(?![A-Za-z])", text):
        start = text.rfind("{", 0, match.start())
        end = closing_brace(text, start + 1) if start >= 0 else None
        if end is None or end < match.end():
            return text
        top, bottom = text[start + 1 : match.start()].strip(), text[match.end() : end].strip()
        text = rf"{text[:start]}\binom{{{top}}}{{{bottom}}}{text[end + 1 :]}"
    return text


def _groups(text: str) -> str:
    """Text with braces of no command as parentheses, or as a set's if there is a comma in them."""
    pattern, position = re.compile(r"(?:^|(?<=[-+*/=,;(|\s\d{]))\{"), 0
    while match := pattern.search(text, position):
        before = text[: match.start()].rstrip()
        end = closing_brace(text, match.end())
        position = match.end()
        if (
            end is None
            or before.endswith(("^", "_", "}", "]"))
            or re.search(r"\\[A-Za-z]+$", before)
        ):
            continue
        content = text[match.end() : end]
        left, right = ("\\{", "\\}") if len(split_outside(content, {","})[0]) > 1 else ("(", ")")
        text = text[: match.start()] + left + content + right + text[end + 1 :]
        position = match.start()
    return text


def _stripped(text: str) -> str:
    """Text without full stop, line break, sign of equality or asterisks around an answer."""
    before = None
    while before != text:
        before = text
        text = re.sub(r"^'(.*)'$", r"\1", text.strip().strip("`~*_#").strip())
        text = FOLLOWING.sub("", text)
        text = LEADING.sub("", text)
    return text
