"""Sentences and cells of tables that ``diagnose`` shows, on the terminal and on the page alike.

``answer`` is the dictionary that ``--json`` prints.
"""

from typing import Any

from recipe.prune_opd.commands.diagnose.plan import OFF
from recipe.prune_opd.commands.pair.rules import SYMBOLS

ADVICE = {
    "tokens": "tokens",
    "teacher_entropy": "entropy of the teacher",
    "student_entropy": "entropy of the student",
    "teacher_certainty": "two samples of the teacher agree",
    "push": "push of the teacher",
    "accepted": "sampled tokens it accepts",
    "event_rate": "drift events per token",
    "student_agreement": "student's most likely token agrees",
    "second_view": "second view's most likely token agrees",
}
"""Number of a side -> row of the table of the teacher's advice."""
FEW = 8
"""Prompts below which the answer says that they are few."""
SHARES = {
    "student_mass": "student's",
    "teacher_mass": "teacher's",
    "teacher_on_student": "teacher's on student's",
}
"""Probability of the top k -> column."""


def number(value: float | None, form: str = ".2f") -> str:
    """Number for a reader; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}"


def summary(answer: dict[str, Any]) -> str:
    """Sum up what was looked at, and the means."""
    responses, events, planned = answer["responses"], answer["events"], answer["planned"]
    effective = answer["effective_length"]
    low_high = (
        f" ({number(events['low'], '.3f')} to {number(events['high'], '.3f')})"
        if events["low"] is not None
        else ""
    )
    return (
        f"{responses['number']} responses to {responses['prompts']} prompts,"
        f" {responses['tokens']:,} tokens, {responses['mean_length']:,.0f} on average;"
        f" {responses['ended']} ended by themselves, {responses['at_limit']} at the limit of"
        f" {planned['limit']:,}. Overlap of the top {planned['topk']}:"
        f" {answer['overlap']['mean']:.3f}; drift events per token at"
        f" {SYMBOLS[planned['metric']]} = {planned['threshold']:g}:"
        f" {events['mean']:.3f}{low_high}. Reliable at w_drop = {effective['w_drop']:g}:"
        f" {effective['mean']:,.0f} tokens on average, {effective['quantiles']['0.1']:,.0f} /"
        f" {effective['quantiles']['0.5']:,.0f} / {effective['quantiles']['0.9']:,.0f} at the 10th,"
        " 50th and 90th percentile."
    )


def expectation(answer: dict[str, Any]) -> str:
    """Say what the recommended settings should come to."""
    found = answer["recommended"]["prediction"]
    interval = "" if found["low"] is None else f" ({found['low']:,.0f} to {found['high']:,.0f})"
    return (
        "Expected with them while the student stays as it is:"
        f" {found['generated']:,.1f}{interval} tokens generated per response,"
        f" {found['saved']:.0%} fewer than the {found['without_pruning']:,.1f} without pruning,"
        f" {found['of_limit']:.0%} of the limit; {found['effective']:,.1f} of them reliable; limit"
        f" {found['limit']:,.0f} on average."
    )


def rows_along(answer: dict[str, Any]) -> list[list[str]]:
    """Cells of the table by position."""
    names = ("overlap", "event_rate", *SHARES)
    return [
        [f"{row['from']:,}", f"{row['tokens']:,}", *(number(row[name]) for name in names)]
        for row in answer["overlap"]["by_position"]
    ]


def rows_of_kinds(answer: dict[str, Any]) -> list[list[str]]:
    """Cells of the table by kind of token."""
    kinds = answer["kinds"]
    tokens = sum(kind["tokens"] for kind in kinds.values())
    events = sum(kind["tokens"] * (kind["event_rate"] or 0) for kind in kinds.values())
    return [
        [
            name,
            f"{kind['tokens'] / tokens:.1%}",
            number(kind["overlap"]),
            number(kind["event_rate"]),
            f"{kind['tokens'] * (kind['event_rate'] or 0) / events:.1%}" if events else "-",
        ]
        for name, kind in kinds.items()
    ]


def columns_of_advice(answer: dict[str, Any]) -> list[str]:
    """Columns of the table of the teacher's advice: two sides for each split."""
    return ["", *(f"{side} the {split}" for split, side, _ in _sides(answer))]


def rows_of_advice(answer: dict[str, Any]) -> list[list[str]]:
    """Cells of the table of the teacher's advice."""
    return [
        [title, *(_cell(name, means[name]) for _, _, means in _sides(answer))]
        for name, title in ADVICE.items()
    ]


def _sides(answer: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    table = answer["signal"]["advice_table"]
    return [(split, side, means) for split, sides in table.items() for side, means in sides.items()]


def _cell(name: str, value: float | None) -> str:
    return number(value, ",.0f" if name == "tokens" else ".2f")


def gates_of_grid(answer: dict[str, Any]) -> list[str]:
    """Columns of the table of settings, one for each gate."""
    return ["no gate" if kind == OFF else kind for kind in answer["planned"]["gates"]]


def rows_of_grid(answer: dict[str, Any], topk: int) -> list[list[str]]:
    """Cells of the table of settings at one k: a row for a γ and w_drop, a column for a gate."""
    rows: dict[tuple[float, float], list[str]] = {}
    for cell in answer["grid"]:
        if cell["topk"] == topk:
            row = rows.setdefault((cell["threshold"], cell["w_drop"]), [])
            row.append(f"{cell['generated']:,.0f}/{cell['kept']:,.0f} {cell['saved']:.0%}")
    return [
        [f"{threshold:g}", f"{w_drop:g}", *cells] for (threshold, w_drop), cells in rows.items()
    ]


def notes(responses: dict[str, int]) -> list[str]:
    """Cautions about the responses, to be read before the numbers are trusted.

    Args:
        responses: ``answer["responses"]``.
    """
    said = []
    if responses["cut_early"]:
        said.append(
            f"{responses['cut_early']} of {responses['number']} responses neither end by themselves"
            " nor reach the limit: they were cut, and count here as if they had ended there"
        )
    if responses["prompts"] < FEW:
        said.append(
            f"{responses['prompts']} prompts say little about a data set: see the intervals, or"
            " give --prompts"
        )
    return said
