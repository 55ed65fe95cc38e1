"""The commands of ``python -m recipe.prune_opd``, one module each. They import what is heavy when
they run."""
