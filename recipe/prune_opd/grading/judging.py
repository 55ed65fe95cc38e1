"""Verdict on one answer, without limits of time or memory, which ``graders`` sets."""

import functools
import re
from collections.abc import Iterator

from recipe.prune_opd.grading.equality import same
from recipe.prune_opd.grading.notation import canonical
from recipe.prune_opd.grading.reading import read
from recipe.prune_opd.grading.sentences import contradict
from recipe.prune_opd.grading.values import Listing, UnreadableError, Value
from recipe.prune_opd.grading.verdicts import NO_TRUTH, RIGHT, UNPARSED, WRONG

RUN_TOGETHER = re.compile(r"[^\s,]+(?:,\d{3})+[^\s,]*")
CHOICE = re.compile(r"(?:\\text\{\s*\(([A-E])\)\s*\}|\(([A-E])\))\s*(?=[^\s,;])")
LABELLED = re.compile(
    r"(?:\\text\{)?\s*(?:option|choice)?\s*\(?\s*([A-E])\s*"
    r"(?:[:.)](?!\W*(?:and|or|[A-E])\b|\s*[,;/&+-])|\}|$)",
    re.I,
)
r"""Letter of a choice, before its value or alone: ``\text{C: 204}``, ``B) 204``, ``Option B``."""
LETTER = re.compile(r"[(\s]*(?:\\text\{\s*\(?)?[A-E][)\s}]*")
SIGN = re.compile(r"\\pm(?![A-Za-z])")


def judge(answer: str, truth: str) -> str:
    """Compare an answer with the truth: ``RIGHT``, ``WRONG``, ``UNPARSED`` or ``NO_TRUTH``."""
    try:
        truths = _truths(truth)
    except UnreadableError:
        return NO_TRUTH
    answer = canonical(_spaced(answer) if isinstance(truths[0][0], Listing) else answer)
    try:
        found = list(_readings(_chosen(answer, truth)))
    except UnreadableError:
        return UNPARSED
    for right, condition in truths:
        for value, other in found:
            if not contradict(condition, other) and same(right, value):
                return RIGHT
    return WRONG


@functools.lru_cache(maxsize=1024)
def _truths(truth: str) -> list[tuple[Value, str]]:
    return list(_readings(canonical(truth)))


def _readings(text: str) -> Iterator[tuple[Value, str]]:
    r"""Readings of a text: two signs ``\pm a \pm b`` may go together, or each its own way."""
    yield read(text)
    signs = list(SIGN.finditer(text))
    if len(signs) == 2 and "," not in text:
        head, tail = text[: signs[1].start()], text[signs[1].end() :]
        yield read(f"{head}+{tail}, {head}-{tail}")


def _spaced(answer: str) -> str:
    """Spread an answer to a question for several numbers, where ``100,200`` is not one."""
    return answer.replace(",", ", ") if RUN_TOGETHER.fullmatch(answer.strip()) else answer


def _chosen(answer: str, truth: str) -> str:
    r"""Choose the letter or the value of ``\text{(B)} 204``, whichever is asked for."""
    if LETTER.fullmatch(truth):
        label = LABELLED.match(answer) or CHOICE.match(answer)
        return next(letter for letter in label.groups() if letter) if label else answer
    choice = CHOICE.match(answer)
    return answer[choice.end() :] if choice else answer
