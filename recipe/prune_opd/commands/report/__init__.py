"""Command `report`."""
