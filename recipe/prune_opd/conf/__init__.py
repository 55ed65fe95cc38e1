"""Config groups for Hydra: ``+recipe=prune_opd``, ``opd``, ``opd_fixed_length``."""
