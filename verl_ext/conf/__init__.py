"""Config groups for Hydra: ``+platform=cpu``."""
