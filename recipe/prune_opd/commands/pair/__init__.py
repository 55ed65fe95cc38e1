"""What ``doctor`` and ``diagnose`` share: a pair of models, its prompts, sampling, scoring,
engines."""
