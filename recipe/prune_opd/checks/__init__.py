"""Checks of what a run starts from, before Ray starts or a model is loaded."""
