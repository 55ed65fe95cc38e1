"""What verl lacks and any recipe could use. Nothing here knows of pruning; imports go recipe ->
verl_ext -> verl."""
