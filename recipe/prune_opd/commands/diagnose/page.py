"""Page of ``diagnose``: figures and a template, which escapes what models wrote."""

from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from recipe.prune_opd.commands import html
from recipe.prune_opd.commands.diagnose.tables import (
    SHARES,
    columns_of_advice,
    expectation,
    gates_of_grid,
    rows_along,
    rows_of_advice,
    rows_of_grid,
    rows_of_kinds,
    summary,
)
from recipe.prune_opd.commands.pair.rules import SYMBOLS

BINS = 24


def draw(answer: dict[str, Any], examples: list[dict[str, Any]]) -> str:
    """Draw the page.

    Args:
        answer: as printed with ``--json``.
        examples: responses, as ``tokens.examples`` gives them.
    """
    planned = answer["planned"]
    return html.render(
        "diagnosis.html",
        title=f"{answer['student']} taught by {answer['teacher']}",
        answer=answer,
        summary=summary(answer),
        expectation=expectation(answer),
        symbol=SYMBOLS[planned["metric"]],
        advice=(columns_of_advice(answer), rows_of_advice(answer)),
        positions=rows_along(answer),
        shares=list(SHARES.values()),
        kinds=rows_of_kinds(answer),
        gates=gates_of_grid(answer),
        grids=[(k, rows_of_grid(answer, k)) for k in planned["ks"]],
        overlap=_along(
            answer, ("overlap", "event_rate"), "Overlap and drift events along the responses"
        ),
        mass=_along(answer, tuple(SHARES), "Probability of the top candidates along the responses"),
        lengths=_lengths(answer),
        examples=examples,
    )


def _along(answer: dict[str, Any], names: tuple[str, ...], label: str) -> Markup:
    """Lines over the position of the token, coloured in the order of ``keys`` in the template."""
    rows = answer["overlap"]["by_position"]
    with html.style():
        fig = html.new_figure()
        axes = fig.subplots()
        for i, name in enumerate(names):
            known = [(row["from"], row[name]) for row in rows if row[name] is not None]
            axes.plot(*zip(*known, strict=True), marker=".", **html.series_line(i))
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("token of the response")
        axes.grid()
    return html.figure(fig, label)


def _lengths(answer: dict[str, Any]) -> Markup:
    with html.style():
        fig = html.new_figure()
        axes = fig.subplots()
        axes.hist(
            answer["effective_length"]["of_responses"], bins=BINS, color=html.series_colour(0)
        )
        limit = answer["recommended"]["settings"]["budget.init"]
        axes.axvline(limit, **html.series_line(1))
        axes.set_xlabel("reliable tokens")
        axes.set_ylabel("responses")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return html.figure(fig, "Effective lengths of the responses, and the recommended first limit")
