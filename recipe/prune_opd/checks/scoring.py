"""Scorers of responses, verl's function, ours or the user's, and what they must know of a row."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

GRADING = "pkg://recipe.prune_opd.grading"
"""``reward.custom_reward_function.path`` of this package's reward function."""
PREPARED = ("math_dapo", "MATH-500", "AIME24", "AIME25", "AMC23", "HMMT24", "HMMT25", "GSM8K")
"""``data_source`` of the rows that the command ``prepare`` writes."""
SCORER, NAMED_SCORER = "the reward function", "reward.custom_reward_function"
"""Readers of a row, for messages: verl's reward function or this package's, or the user's."""
NAMED = ("reward.custom_reward_function.path", "custom_reward_function.path")
"""Keys that name a reward function: verl's, and its old one, which a trainer no longer has."""


def reads_rows(config: DictConfig) -> str | None:
    """Name who reads ``data_source`` and ``reward_model`` of every row, for messages.

    verl scores every response, in training and in validation, although the scores are not trained
    on.

    Returns:
        ``SCORER`` or ``NAMED_SCORER``; None where a reward model or a reward manager of the user's
        reads what it likes.
    """
    named = _first(config, NAMED)
    if _first(
        config, ("reward.reward_manager.source", "reward_model.reward_loop_source"), "register"
    ):
        return None
    if named is None and _first(
        config, ("reward.reward_model.enable", "reward_model.enable"), False
    ):
        return None
    return SCORER if named in (None, GRADING) else NAMED_SCORER


def grades_here(config: DictConfig, sources: Mapping[Any, str]) -> bool:
    """Tell whether this package's reward function must replace verl's, which lacks the data.

    Args:
        config: verl's composed configuration.
        sources: ``data_source`` -> where the first row with it is.

    Raises:
        ValueError: no reward function is named, and neither of the two knows all rows; names one
            that is not known.
    """
    if _first(config, NAMED) is not None or reads_rows(config) is None:
        return False
    unknown = [source for source in sources if not verl_scores(source)]
    foreign = [source for source in sources if source not in PREPARED]
    if not unknown or not foreign:
        return bool(unknown)
    lost = next((source for source in unknown if source not in PREPARED), None)
    give = (
        f"give reward.custom_reward_function.path, {GRADING} for mathematical answers in"
        " \\boxed{}"
    )
    if lost is not None:
        raise ValueError(
            f"{sources[lost]} has the data_source {lost!r}, for which verl has no reward function,"
            f" nor are these rows of the command prepare; {give}"
        )
    raise ValueError(
        f"{sources[unknown[0]]} has the data_source {unknown[0]!r}, for which verl has no reward"
        f" function, and {sources[foreign[0]]} has {foreign[0]!r}, which is not of the command"
        f" prepare; one function scores all rows: {give}"
    )


def verl_scores(source: Any) -> bool:
    """Tell whether verl's own reward function has a rule for a ``data_source``."""
    from verl.utils.reward_score import default_compute_score

    if not isinstance(source, str):
        return False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            default_compute_score(source, None, None)
    except NotImplementedError:
        return False
    except Exception:  # it has one, which does not take None for a response
        return True
    return True


def _first(config: DictConfig, keys: tuple[str, ...], default: Any = None) -> Any:
    """First value at one of the keys that is neither null nor the default; None without one."""
    values = (OmegaConf.select(config, key) for key in keys)
    return next((value for value in values if value is not None and value != default), None)
