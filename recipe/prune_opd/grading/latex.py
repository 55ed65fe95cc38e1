"""Helpers on LaTeX text: balanced braces, commands and their arguments, text outside brackets."""

import re
from collections.abc import Callable, Iterator

BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace, or a character behind a backslash: ``\\{`` is a set's brace, not LaTeX's."""
COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.DOTALL)
OPENING = {"{", "(", "[", r"\{", r"\lfloor", r"\lceil", r"\langle", r"\begin"}
CLOSING = {"}", ")", "]", r"\}", r"\rfloor", r"\rceil", r"\rangle", r"\end"}


def closing_brace(text: str, start: int, stop: int | None = None) -> int | None:
    """Position of the brace that closes the group whose content begins at ``start``, or None."""
    depth = 1
    for brace in BRACE.finditer(text, start, len(text) if stop is None else stop):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.start()
    return None


def closing_parenthesis(text: str, start: int) -> int | None:
    """Position of the ``)`` that closes the ``(`` before ``start``, or None."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return None


def argument(text: str, start: int) -> tuple[str, int] | None:
    """Argument of a command and the position behind it: a group, a command or one character."""
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text):
        return None
    if text[start] == "{":
        end = closing_brace(text, start + 1)
        return None if end is None else (text[start + 1 : end], end + 1)
    if text[start] == "\\":
        command = COMMAND.match(text, start)
        return (command.group(), command.end()) if command else None
    return text[start], start + 1


def replace_command(
    text: str, names: str, arguments: int, build: Callable[..., str], braces: bool = False
) -> str:
    r"""Text with every ``\name{..}..`` replaced.

    Args:
        text: LaTeX.
        names: the commands' names without backslash, as an expression's alternatives.
        arguments: how many follow.
        build: is given them and returns what stands in their place.
        braces: leave alone what is not followed by a brace.
    """
    pattern = re.compile(rf"\\(?:{names})(?![A-Za-z])" + (r"(?=\s*\{)" if braces else ""))
    position = 0
    while match := pattern.search(text, position):
        found: list[str] = []
        end = match.end()
        while len(found) < arguments and (one := argument(text, end)):
            found.append(one[0])
            end = one[1]
        position = match.end()
        if len(found) == arguments:
            built = build(*found)
            shrinks = len(built) < end - match.start()
            text = text[: match.start()] + built + text[end:]
            position = match.start() + (0 if shrinks else 1)  # looks into the result, but ends
    return text


def outside(text: str) -> Iterator[tuple[int, str]]:
    """Position and text of the tokens that are in no bracket.

    A half-open interval ``[0,1)`` is a bracket as well, so any closing one closes any opening one.
    """
    depth = 0
    for token in TOKEN.finditer(text):
        if token.group() in CLOSING:
            depth = max(depth - 1, 0)
        elif token.group() in OPENING:
            depth += 1
        elif depth == 0:
            yield token.start(), token.group()


def split_outside(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    """Pieces of a text between separators that are in no bracket, and the separators."""
    pieces, found, start = [], [], 0
    for position, token in outside(text):
        if token in separators:
            pieces.append(text[start:position])
            found.append(token)
            start = position + len(token)
    return [*pieces, text[start:]], found
