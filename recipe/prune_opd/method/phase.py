"""The phase of Semi-OPD: whether responses are cached ones of the starting student, or live.
(arXiv:2610.11291)"""

from typing import Any


class RolloutPhase:
    """Frozen at first; live, and never frozen again, once the overlap is beyond a bound.

    Args:
        rollouts: id of the cache that is trained on.
        below: overlap below which the run goes live, None for no such bound.
        above: overlap above which it goes live, None for no such bound.
    """

    def __init__(self, rollouts: str, below: float | None = None, above: float | None = None):
        self.rollouts, self.below, self.above = rollouts, below, above
        self.frozen = True

    def update(self, overlap: float) -> bool:
        """Take in a batch, and tell whether the run goes live after it.

        Args:
            overlap: mean of O_t over the tokens of the batch, 0 to 1.
        """
        low = self.below is not None and overlap < self.below
        high = self.above is not None and overlap > self.above
        switched = self.frozen and (low or high)
        self.frozen = self.frozen and not switched
        return switched

    def state_dict(self) -> dict[str, Any]:
        """State that a checkpoint must hold to go on exactly here."""
        return {"frozen": self.frozen, "rollouts": self.rollouts}

    def load_state_dict(self, state: Any) -> None:
        """Go on from ``state_dict()``'s answer.

        Raises:
            ValueError: it is no such answer, or of a run that is still frozen on other rollouts.
        """
        kinds = {"frozen": bool, "rollouts": str}
        if not isinstance(state, dict) or any(
            not isinstance(state.get(name), kind) for name, kind in kinds.items()
        ):
            raise ValueError(f"semi: got {state!r}, allowed: frozen, true or false, and rollouts")
        if state["frozen"] and state["rollouts"] != self.rollouts:
            raise ValueError(
                f"semi.rollouts: got {state['rollouts']}, but prune_opd.semi.dir holds the rollouts"
                f" {self.rollouts}: resume with the folder that the run began with"
            )
        self.frozen = state["frozen"]
