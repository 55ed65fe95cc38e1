"""What a teacher that scores finished responses promises, wherever it is. Every check takes the
teacher, its model in transformers, and the most tokens it can score."""

import asyncio
import random
from typing import Any

import harness
import numpy as np
import pytest
import torch

from verl_ext.rollout.rows import BadQuestion, TopKRows
from verl_ext.rollout.scoring import ResponseScorer, ScoreReport

K = 16
VOCABULARY = len(harness.walk.VOCABULARY)
Asked = list[tuple[list[int], list[int]]]


def sequences(count: int, prompt: int = 20, seed: int = 0) -> Asked:
    """Random prompts of one length and responses of every length from 1 to ``count``."""
    generator = random.Random(seed)
    return [
        (
            generator.choices(range(10, VOCABULARY), k=prompt),
            generator.choices(range(10, VOCABULARY), k=length),
        )
        for length in range(1, count + 1)
    ]


async def score(
    teacher: Any, asked: Asked, **given: Any
) -> list[tuple[TopKRows, np.ndarray, ScoreReport]]:
    """Rows of the responses, log-probs of their tokens, and how it went."""
    settings = {"concurrency": 16, "deadline": 300, "retries": 0} | given
    scorer = ResponseScorer(teacher, K, VOCABULARY, **settings)
    return await asyncio.gather(*(scorer.score(*one) for one in asked))


@torch.no_grad()
def log_probs_of(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probs (tokens, vocabulary) of the response's positions, by transformers."""
    return (
        model(torch.tensor([prompt + response]))
        .logits[0, len(prompt) - 1 : -1]
        .float()
        .log_softmax(-1)
    )


def assert_rows(rows: TopKRows, log_probs: torch.Tensor) -> None:
    """The K most likely by rank; ids may change places only where the two are as good as equal."""
    best = log_probs.topk(K).values.numpy()
    assert rows.ids.shape == rows.log_probs.shape == best.shape
    np.testing.assert_allclose(rows.log_probs, best, atol=1e-4)
    np.testing.assert_allclose(
        log_probs.gather(1, torch.tensor(rows.ids).long()).numpy(), best, atol=1e-4
    )
    assert all(len(set(row)) == K for row in rows.ids.tolist())


async def scores_are_those_of_transformers(teacher: Any, model: Any, most: int) -> None:
    """Row t scores token t, the prompt has none; responses of one token and of as many as there is
    room for."""
    longest = sequences(most - 20)[-1]
    asked = [*sequences(40), longest]
    outside = []
    for (prompt, response), (rows, sampled, report) in zip(
        asked, await score(teacher, asked), strict=True
    ):
        assert (report.missing, report.failed, report.error) == (0, 0, "")
        log_probs = log_probs_of(model, prompt, response)
        assert_rows(rows, log_probs)
        own = log_probs.gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)
        np.testing.assert_allclose(sampled, own, atol=1e-4)
        outside += [
            token not in row for token, row in zip(response, rows.ids.tolist(), strict=True)
        ]
    assert any(outside)
    assert not all(outside)  # K candidates whether or not the token itself is among them


async def an_empty_response_has_no_rows(teacher: Any, model: Any, most: int) -> None:
    """And asks nobody."""
    ((rows, sampled, report),) = await score(teacher, [([5] * 20, [])])
    assert (len(rows), len(sampled), report.computed, report.ended) == (0, 0, 0, 0)


async def a_thousand_responses_at_once(teacher: Any, model: Any, most: int) -> None:
    """Each gets its own rows."""
    asked = [one for seed in range(25) for one in sequences(40, seed=seed)]
    answers = await score(teacher, asked, concurrency=1000)
    assert [report.missing for *_, report in answers] == [0] * 1000
    for (prompt, response), (rows, _, _) in list(zip(asked, answers, strict=True))[::40]:
        assert_rows(rows, log_probs_of(model, prompt, response))


async def a_sequence_beyond_the_context_is_an_error_that_says_so(
    teacher: Any, model: Any, most: int
) -> None:
    """It is the question's fault: asked again it would be the same."""
    ((prompt, response),) = sequences(most)[-1:]
    with pytest.raises(BadQuestion, match=rf"{most}|{most + 1}|context|longer"):
        await teacher.score(prompt + response, 20, K)
    ((_, _, report),) = await score(teacher, [(prompt, response)], retries=5)
    assert (report.failed, report.missing) == (1, most)


CHECKS = (
    scores_are_those_of_transformers,
    an_empty_response_has_no_rows,
    a_thousand_responses_at_once,
    a_sequence_beyond_the_context_is_an_error_that_says_so,
)
each = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
