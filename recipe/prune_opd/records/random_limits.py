"""The control arm of the gate: stops at the lengths that another run kept, at random."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.prune_opd.method.budget import Budget, budget_metrics, whole_lengths
from recipe.prune_opd.method.saved_state import saved
from recipe.prune_opd.records.files import STEPS, read_steps


class RandomLimits(Budget):
    """Limit of each prompt, drawn from the lengths of the responses that another run kept at the
    same step, whatever is written in them. Steps beyond that run's last take its last.

    Against a gated run it tells what the gate's choice of the response is worth from what shorter
    responses are. A response may end by itself before its limit, as those of the other run did
    before a stop, so somewhat fewer tokens come out.

    All responses to a prompt share its limit. ``limit`` is the largest that may be drawn.

    Args:
        records: folder of the other run's records, readable where this run is started.
        max: ``budget.max``, which no length may exceed.
        seed: of the draws; one seed and one step are one draw.

    Raises:
        ValueError: the folder has no records, they lack a step or its lengths, or a length is above
            ``max``.
    """

    def __init__(self, records: str, max: int, seed: int = 0):
        self.seed, self._steps, self._done = seed, _kept_lengths(Path(records)), 0
        longest = _longest(*self._steps)
        if longest > max:
            raise ValueError(f"{records} kept {longest} tokens, more than budget.max = {max}")

    @property
    def limit(self) -> int:
        """See ``Budget``."""
        return max(self._lengths)

    def limits(self, count: int) -> list[int]:
        """See ``Budget``: drawn anew for each step, the same whenever this step is asked about."""
        return random.Random(f"{self.seed}/{self._done}").choices(self._lengths, k=count)

    def update(
        self, effective_lengths: Sequence[int], limits: Sequence[int] | None = None
    ) -> dict[str, float]:
        """See ``Budget``."""
        lengths, current = whole_lengths(effective_lengths), self.limit
        self._done += 1
        return budget_metrics(lengths, current, self.limit)

    def state_dict(self) -> dict[str, Any]:
        """See ``Budget``."""
        return {"steps": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Budget``."""
        (self._done,) = saved(state, "steps")

    @property
    def _lengths(self) -> list[int]:
        """Lengths of the other run at the coming step."""
        return self._steps[min(self._done, len(self._steps) - 1)]

    def __str__(self) -> str:
        return f"random, from the lengths of {len(self._steps)} recorded steps, seed {self.seed}"


def _kept_lengths(folder: Path) -> list[list[int]]:
    """Lengths of every step, the first one's first.

    Raises:
        ValueError: see ``RandomLimits``.
    """
    try:
        steps, faults = read_steps(folder)
    except OSError as error:
        reason = f"{folder / STEPS} cannot be read: {error.strerror}"
        raise ValueError(f"{reason}; needed: the folder records of another run") from error
    lacking = next((i for i, step in enumerate(steps, 1) if step["step"] != i), len(steps) + 1)
    if not steps or lacking <= len(steps):
        said = f"; {faults[0]}" if faults else ""
        raise ValueError(f"{folder / STEPS} lacks step {lacking}{said}")
    for step in steps:
        lengths = step.get("lengths")
        if not (isinstance(lengths, list) and lengths and all(map(_is_length, lengths))):
            found = f"step {step['step']} has lengths {lengths!r:.40}"
            raise ValueError(f"{folder / STEPS}: {found}, needed: the responses' lengths in tokens")
    return [step["lengths"] for step in steps]


def _longest(*steps: list[int]) -> int:
    return max(map(max, steps))


def _is_length(value: Any) -> bool:
    return type(value) is int and value >= 1
