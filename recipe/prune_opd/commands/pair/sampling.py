"""Responses of the student, and how transformers samples them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from recipe.prune_opd.checks.models import Model


@dataclass(frozen=True)
class Rollout:
    """Response of the student."""

    prompt: int
    """Number of its prompt."""
    prompt_ids: list[int]
    response_ids: list[int]
    """At least one, the end token included if there is one."""

    @property
    def ids(self) -> list[int]:
        """Ids of prompt and response."""
        return [*self.prompt_ids, *self.response_ids]


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling."""

    tokens: int
    """Most of a response."""
    ends: frozenset[int] = frozenset()
    """Ids that end a response; none: it has as many tokens as it may."""
    temperature: float = 1.0
    seed: int = 0
    batch: int = 8
    """Responses that transformers samples at once."""
    whole: int | None = None
    """Most of a prompt with its response, where less than ``tokens`` may follow a long one."""

    def room_after(self, prompt: Sequence[int]) -> int:
        """Most tokens of the response to a prompt."""
        return self.tokens if self.whole is None else min(self.tokens, self.whole - len(prompt))


def sample(
    model: Any, student: Model, prompts: Sequence[list[int]], how: Sampling
) -> list[list[int]]:
    """Sample a response to each prompt from the whole distribution, by transformers.

    Args:
        model: the student's weights.
        student: whose tokens are written: no id without a token is.
        prompts: ids.
        how: length, ends, temperature, seed.

    Returns:
        Ids of each response, its end included.

    Raises:
        FloatingPointError: a probability is not finite.
    """
    # In the place of the model's own settings, which may bring another top_p, a repetition penalty
    # and the like.
    model.generation_config = _settings(student, how)
    torch.manual_seed(how.seed)
    responses: list[list[int]] = []
    with _watched(len(prompts) * how.tokens) as (bar, watch):
        for start in range(0, len(prompts), how.batch):
            some = prompts[start : start + how.batch]
            ids, mask = _padded(some, model.device)
            most = max(how.room_after(prompt) for prompt in some)
            answers = model.generate(
                ids, attention_mask=mask, logits_processor=[watch], max_new_tokens=most
            )
            written = answers[:, ids.shape[1] :].tolist()
            responses += [
                _until_end(answer[: how.room_after(prompt)], how.ends)
                for answer, prompt in zip(written, some, strict=True)
            ]
            bar.n = len(responses) * how.tokens
            bar.refresh()
    return responses


def _settings(student: Model, how: Sampling) -> Any:
    """Settings of ``generate``: nothing but the temperature changes the distribution."""
    from transformers import GenerationConfig

    without_token = list(range(max(student.tokens) + 1, student.vocab_size))
    return GenerationConfig(
        do_sample=True,
        temperature=how.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=sorted(how.ends) or None,
        pad_token_id=min(how.ends, default=0),
        suppress_tokens=without_token or None,
    )


@contextmanager
def _watched(tokens: int) -> Iterator[tuple[Any, Any]]:
    """Bar, and a logits processor that moves it and refuses what is not finite."""
    from transformers import LogitsProcessor

    class Watch(LogitsProcessor):
        """Processor that changes nothing."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if not scores.softmax(-1).isfinite().all():
                raise FloatingPointError("a log-prob is not finite")
            bar.update(len(input_ids))
            return scores

    with tqdm(desc="sampling, at most", unit=" tokens", total=tokens) as bar:
        yield bar, Watch()


def _padded(prompts: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T), padded on the left, where the mask hides it: any id will do."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    """Ids without the padding that follows an end token."""
    for number, token in enumerate(ids):
        if token in ends:
            return ids[: number + 1]
    return ids
