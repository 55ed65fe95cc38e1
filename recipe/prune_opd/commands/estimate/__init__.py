"""Command `estimate`."""
