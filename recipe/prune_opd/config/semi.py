"""Keys of ``prune_opd.semi``: rollouts of the starting student, generated once."""

from typing import Literal

from recipe.prune_opd.config.base import Keys, Share, recipe, require
from recipe.prune_opd.method.phase import RolloutPhase


class SemiConfig(Keys):
    """Semi-OPD (arXiv:2610.11291): training on cached rollouts of the starting student."""

    enable: bool = False
    """Generate the rollouts of all prompts before the first update, and train on them alone. Not
    with ``gate.enable``: what is not generated cannot be stopped."""
    dir: str | None = recipe(None, "${trainer.default_local_dir}/rollouts")
    """Folder of the cached rollouts, which every node must see. What is there already, of the same
    models and settings, is used."""
    switch: Literal["never", "overlap"] = "never"
    """Going live, to ordinary on-policy rollouts from the next batch on. ``overlap``: once the mean
    overlap of a batch is beyond one of the two bounds."""
    overlap_below: Share | None = None
    """Go live below it: the teacher has little to say where the cached rollouts lead."""
    overlap_above: Share | None = None
    """Go live above it: the paper finds live rollouts worth their price where both overlap much."""

    def check(self, gate: bool, teachers: list[str]) -> None:
        """Refuse keys that do not go together.

        Args:
            gate: ``gate.enable``.
            teachers: names in ``teacher.models``.

        Raises:
            ValueError: names the key, what was found and what is allowed.
        """
        if not self.enable:
            return
        require(not gate, "gate.enable", gate, "false with semi.enable: cached responses are whole")
        allowed = "none with semi.enable: cached rollouts are kept by their prompt alone"
        require(not teachers, "teacher.models", teachers, allowed)
        require(bool(self.dir), "semi.dir", self.dir, "a folder with semi.enable")
        bounds = {"overlap_below": self.overlap_below, "overlap_above": self.overlap_above}
        given = [name for name, bound in bounds.items() if bound is not None]
        if self.switch == "overlap":
            allowed = "a bound, semi.overlap_below or semi.overlap_above, with semi.switch=overlap"
            require(bool(given), "semi.overlap_below", None, allowed)
        for name in given:
            allowed = "null with semi.switch=never"
            require(self.switch == "overlap", f"semi.{name}", bounds[name], allowed)

    def new_phase(self, rollouts: str) -> RolloutPhase:
        """The phase of a run at its start.

        Args:
            rollouts: id of the cache.
        """
        return RolloutPhase(rollouts, self.overlap_below, self.overlap_above)
