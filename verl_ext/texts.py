"""Texts of others, on their way to a terminal or a log."""

import html
import re
from typing import Any
from urllib.parse import unquote

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that a terminal obeys or that reorder what is read, and halves of characters. Line
feed and tab are none."""
PIECE = 6
"""Characters of a secret in a row by which it is known."""
ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")
LONGEST = 80
"""Characters of a value that a message shows."""
PLAIN = re.compile(r"[\w\[\]-]{1,80}")
"""What a part of a key's name is made of."""


def visible(text: str) -> str:
    """Write characters that a terminal would obey as JSON does: an escape as ``\\u001b``."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shows(text: str, secret: str) -> bool:
    """Tell whether a text gives a part of a secret away.

    Found are pieces of ``PIECE`` letters and digits, in any case, whatever stands between them,
    and where they are escaped as in JSON, in a URL or in HTML.

    Args:
        text: from elsewhere.
        secret: one word.
    """
    unescaped = ESCAPED.sub(lambda found: chr(int(found[1] or found[2], 16)), text)
    known = _letters(secret) or secret
    pieces = {known[i : i + PIECE] for i in range(max(1, len(known) - PIECE + 1))}
    forms = (text, unescaped, unquote(unescaped), html.unescape(unescaped))
    return any(piece in form for form in map(_letters, forms) for piece in pieces)


def _letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return "".join(filter(str.isalnum, text)).lower()


def shown(value: Any, most: int = LONGEST) -> str:
    """Beginning of a value for a message, in one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; a number of thousands of digits
        text = f"a {type(value).__name__} too large to be shown"
    text = " ".join(text.splitlines())
    return text if len(text) <= most else f"{text[:most]}..."


def named(*parts: Any) -> str:
    """Name of a key for a message: its parts, quoted where one is no plain name."""
    texts = [str(part) for part in parts]
    return ".".join(text if PLAIN.fullmatch(text) else shown(text) for text in texts)
