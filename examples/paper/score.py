"""Scores of the paper's runs, for logging and validation only; no score takes part in the loss.

verl's own scoring picks a rule by ``data_source`` and knows none of the five validation sets by the names in ``BOXED``,
so the last boxed answer is compared with the ground truth by ``math-verify``. Training prompts keep verl's rule.
"""

from typing import Any

from verl.utils.reward_score import default_compute_score, math_verify
from verl.utils.reward_score.math_dapo import last_boxed_only_string

BOXED = ("AMC23", "AIME24", "AIME25", "HMMT24", "HMMT25")


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **kwargs: Any
) -> Any:
    """Score of one response, by the interface of ``reward.custom_reward_function``.

    Args:
        data_source: the row's field of that name; decides the rule.
        solution_str: the response as text.
        ground_truth: the row's ``reward_model.ground_truth``.
        extra_info: the row's field of that name.
        **kwargs: what verl passes besides.

    Returns:
        1.0 or 0.0 on the validation sets; on others what verl's own rule gives.
    """
    if data_source not in BOXED:
        return default_compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
    answer = last_boxed_only_string(solution_str)
    # Only the last box: math-verify would join several boxes of a long response to one answer.
    return math_verify.compute_score(answer, str(ground_truth)) if answer else 0.0
