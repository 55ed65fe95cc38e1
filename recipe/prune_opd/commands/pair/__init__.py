"""Parts that ``doctor`` and ``diagnose`` share: models, prompts, sampling, scoring, engines."""
