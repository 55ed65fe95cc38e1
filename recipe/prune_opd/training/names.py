"""Our names in verl's registries, and the mark by which a trainer with the method is known."""

NAME = "prune_opd"
"""Our trainer and our agent loop in verl's registries."""


class PruningTrainer:
    """Mark of a trainer with Prune-OPD, by which the start check knows it."""
