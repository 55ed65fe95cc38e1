"""What the commands know: about models before training, about runs after it. Nothing here takes part in training."""
