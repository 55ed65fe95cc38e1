"""The method: formulas of tensors and small state. Imports torch and nothing of the recipe above
it."""
