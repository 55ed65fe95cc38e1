"""Numbers of verl that a run depends on: their kind and range, where verl fails later or never."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from recipe.prune_opd.checks.kinds import look_up
from recipe.prune_opd.config import LARGEST, shown


@dataclass(frozen=True)
class Range:
    """Range of a number.

    Args:
        words: the range, in words.
        holds: whether a finite number is in it.
        whole: no fractions.
    """

    words: str
    holds: Callable[[float], bool]
    whole: bool = True

    def allows(self, value: Any) -> bool:
        """Tell whether a value is a number, finite, and in the range; a whole one of 32 bits."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        whole = isinstance(value, int)
        return (abs(value) <= LARGEST if whole else math.isfinite(value)) and self.holds(value)


COUNT = Range("a whole number >= 1", lambda value: value >= 1)
COUNT_OR_NONE = Range("a whole number >= 0", lambda value: value >= 0)
FROM_MINUS_ONE = Range("a whole number >= -1", lambda value: value >= -1)
TOP_K = Range("a whole number >= 1, or -1 for all", lambda value: value >= -1)
POSITIVE = Range("a number > 0", lambda value: value > 0, whole=False)
NOT_NEGATIVE = Range("a number >= 0", lambda value: value >= 0, whole=False)
TEMPERATURE = Range("a number in [0.01, 100]", lambda value: 0.01 <= value <= 100, whole=False)
ABOVE_ONE = Range("a number > 1", lambda value: value > 1, whole=False)
SHARE = Range("a number in (0, 1]", lambda value: 0 < value <= 1, whole=False)
FROM_ZERO = Range("a number in [0, 1]", lambda value: 0 <= value <= 1, whole=False)

ACTOR, ROLLOUT, REF = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref"))
NUMBERS = {
    "data.max_prompt_length": COUNT,
    "data.max_response_length": COUNT,
    "data.train_batch_size": COUNT,
    "data.train_max_samples": FROM_MINUS_ONE,
    "data.dataloader_num_workers": COUNT_OR_NONE,
    f"{ROLLOUT}.prompt_length": COUNT,
    f"{ROLLOUT}.response_length": COUNT,
    f"{ROLLOUT}.n": COUNT,
    # Logits are divided by it. Below 0.01 vLLM samples at 0.01, verl scores at what is given.
    f"{ROLLOUT}.temperature": TEMPERATURE,
    f"{ROLLOUT}.top_p": SHARE,
    f"{ROLLOUT}.top_k": TOP_K,
    f"{ROLLOUT}.val_kwargs.n": COUNT,
    f"{ROLLOUT}.val_kwargs.temperature": NOT_NEGATIVE,
    f"{ROLLOUT}.val_kwargs.top_p": SHARE,
    f"{ROLLOUT}.val_kwargs.top_k": TOP_K,
    f"{ROLLOUT}.gpu_memory_utilization": SHARE,
    f"{ROLLOUT}.tensor_model_parallel_size": COUNT,
    f"{ROLLOUT}.data_parallel_size": COUNT,
    f"{ROLLOUT}.max_num_batched_tokens": COUNT,
    f"{ROLLOUT}.max_num_seqs": COUNT,
    f"{ROLLOUT}.agent.num_workers": COUNT,
    f"{ACTOR}.ppo_mini_batch_size": COUNT,
    f"{ACTOR}.ppo_epochs": COUNT,
    f"{ACTOR}.ppo_max_token_len_per_gpu": COUNT,
    f"{ACTOR}.clip_ratio": NOT_NEGATIVE,
    f"{ACTOR}.clip_ratio_c": ABOVE_ONE,
    f"{ACTOR}.optim.lr": NOT_NEGATIVE,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": FROM_ZERO,
    f"{ACTOR}.optim.clip_grad": POSITIVE,
    "actor_rollout_ref.model.lora_rank": COUNT_OR_NONE,
    "reward.num_workers": COUNT,
    "trainer.nnodes": COUNT,
    "trainer.n_gpus_per_node": COUNT,
    "trainer.total_epochs": COUNT,
    "trainer.save_freq": FROM_MINUS_ONE,
    "trainer.test_freq": FROM_MINUS_ONE,
}
"""Keys that need a number, by what it may be."""
OPTIONAL = {
    "data.gen_batch_size": COUNT,
    "data.val_batch_size": COUNT,
    "actor_rollout_ref.model.override_config.max_position_embeddings": COUNT,
    "actor_rollout_ref.model.override_config.model_config.max_position_embeddings": COUNT,
    f"{ROLLOUT}.max_model_len": COUNT,
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu": COUNT,
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": COUNT,
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": COUNT,
    f"{ACTOR}.clip_ratio_low": NOT_NEGATIVE,
    f"{ACTOR}.clip_ratio_high": NOT_NEGATIVE,
    f"{ACTOR}.optim.lr_warmup_steps": FROM_MINUS_ONE,
    f"{REF}.log_prob_max_token_len_per_gpu": COUNT,
    f"{REF}.log_prob_micro_batch_size_per_gpu": COUNT,
    "trainer.total_training_steps": COUNT,
}
"""Keys that may also be null, by what the number may be."""


def check_numbers(config: DictConfig) -> None:
    """Check every number by itself, but those of the training engine.

    Raises:
        ValueError: the first key whose value is no number or out of its range.
    """
    check_ranges(config, NUMBERS | OPTIONAL)


def check_ranges(config: DictConfig, ranges: Mapping[str, Range]) -> None:
    """Check that keys hold numbers in their ranges.

    Raises:
        ValueError: the first key whose value is no number or out of its range.
    """
    for key, allowed in ranges.items():
        found = look_up(config, key)
        if found is None and key in OPTIONAL:
            continue
        if not allowed.allows(found):
            also = ", or null" if key in OPTIONAL else ""
            large = isinstance(found, int) and abs(found) > LARGEST
            most = f", at most {LARGEST}" if large else ""
            raise ValueError(f"{key}: got {shown(found)}, allowed: {allowed.words}{most}{also}")
