"""Verdicts on an answer, and the reasons why there is none."""

NO_BOX, UNCLOSED, EMPTY, TOO_LONG = "no box", "unclosed box", "empty box", "too long"
UNPARSED, TOO_HARD, NO_TRUTH = "not parsed", "too hard", "no ground truth"
UNREAD = (NO_BOX, UNCLOSED, EMPTY, TOO_LONG, UNPARSED, TOO_HARD, NO_TRUTH)
"""Reasons why an answer could not be graded.

``too hard``: the comparison ran out of time or memory. ``no ground truth``: it is empty or cannot
be parsed, so that no answer would be right.
"""
RIGHT, WRONG = "right", "wrong"
