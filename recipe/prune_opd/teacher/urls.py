"""Checks of a teacher behind URLs, before anything expensive starts: is it there, is it the one,
can it do it?"""

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from recipe.prune_opd.config import TeacherConfig
from recipe.prune_opd.teacher.servers import url_teacher
from verl_ext.rollout.rows import RESERVED, BadQuestion, BadScore

if TYPE_CHECKING:
    from recipe.prune_opd.checks.models import Model

logger = logging.getLogger(__name__)

KEY = "prune_opd.teacher.url.urls"
PROBE = 64
"""Ids that are scored, spread over the vocabulary."""
SECONDS = 60
"""For one server to answer."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""In the text of a token that is a part of a character; servers write these in different ways."""


def check_urls(
    teacher: TeacherConfig, topk: int, student: "Model", common: int, longest: int
) -> None:
    """Ask every server about the model, its context, and for the score of a probe.

    Args:
        teacher: the configuration.
        topk: K.
        student: whose tokenizer the texts of the answer are compared with.
        common: ids below it are known to both models.
        longest: tokens of the longest sequence there will be.

    Raises:
        ValueError: names the URL, what was found and what is needed.
    """
    asked = url_teacher(teacher)
    open_to_see = [
        url
        for url in asked.urls
        if url.startswith("http:") and urlsplit(url).hostname not in LOOPBACK
    ]
    if asked.api_key and open_to_see:
        logger.warning(
            "%s: the API key is sent to %s without encryption; https:// would hide it",
            KEY,
            open_to_see[0],
        )
    known = sorted(i for i in student.tokens if i < common)
    probe = [known[i * (len(known) - 1) // (PROBE - 1)] for i in range(PROBE)]
    for url in asked.urls:
        try:
            models, texts = asyncio.run(asyncio.wait_for(asked.examine(url, probe, topk), SECONDS))
        except asyncio.TimeoutError as error:
            raise ValueError(f"{KEY}: {url} does not answer within {SECONDS} s") from error
        except (
            aiohttp.ClientError,
            OSError,
            BadQuestion,
            BadScore,
            AttributeError,
            KeyError,
            TypeError,
        ) as error:
            raise ValueError(
                f"{KEY}: {url} does not score as {teacher.url.api} does with {topk} log-probs for"
                f" each token of a prompt ({type(error).__name__}: {error})"
            ) from error
        if asked.model not in models:
            raise ValueError(
                f"prune_opd.teacher.url.model: {url} serves {', '.join(models)}, not {asked.model};"
                " give the name it serves the teacher under"
            )
        context = models[asked.model]
        needed = longest + RESERVED[teacher.url.api]
        if context is not None and context < needed:
            raise ValueError(
                f"{KEY}: {url} has a context of {context} tokens, needed: {needed}, that is"
                f" data.max_prompt_length + prune_opd.budget.max + {RESERVED[teacher.url.api]}"
            )
        _check_texts(url, texts, student)


def _check_texts(url: str, texts: dict[int, str], student: "Model") -> None:
    readable = 0
    for i, theirs in texts.items():
        ours = student.tokenizer.decode([i])
        if not theirs or UNREADABLE in theirs or UNREADABLE in ours:
            continue
        readable += 1
        if theirs != ours:
            raise ValueError(
                f"{KEY}: {url} writes token {i} as {theirs!r}, the student's tokenizer as {ours!r};"
                " teacher and student must share one tokenizer"
            )
    if not readable:
        raise ValueError(f"{KEY}: {url} does not write tokens as text; start it with its tokenizer")
