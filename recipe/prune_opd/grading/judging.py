"""A verdict on one answer, without limits of time or memory: ``graders`` runs it in processes that have them."""

import re

from recipe.prune_opd.grading.equality import same
from recipe.prune_opd.grading.reading import read
from recipe.prune_opd.grading.sentences import contradict
from recipe.prune_opd.grading.values import Listing, UnreadableError
from recipe.prune_opd.grading.verdicts import NO_TRUTH, RIGHT, UNPARSED, WRONG

RUN_TOGETHER = re.compile(r"[^\s,]+(?:,\d{3})+[^\s,]*")


def judge(answer: str, truth: str) -> str:
    """``RIGHT``, ``WRONG``, ``UNPARSED`` or ``NO_TRUTH``."""
    try:
        right, condition = read(truth)
    except UnreadableError:
        return NO_TRUTH
    if isinstance(right, Listing) and RUN_TOGETHER.fullmatch(answer.strip()):
        answer = answer.replace(",", ", ")  # 100,200 is a number, unless two are asked for
    try:
        found, other = read(answer)
    except UnreadableError:
        return UNPARSED
    if contradict(condition, other):
        return WRONG
    return RIGHT if same(right, found) else WRONG
