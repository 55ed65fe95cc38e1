"""Samples token by token, made ready for the page: bounded, and compact for the browser."""

from collections.abc import Sequence
from typing import Any

from recipe.prune_opd.commands.report.runs import Run

RESPONSES = 6
"""Most responses shown per run: half of the first step with samples, half of the last."""
TOKENS = 6000
"""Tokens shown in a page, shared out among its responses."""
LEAST = 500
"""Tokens that a response should get: with many runs fewer responses of each are shown."""
PROMPT = 600
"""Characters of a prompt that are shown: its end."""


def token_views(runs: Sequence[Run], step: int | None = None) -> dict[str, Any]:
    """Prepare what the page's template needs of samples.

    ``samples`` are to be written out, ``candidates`` are for its script, and ``opened`` is the
    sample that lost the most tokens.

    Args:
        runs: at least one.
        step: whose samples to show; None for the first and the last that have some.

    Raises:
        ValueError: no run has samples of that step, or a file of them is damaged.
    """
    kept = sorted({one for run in runs for one in run.sampled()})
    if step is not None and step not in kept:
        allowed = (
            f"steps with samples: {', '.join(map(str, kept))}"
            if kept
            else "none, no run kept samples"
        )
        raise ValueError(f"--step: got {step}, allowed: {allowed}")
    responses = min(RESPONSES, max(1, TOKENS // (LEAST * len(runs))))
    picked = [(run, *one) for run in runs for one in _picked(run, responses, step)]
    most = TOKENS // max(1, len(picked))
    samples = [view(run.name, step, sample, most) for run, step, sample in picked]
    lost = [sample["length"] - sample["effective_length"] for sample in samples]
    return {
        "samples": samples,
        "opened": lost.index(max(lost)) if lost else None,
        "candidates": [candidates(sample, most) for _, _, sample in picked],
    }


def _picked(run: Run, most: int, step: int | None) -> list[tuple[int, dict[str, Any]]]:
    """Pick responses with their steps: of the given step, or evenly of the first and the last."""
    steps = [one for one in run.sampled() if step is None or one == step]
    ends = [steps[0], steps[-1]] if len(steps) > 1 and most > 1 else steps[-1:]
    found = []
    for step in ends:
        responses, count = run.samples(step), most // len(ends)
        spread = len(responses) if len(responses) <= count else count
        indices = {round(i * (len(responses) - 1) / max(1, spread - 1)) for i in range(spread)}
        found += [(step, responses[i]) for i in sorted(indices)]
    return found


def spent(sample: dict[str, Any]) -> int | None:
    """Find the position of the first token without reliability; None where all have some."""
    return next((i for i, weight in enumerate(sample["weight"]) if weight <= 0), None)


def shown(sample: dict[str, Any], most: int) -> list[int]:
    """Choose positions of tokens to show: the first, and as many around where reliability ends.

    Args:
        sample: see ``samples.token_data``.
        most: tokens to show.
    """
    length, stop, window = len(sample["tokens"]), spent(sample), most // 2
    if length <= most or stop is None or stop < most - window // 2:
        return list(range(min(length, most)))
    start = min(stop - window // 2, length - window)
    return [*range(most - window), *range(start, start + window)]


def view(run: str, step: int, sample: dict[str, Any], most: int) -> dict[str, Any]:
    """Write a response out: its facts, and position, text and classes of each token ``shown``.

    Args:
        run: the run's name.
        step: the step it was generated in.
        sample: see ``samples.token_data``.
        most: tokens to show.
    """
    events, length = set(sample["events"]), len(sample["tokens"])
    places = shown(sample, most)
    end = (
        "stopped by the gate"
        if sample["stopped"]
        else "ended by itself"
        if sample["ended"]
        else "cut by the limit"
    )
    return {
        "run": run,
        "step": step,
        "prompt": sample["prompt"][-PROMPT:],
        "length": length,
        "effective_length": sample["effective_length"],
        "limit": sample["limit"],
        "events": len(events),
        "end": end,
        "spent": spent(sample),
        "tokens": [
            (
                i,
                readable(sample["pieces"][str(sample["tokens"][i])]),
                _classes(sample, i) + " e" * (i in events),
            )
            for i in places
        ],
        "more": length - 1 - max(places, default=-1),
    }


def _classes(sample: dict[str, Any], i: int) -> str:
    overlap = sample["overlap"][i]
    return f"w{round(10 * sample['weight'][i])} " + (
        "u" if overlap is None else f"o{round(10 * overlap)}"
    )


def readable(piece: str) -> str:
    """Write a token's text with what would not be seen made visible."""
    return piece.replace("\n", "↵\n").replace("\t", "⇥\t") or "∅"


def candidates(sample: dict[str, Any], most: int) -> dict[str, Any]:
    """List what both models would have said at each shown token, for the script.

    Args:
        sample: see ``samples.token_data``.
        most: tokens to show.

    Returns:
        ``pieces``: texts. For each token its ``position``, ``sampled``, the index of its own,
        ``student`` and ``teacher``, indices and log-probs in hundredths of a nat in turns,
        ``overlap`` and ``weight`` in percent; no overlap is None.
    """
    places = shown(sample, most)
    ids = {token: index for index, token in enumerate(sample["pieces"])}

    def row(tokens: list[int], log_probs: list[float | None]) -> list[int]:
        known = [(str(t), p) for t, p in zip(tokens, log_probs, strict=True) if str(t) in ids]
        # None: it was not finite.
        pairs = [(ids[t], round(100 * p)) for t, p in known if p is not None]
        return [value for pair in pairs for value in pair]

    both = {
        name: [row(sample[f"{name}_ids"][i], sample[f"{name}_log_probs"][i]) for i in places]
        for name in ("student", "teacher")
    }
    overlaps = [sample["overlap"][i] for i in places]
    return {
        "pieces": list(sample["pieces"].values()),
        "position": places,
        "sampled": [ids[str(sample["tokens"][i])] for i in places],
        "overlap": [None if value is None else round(100 * value) for value in overlaps],
        "weight": [round(100 * sample["weight"][i]) for i in places],
        **both,
    }
