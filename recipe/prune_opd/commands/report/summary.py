"""Numbers of a run in a row, and notes that a reader needs: which steps they are of.

A log may lack steps (a resume that began its file anew, a line lost) that the records have, and the
other way round. A sum is then over the steps that are known, the row says of how many, and a note
of which.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipe.prune_opd.commands.report.runs import AXES, Run

COLUMNS = (
    "run",
    "steps",
    "accuracy",
    "limit",
    "effective length",
    "overlap",
    "generated",
    "saved, at most",
    "reliable",
    "hours",
)
SUMS = {
    "generated": "tokens generated",
    "scored": "tokens scored",
    "trained": "tokens trained on",
    "reliable": "reliable tokens",
    "saved": "tokens saved",
    "hours": "hours",
}
"""Values that are summed over steps -> name in a note."""
PAIRS = {"limit": "limit", "effective_length": "effective length", "overlap": "overlap"}
"""Values of the first and the last step -> name in a note."""


def summary(run: Run) -> dict[str, Any]:
    """Sum up a run; None stands for what is not known.

    Returns:
        ``tokens`` and ``hours``: sums over the steps that are known, see ``counted``: name ->
            ranges of them.
        ``reliable_share``: of the tokens generated, over the steps where both are known. ``limit``,
        ``effective_length``, ``overlap`` and ``accuracy``: of the first and the last step that has
        one.
    """
    each = series(run)
    sums = {name: math.fsum(each[name].values()) if each[name] else None for name in SUMS}
    hours = sums.pop("hours")
    pairs = {name: _ends(each[name]) for name in PAIRS}
    # With Semi-OPD a token is generated once and trained on often.
    whole = each["scored" if run.metric("prune_opd/semi/frozen") else "generated"]
    return {
        "run": run.name,
        "steps": run.last,
        "accuracy": {name: _ends(values) for name, values in run.accuracies().items()},
        **pairs,
        "tokens": sums,
        "reliable_share": share(each["reliable"], whole),
        "hours": hours,
        "counted": {name: ranges(each[name]) for name in SUMS if each[name]},
        "faults": list(run.faults),
    }


def series(run: Run) -> dict[str, dict[int, float]]:
    """Collect the values by step that ``SUMS`` and ``PAIRS`` name, where they are numbers."""
    records = {
        name: run.record("tokens", name) for name in ("scored", "trained", "reliable", "saved")
    }
    found = {
        **records,
        "generated": run.generated(),
        "reliable": records["reliable"] | run.metric("prune_opd/kept_tokens"),
        "hours": {step: seconds / 3600 for step, seconds in run.metric("timing_s/step").items()},
        "limit": run.record("limit") | run.metric("prune_opd/current_max_response_length"),
        "effective_length": (
            run.record("effective_length", "mean")
            | run.metric("prune_opd/effective_response_length_mean")
        ),
        "overlap": run.metric("prune_opd/overlap_ratio"),
    }
    return {
        name: {step: v for step, v in sorted(values.items()) if step and math.isfinite(v)}
        for name, values in found.items()
    }


def share(part: Mapping[int, float], whole: Mapping[int, float]) -> float | None:
    """Divide the sum of a part by the sum of the whole, both over the steps that both have."""
    common = part.keys() & whole.keys()
    total = math.fsum(whole[step] for step in common)
    return math.fsum(part[step] for step in common) / total if total else None


def _ends(values: Mapping[int, float]) -> tuple[float, float] | None:
    finite = [step for step, value in values.items() if math.isfinite(value)]
    return (values[min(finite)], values[max(finite)]) if finite else None


def ranges(steps: Iterable[int]) -> list[tuple[int, int]]:
    """List first and last of each stretch of steps without a gap."""
    found: list[tuple[int, int]] = []
    for step in sorted(steps):
        if found and step == found[-1][1] + 1:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found


def named(stretches: Sequence[tuple[int, int]], most: int = 4) -> str:
    """Write ranges for a reader, the first few of many."""
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in stretches]
    if len(texts) <= most:
        return ", ".join(texts)
    return f"{', '.join(texts[: most - 1])}, ... {texts[-1]} ({len(texts)} stretches)"


# --------------------------------------------------------------------------------------- for people


def cells(found: Mapping[str, Any]) -> list[str]:
    """Write a summary as text, in the order of ``COLUMNS``.

    A sum that lacks steps says how many it has.
    """
    tokens, accuracies = found["tokens"], [pair for pair in found["accuracy"].values() if pair]
    mean = (
        tuple(sum(side) / len(accuracies) for side in zip(*accuracies, strict=True))
        if accuracies
        else None
    )
    reliable, hours = found["reliable_share"], found["hours"]

    def of_steps(name: str, text: str) -> str:
        known = sum(last - first + 1 for first, last in found["counted"].get(name, ()))
        return text if known in (0, found["steps"]) else f"{text} ({known} steps)"

    return [
        found["run"],
        str(found["steps"]),
        _pair(mean, ".1%"),
        _pair(found["limit"], ",.0f"),
        _pair(found["effective_length"], ",.0f"),
        _pair(found["overlap"], ".2f"),
        of_steps("generated", _count(tokens["generated"])),
        of_steps("saved", _count(tokens["saved"])),
        of_steps("reliable", "-" if reliable is None else f"{reliable:.0%}"),
        of_steps("hours", "-" if hours is None else f"{hours:.2f}"),
    ]


def _pair(pair: tuple[float, ...] | None, shown: str) -> str:
    return "-" if pair is None else " → ".join(f"{value:{shown}}" for value in pair)


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:,.2f} M" if value >= 1e6 else f"{value:,.0f}"


def notes(runs: Sequence[Run]) -> list[str]:
    """Note what a reader has to know of runs.

    That is what could not be read, which steps a number is of, and how far curves go.
    """
    found = [fault for run in runs for fault in run.faults]
    for run in runs:
        found += [*_two_runs(run), *_partial_sums(run), *_partial_pairs(run), *_partial_axes(run)]
    if len({run.last for run in runs}) > 1:
        steps = ", ".join(f"{run.name} {run.last}" for run in runs)
        found.append(f"the runs are of different length, and their sums of so many steps: {steps}")
    return found


def _two_runs(run: Run) -> list[str]:
    """Note that records and log cannot be of one run, where they cannot."""
    recorded, logged = run.record("limit"), run.metric("prune_opd/current_max_response_length")
    other = [
        step for step in sorted(recorded.keys() & logged.keys()) if recorded[step] != logged[step]
    ]
    if not other:
        return []
    return [
        f"{run.name} has records and a log that differ, in the limit of step {other[0]}: are they"
        " of one run?"
    ]


def _partial_sums(run: Run) -> list[str]:
    """Note the steps of every sum which lacks some; nothing where all are whole or unknown."""
    each = series(run)
    steps = {name: ranges(each[name]) for name in SUMS if each[name]}
    if all(known == [(1, run.last)] for known in steps.values()):
        return []
    groups: dict[str, list[str]] = {}
    for name, known in steps.items():
        groups.setdefault(named(known), []).append(SUMS[name])
    parts = "; ".join(f"{', '.join(names)}: {known}" for known, names in groups.items())
    return [
        f"{run.name} lacks steps of its {run.last}; summed are the steps that are known, of {parts}"
    ]


def _partial_pairs(run: Run) -> list[str]:
    found = []
    each = series(run)
    for name, called in PAIRS.items():
        known = each[name]
        if known and (min(known), max(known)) != (1, run.last):
            found.append(f"{called} from {min(known)} to {max(known)}")
    if not found:
        return []
    return [
        f"{run.name} lacks its first or last step for what is shown of them; taken are steps:"
        f" {', '.join(found)}"
    ]


def _partial_axes(run: Run) -> list[str]:
    found = []
    for axis in ("tokens", "hours"):
        last = max(run.along(axis), default=0)
        if last == 0:
            found.append(f"{run.name} has no curves by {AXES[axis]}: its log lacks the first steps")
        elif last < run.last:
            found.append(
                f"{run.name} has curves by {AXES[axis]} up to step {last} only: its log lacks the"
                " next one"
            )
    return found
