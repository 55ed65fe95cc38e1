"""Our trainer's name, and the mark by which a trainer with the method is known."""

NAME = "prune_opd"
"""Our trainer in verl's registry."""


class PruningTrainer:
    """Mark of a trainer with Prune-OPD, by which the start check knows it."""
