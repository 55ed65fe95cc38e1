"""Parts that verl lacks and any recipe could use; nothing here knows of pruning.

Imports go one way: recipe -> verl_ext -> verl.
"""
