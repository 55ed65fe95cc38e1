"""Command `prepare`."""
