"""Command `evaluate`."""
