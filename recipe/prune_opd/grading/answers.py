r"""Answers in responses: the last ``\boxed{}``, or a last line ``Answer: ...`` where asked for."""

import re

from recipe.prune_opd.grading.latex import closing_brace
from recipe.prune_opd.grading.verdicts import EMPTY, NO_BOX, TOO_LONG, UNCLOSED

LONGEST = 2000
"""Characters of an answer that is read; no ground truth of the paper's data has more than 200."""

ANSWER_LINES = ("math_dapo",)
"""``data_source`` of prompts that ask for a last line ``Answer: ...`` instead of a box."""

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
SPACE = r"\s|\$|\\[()\[\],;! ]|\\q?quad|~"
COMMA = r",|;|and\b|or\b|\\text\s*\{\s*(?:and|or)\s*\}"
BETWEEN = re.compile(rf"(?:{SPACE})*(?:{COMMA})(?:{SPACE}|{COMMA})*")
r"""Text between boxes that are one answer: ``\boxed{3}, \boxed{5} and \boxed{7}``."""

LABEL = r"(?:the\s+|my\s+|our\s+)?(?:final\s+|correct\s+)?answer[*_\s]*"
LINE_START = re.compile(
    r"(?im)^[ \t>#*_`$\[\](){}\\-]*(?:\\(?:text|textbf|mathbf)\{)?"
    rf"{LABEL}(?:(?:is\s*)?[:：=]|(?<=\n))"
)
ANYWHERE = re.compile(r"(?i)\banswer[*_\s]*[:：]")
SENTENCE = re.compile(r"(?i)\banswer\s+(?:\w+\s+){0,4}?is\b[:：]?")
LABELS = (LINE_START, ANYWHERE)
OPENING = re.compile(r"(?:[\s*_`$>:：}]|\\[\[(])+")
TOKENS = re.compile(r"<\|[^|<>]*\|>|</?[A-Za-z_]+>")
"""Special tokens and tags that a tokenizer or a template leaves behind an answer."""
NEXT_SENTENCE = re.compile(r"[.。]\s+(?=[A-Z]).*$|\s+\((?:[A-Za-z,.' ]+)\)\s*\.?$", re.DOTALL)
MATHEMATICS = re.compile(r"[\d\\=^$]")


def read_answer(response: str, data_source: str = "") -> tuple[str, str]:
    r"""Find the answer that a response gives.

    Args:
        response: text of any length.
        data_source: with one of ``ANSWER_LINES`` the last line ``Answer: ...`` counts before the
            last box.

    Returns:
        Content of the last ``\boxed{}``, or of several that are a list, and "", or "" and why there
        is none.
    """
    if data_source not in ANSWER_LINES:
        return last_box(response)
    thought, end, said = response.rpartition("</think>")
    answer = _read_line(said)
    return _read_line(thought) if end and answer[1] in (NO_BOX, EMPTY) else answer


def _read_line(response: str) -> tuple[str, str]:
    """Read the answer off its line, a box, or a sentence ``the answer is ..``."""
    line = answer_line(response)
    if line is not None and not _is_prose(line):
        return last_box(line) if BOX.search(line) else _checked(line)
    boxed = last_box(response)
    if boxed[1] != NO_BOX:
        return boxed
    sentences = (
        _content(response, match.end()) for match in reversed(list(SENTENCE.finditer(response)))
    )
    found = next((sentence for sentence in sentences if sentence), line)
    return boxed if found is None else _checked(found)


def answer_line(response: str) -> str | None:
    """Text behind the last ``Answer:`` that is an answer and not words; None without a label."""
    matches = [list(label.finditer(response)) for label in LABELS]
    for match in (*reversed(matches[0]), *reversed(matches[1])):
        content = _content(response, match.end())
        if content and not _is_prose(content):
            return content
    last = (matches[0] or matches[1])[-1:]
    return _content(response, last[0].end()) if last else None


def _is_prose(text: str) -> bool:
    """Tell whether a text is three words or more, without a sign of mathematics."""
    return not MATHEMATICS.search(text) and len(text.split()) >= 3


def _content(response: str, start: int) -> str:
    """Line from a position on, or the next one if that is empty."""
    opening = OPENING.match(response, start)
    start = opening.end() if opening else start
    line = response[start : start + 2 * LONGEST].split("\n", 1)[0]
    pieces = [piece for piece in TOKENS.split(" ".join(line.split())) if piece.strip()]
    line = NEXT_SENTENCE.sub("", pieces[0].strip()) if pieces else ""
    line = line.strip().strip("*`").strip().removesuffix(".").removesuffix("。").strip()
    return line[:-1] if line.endswith("}") and line.count("}") > line.count("{") else line


def last_box(text: str) -> tuple[str, str]:
    r"""Content of the last ``\boxed{}`` or ``\fbox{}`` and "", or "" and why it cannot be read.

    Boxes before it belong to it if nothing but commas or ``and`` is between them. Linear in the
    text.
    """
    starts = list(BOX.finditer(text))
    if not starts:
        return "", NO_BOX
    content, unread = _box(text, starts[-1].end())
    contents, following = [content], starts[-1].start()
    for start in reversed(starts[:-1]):
        if unread or starts[-1].start() - start.start() > 2 * LONGEST:
            break
        end = closing_brace(text, start.end(), following)
        if end is None or not BETWEEN.fullmatch(text, end + 1, following):
            break
        contents.insert(0, text[start.end() : end].strip())
        following = start.start()
    return ("", unread) if unread else _checked(", ".join(contents))


def _box(text: str, start: int) -> tuple[str, str]:
    end = closing_brace(text, start, start + LONGEST + 1)
    if end is not None:
        return _checked(text[start:end])
    return "", TOO_LONG if len(text) - start > LONGEST else UNCLOSED


def _checked(answer: str) -> tuple[str, str]:
    answer = answer.strip().strip("$").strip()
    if not answer:
        return "", EMPTY
    return ("", TOO_LONG) if len(answer) > LONGEST else (answer, "")
