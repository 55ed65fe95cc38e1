"""Commands of ``python -m recipe.prune_opd``, a folder each; heavy imports wait until they run."""
