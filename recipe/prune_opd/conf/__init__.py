"""Config groups for Hydra: ``+recipe=prune_opd``, ``prune_opd_gate``, ``opd``,
``opd_fixed_length``, ``opd_first``, ``iw_opd``, ``semi_opd``,
``drift_weights``."""
