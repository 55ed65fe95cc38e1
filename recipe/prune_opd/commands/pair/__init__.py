"""A pair of models looked at: weights, engines, passes over prompts. What `doctor` and `diagnose`
share."""
