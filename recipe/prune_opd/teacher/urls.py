"""Checks of a teacher behind URLs, before anything expensive starts: is it there, is it the one,
can it do it?"""

import asyncio
import logging
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from omegaconf import DictConfig

from recipe.prune_opd.checks.files import check_readable, reason_of
from recipe.prune_opd.checks.models import Model, check_server_context
from recipe.prune_opd.config import TeacherConfig, require
from recipe.prune_opd.teacher.servers import Served
from verl_ext.rollout.rows import RESERVED, BadQuestion, BadScore
from verl_ext.rollout.url_teacher import UrlTeacher

logger = logging.getLogger(__name__)

KEY = "prune_opd.teacher.url.urls"
PROBE = 64
"""Ids that are scored, spread over the vocabulary."""
SECONDS = 60
"""Seconds for one server to answer."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""Character in the text of a token that is a part of one; servers write these in different ways."""


class Urls(Served):
    """Servers that somebody else runs: they cost this run no device."""

    has_files = False

    def check(self, config: DictConfig) -> None:
        """See ``Home``."""
        super().check(config)
        home = f"teacher.home={self.prune_opd.teacher.home}"
        urls, gated = self.prune_opd.teacher.url.urls, self.prune_opd.gate.enable
        require(bool(urls), "teacher.url.urls", urls, f"at least one http://host:port with {home}")
        allowed = f"false with {home}: a gate needs servers that the run has started"
        require(not gated, "gate.enable", gated, allowed)

    def check_models(self, config: DictConfig, student: Model, teacher: Model) -> None:
        """See ``Home``."""
        given = self.prune_opd
        longest = config.data.max_prompt_length + given.budget.longest
        check_server_context(teacher, longest, given.teacher.url.api)
        common = min(student.vocab_size, teacher.vocab_size)
        check_urls(given.teacher, given.topk, student, common, longest)

    def client(self, config: DictConfig, servers: Any) -> UrlTeacher:
        """See ``Home``."""
        return url_teacher(self.prune_opd.teacher)


def url_teacher(teacher: TeacherConfig) -> UrlTeacher:
    """The teacher on servers that somebody else runs.

    Raises:
        ValueError: the environment has no such variable for the key, or there is no such file.
    """
    given = teacher.url
    if given.api_key_env:
        key, name = os.environ.get(given.api_key_env, "").strip(), given.api_key_env
        if not key:
            raise ValueError(
                f"prune_opd.teacher.url.api_key_env: the environment has no variable {name}, needed"
                " on every node"
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"prune_opd.teacher.url.api_key_env: the variable {name} holds a character that an"
                " HTTP header must not have, allowed: printable ASCII"
            )
    certificates = None
    if given.ca_file:  # read here: the machines that ask may not have the file
        certificates = _certificates(Path(given.ca_file))
    model = given.model or str(teacher.path)
    return UrlTeacher(given.urls, model, given.api, given.api_key_env or None, certificates)


def _certificates(file: Path) -> str:
    """Content of a file of certificates, which can be used.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    key, allowed = "prune_opd.teacher.url.ca_file: ", "a file in PEM format"
    check_readable(key, file, allowed)
    try:
        # Names beside the certificates may have letters of any language.
        text = file.read_bytes().decode("ascii", errors="ignore")
        if not text.strip():
            raise ValueError("there is no text in it")
        ssl.create_default_context(cadata=text)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ValueError(
            f"{key}{file} holds no certificates ({reason_of(error)}), allowed: {allowed}"
        ) from error
    return text


def check_urls(
    teacher: TeacherConfig, topk: int, student: Model, common: int, longest: int
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
    _warn_of_open_key(asked)
    known = sorted(i for i in student.tokens if i < common)
    probe = [known[i * (len(known) - 1) // (PROBE - 1)] for i in range(PROBE)]
    for url in asked.urls:
        models, texts = _examined(asked, url, probe, topk)
        if asked.model not in models:
            raise ValueError(
                f"prune_opd.teacher.url.model: {url} serves {asked.shown(', '.join(models))}, not"
                f" {asked.model}; give the name it serves the teacher under"
            )
        context, reserved = models[asked.model], RESERVED[teacher.url.api]
        if context is not None and context < longest + reserved:
            raise ValueError(
                f"{KEY}: {url} has a context of {context} tokens, needed: {longest + reserved},"
                f" that is data.max_prompt_length + prune_opd.budget.max + {reserved}"
            )
        _check_texts(asked, url, texts, student)


def _warn_of_open_key(asked: UrlTeacher) -> None:
    """Say where a key would travel for everybody to read."""
    plain = [url for url in asked.urls if url.startswith("http:")]
    seen = [url for url in plain if urlsplit(url).hostname not in LOOPBACK]
    if asked.api_key_env and seen:
        hidden = "https:// would hide it"
        logger.warning("%s: the API key is sent to %s without encryption; %s", KEY, seen[0], hidden)


def _examined(
    asked: UrlTeacher, url: str, probe: list[int], topk: int
) -> tuple[dict[str, int | None], dict[int, str]]:
    """Context of each model that a server has, and the texts of the probe's tokens.

    Raises:
        ValueError: it does not answer, or does not score.
    """
    nonsense = (BadQuestion, BadScore, AttributeError, LookupError, TypeError, ValueError)
    try:
        return asyncio.run(asyncio.wait_for(asked.examine(url, probe, topk), SECONDS))
    except asyncio.TimeoutError as error:
        raise ValueError(f"{KEY}: {url} does not answer within {SECONDS} s") from error
    except (aiohttp.ClientError, OSError, *nonsense) as error:
        told = isinstance(error, (aiohttp.ClientError, BadQuestion, BadScore))
        said = str(error) if told else asked.shown(str(error))
        kind = type(error).__name__
    # Outside of the handler: an error may hold what the server has sent.
    raise ValueError(
        f"{KEY}: {url} does not score as {asked.dialect} does with {topk} log-probs for each token"
        f" of a prompt ({kind}: {said})"
    )


def _check_texts(asked: UrlTeacher, url: str, texts: dict[int, str], student: Model) -> None:
    readable = 0
    for i, theirs in texts.items():
        ours = student.tokenizer.decode([i])
        if not theirs or UNREADABLE in theirs or UNREADABLE in ours:
            continue
        readable += 1
        if theirs != ours:
            raise ValueError(
                f"{KEY}: {url} writes token {i} as {asked.shown(repr(theirs))}, the student's"
                f" tokenizer as {ours!r}; teacher and student must share one tokenizer"
            )
    if not readable:
        raise ValueError(f"{KEY}: {url} does not write tokens as text; start it with its tokenizer")
