"""verl's hooks: trainer, workers, agent loop. No formula."""
