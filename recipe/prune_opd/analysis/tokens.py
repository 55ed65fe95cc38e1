"""Samples token by token, made ready for the page: bounded, and as compact as they can be read in the browser."""

from collections.abc import Sequence
from typing import Any

from recipe.prune_opd.analysis.runs import Run

RESPONSES = 6
"""Responses shown per run: half of the first step with samples, half of the last."""
TOKENS = 6000
"""Tokens shown in a page, shared out among its responses."""
PROMPT = 600
"""Characters of a prompt that are shown: its end."""


def token_views(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's template needs: ``samples`` to be written out, ``candidates`` for its script, and which sample is
    ``opened``: the one that lost the most tokens.

    Raises:
        ValueError: a file of samples is damaged.
    """
    picked = [(run, *one) for run in runs for one in _picked(run)]
    most = TOKENS // max(1, len(picked))
    samples = [view(run.name, step, sample, most) for run, step, sample in picked]
    lost = [sample["length"] - sample["effective_length"] for sample in samples]
    return {
        "samples": samples,
        "opened": lost.index(max(lost)) if lost else None,
        "candidates": [candidates(sample, most) for _, _, sample in picked],
    }


def _picked(run: Run) -> list[tuple[int, dict[str, Any]]]:
    """Steps and responses of the first and of the last step with samples, evenly from each."""
    steps = run.sampled()
    ends = [steps[0], steps[-1]] if len(steps) > 1 else steps
    found = []
    for step in ends:
        responses, count = run.samples(step), RESPONSES // len(ends)
        spread = len(responses) if len(responses) <= count else count
        indices = {round(i * (len(responses) - 1) / max(1, spread - 1)) for i in range(spread)}
        found += [(step, responses[i]) for i in sorted(indices)]
    return found


def view(run: str, step: int, sample: dict[str, Any], most: int) -> dict[str, Any]:
    """A response to be written out: its facts, and for each of its first tokens text and classes.

    Args:
        run: the run's name.
        step: the step it was generated in.
        sample: see ``samples.token_data``.
        most: tokens to show.
    """
    events, length = set(sample["events"]), len(sample["tokens"])
    end = "stopped by the gate" if sample["stopped"] else "ended by itself" if sample["ended"] else "cut by the limit"
    spent = next((i for i, weight in enumerate(sample["weight"]) if weight <= 0), None)
    return {
        "run": run,
        "step": step,
        "prompt": sample["prompt"][-PROMPT:],
        "length": length,
        "effective_length": sample["effective_length"],
        "limit": sample["limit"],
        "events": len(events),
        "end": end,
        "spent": spent,
        "shown": min(length, most),
        "tokens": [
            (
                readable(sample["pieces"][str(token)]),
                f"w{round(10 * weight)} "
                + ("u" if overlap is None else f"o{round(10 * overlap)}")
                + (" e" if index in events else ""),
            )
            for index, (token, overlap, weight) in enumerate(
                zip(sample["tokens"][:most], sample["overlap"], sample["weight"], strict=False)
            )
        ],
    }


def readable(piece: str) -> str:
    """A token's text with what would not be seen made visible."""
    return piece.replace("\n", "↵\n").replace("\t", "⇥\t") or "∅"


def candidates(sample: dict[str, Any], most: int) -> dict[str, Any]:
    """What both models would have said at each shown token, for the script.

    Args:
        sample: see ``samples.token_data``.
        most: tokens to show.

    Returns:
        ``pieces``: texts. For each token ``sampled``, the index of its own, ``student`` and ``teacher``, indices and
        log-probs in hundredths of a nat in turns, ``overlap`` and ``weight`` in percent; no overlap is None.
    """
    ids = {token: index for index, token in enumerate(sample["pieces"])}

    def row(tokens: list[int], log_probs: list[float | None]) -> list[int]:
        known = [(str(t), p) for t, p in zip(tokens, log_probs, strict=True) if str(t) in ids]
        pairs = [(ids[t], round(100 * p)) for t, p in known if p is not None]  # None: it was not finite
        return [value for pair in pairs for value in pair]

    both = {
        name: [row(*pair) for pair in zip(sample[f"{name}_ids"][:most], sample[f"{name}_log_probs"], strict=False)]
        for name in ("student", "teacher")
    }
    return {
        "pieces": list(sample["pieces"].values()),
        "sampled": [ids[str(token)] for token in sample["tokens"][:most]],
        "overlap": [None if value is None else round(100 * value) for value in sample["overlap"][:most]],
        "weight": [round(100 * value) for value in sample["weight"][:most]],
        **both,
    }
