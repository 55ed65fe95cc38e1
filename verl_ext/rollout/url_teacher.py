"""Teacher behind URLs: servers that somebody else runs, asked over HTTP. Token ids, never text.

vLLM answers on its OpenAI-compatible ``/v1/completions``, SGLang on its native ``/generate``, which
alone returns the top-k ids of a prompt.

Shapes: N tokens, K candidates.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from verl_ext.rollout.http import Exchange
from verl_ext.rollout.rotation import Rotation
from verl_ext.rollout.rows import BadScore, Score, TopKRows, check_shape, good_rows

BYTES, OTHER_BYTES = 256, 2**20
"""Bytes that an answer may have per candidate, on average (vLLM's have 80 and the token's text),
and for all the rest."""
VLLM_MINUS_INFINITY = -9999.0
Candidates = list[tuple[int, float | None]]
"""Pairs (id, log-prob) by falling probability."""


class Dialect(ABC):
    """Dialect of one kind of server: how it is asked, and how its answer is read."""

    path: str

    @abstractmethod
    def question(
        self, model: str, token_ids: list[int], start: int, topk: int, texts: bool
    ) -> dict[str, Any]:
        """Body of a request for the rows from ``start`` on, with the ``texts`` of tokens or not."""

    @abstractmethod
    def rows(
        self, answer: Any, token_ids: list[int], start: int, topk: int
    ) -> list[tuple[float | None, Candidates]]:
        """Read, per token from ``start`` on, the token's own log-prob and its K candidates."""

    @abstractmethod
    def texts(self, answer: Any) -> dict[int, str]:
        """Read the text of the tokens that occur in an answer."""


class VLLM(Dialect):
    """Dialect of ``vllm serve``."""

    path = "/v1/completions"

    def question(
        self, model: str, token_ids: list[int], start: int, topk: int, texts: bool
    ) -> dict[str, Any]:
        """See ``Dialect``; texts and rows of the whole prompt come back, whatever ``start`` is."""
        return {
            "model": model,
            "prompt": token_ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": topk,
        }

    def rows(
        self, answer: Any, token_ids: list[int], start: int, topk: int
    ) -> list[tuple[float | None, Candidates]]:
        """See ``Dialect``; an entry holds the token and ranks 1 to K, perhaps under one key."""
        entries = answer["choices"][0]["prompt_logprobs"][start:]
        return [
            _vllm_row(entry, token, topk)
            for entry, token in zip(entries, token_ids[start:], strict=True)
        ]

    def texts(self, answer: Any) -> dict[int, str]:
        """See ``Dialect``."""
        entries = answer["choices"][0]["prompt_logprobs"][1:]
        found = {int(i): value["decoded_token"] for entry in entries for i, value in entry.items()}
        return {i: text for i, text in found.items() if isinstance(text, str)}


def _vllm_row(entry: dict[str, Any], token: int, topk: int) -> tuple[float | None, Candidates]:
    ranked = sorted((value["rank"], int(i), _vllm_log_prob(value)) for i, value in entry.items())
    return _vllm_log_prob(entry[str(token)]), [(i, log_prob) for _, i, log_prob in ranked[:topk]]


def _vllm_log_prob(value: dict[str, Any]) -> float | None:
    """Log-prob of an entry: JSON has no infinity, so vLLM writes -9999 for it."""
    return -np.inf if value["logprob"] == VLLM_MINUS_INFINITY else value["logprob"]


class SGLang(Dialect):
    """Dialect of ``python -m sglang.launch_server``."""

    path = "/generate"

    def question(
        self, model: str, token_ids: list[int], start: int, topk: int, texts: bool
    ) -> dict[str, Any]:
        """See ``Dialect``; an answer's first row is always empty, so it begins one token early."""
        return {
            "input_ids": token_ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": start - 1,
            "top_logprobs_num": topk,
            "return_text_in_logprobs": texts,
        }

    def rows(
        self, answer: Any, token_ids: list[int], start: int, topk: int
    ) -> list[tuple[float | None, Candidates]]:
        """See ``Dialect``."""
        info = answer["meta_info"]
        own, top = info["input_token_logprobs"][1:], info["input_top_logprobs"][1:]
        # SGLang gives the last id of the vocabulary as 0 (scheduler_output_processor_mixin.py),
        # with the right log-prob.
        if len(own) != len(token_ids) - start or any(
            i not in (token, 0) for (_, i, *_), token in zip(own, token_ids[start:], strict=True)
        ):
            raise ValueError("rows of other tokens")
        return [
            (log_prob, [(i, value) for value, i, *_ in row])
            for (log_prob, *_), row in zip(own, top, strict=True)
        ]

    def texts(self, answer: Any) -> dict[int, str]:
        """See ``Dialect``."""
        return {
            i: text
            for row in answer["meta_info"]["input_top_logprobs"][1:]
            for _, i, text in row
            if isinstance(text, str)
        }


DIALECTS: dict[str, Dialect] = {"vllm": VLLM(), "sglang": SGLang()}


@dataclass
class UrlTeacher:
    """Teacher that scores sequences on servers which share the work, see ``Rotation``.

    Args:
        urls: ``http(s)://host:port`` of each server.
        model: name under which they serve the teacher.
        dialect: key of ``DIALECTS``.
        api_key_env: name of the environment variable with the API key, see ``Exchange``.
        certificates: in PEM format, to trust beside the system's.
    """

    urls: list[str]
    model: str
    dialect: str
    api_key_env: str | None = None
    certificates: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._rotation = Rotation(self.urls)
        self._http = Exchange(self.api_key_env, self.certificates)

    def shown(self, text: str) -> str:
        """Write a text of a server's for people, see ``Exchange.shown``."""
        return self._http.shown(text)

    async def score(self, token_ids: list[int], start: int, topk: int) -> Score:
        """See ``ScoringClient.score``.

        Raises:
            NoServer: none is left, or the environment has no API key.
            BadQuestion: the server refuses the sequence.
            BadScore: the answer is not what was asked for.
            aiohttp.ClientError: the server cannot be reached, or has an error.
        """
        with self._rotation.turn() as url:
            return self._read(await self.ask(url, token_ids, start, topk), token_ids, start, topk)

    async def ask(
        self, url: str, token_ids: list[int], start: int, topk: int, texts: bool = False
    ) -> Any:
        """Ask one server, and return its answer as it came."""
        dialect = DIALECTS[self.dialect]
        question = dialect.question(self.model, token_ids, start, topk, texts)
        most = OTHER_BYTES + BYTES * len(token_ids) * (topk + 1)
        return await self._http.json("POST", url + dialect.path, most, question)

    async def examine(
        self, url: str, probe: list[int], topk: int
    ) -> tuple[dict[str, int | None], dict[int, str]]:
        """Ask what a server serves, and how it writes the tokens of its answer about ``probe``.

        Args:
            url: one of ``urls``.
            probe: ids to score.
            topk: K.

        Raises:
            BadScore: it does not give the K candidates of every token.
            aiohttp.ClientError: it cannot be reached, or refuses.
        """
        dialect = DIALECTS[self.dialect]
        try:
            listed = await self._http.json("GET", url + "/v1/models", OTHER_BYTES)  # both have it
            models = {str(model["id"]): _context(model) for model in listed["data"]}
            if self.model not in models:
                return models, {}
            answer = await self.ask(url, probe, 1, topk, texts=True)
            score = self._read(answer, probe, 1, topk)
            check_shape(score, len(probe) - 1, topk)
            if not good_rows(score.rows, np.iinfo(np.int32).max).all():
                raise BadScore(
                    "numbers that are no log-probs of one distribution: is it started to report"
                    " logits?"
                )
            return models, dialect.texts(answer)
        finally:
            await self._http.close()

    def _read(self, answer: Any, token_ids: list[int], start: int, topk: int) -> Score:
        try:
            rows = DIALECTS[self.dialect].rows(answer, token_ids, start, topk)
            own = [np.nan if value is None else value for value, _ in rows]
            with np.errstate(over="ignore", invalid="ignore"):  # of what is no log-prob
                candidates = _array([row for _, row in rows], topk)
                sampled = np.array(own, dtype=np.float64).astype(np.float32)
            return Score(candidates, sampled, len(token_ids))
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            said = f"{type(error).__name__}: {self.shown(str(error))}"
        # Outside of the handler, since the error holds what the server has sent.
        raise BadScore(f"an answer that is not {self.dialect}'s ({said})")


def _array(rows: Iterable[Candidates], topk: int) -> TopKRows:
    pairs = np.array(list(rows), dtype=np.float64)
    if pairs.ndim != 3 or pairs.shape[1:] != (topk, 2):
        raise ValueError(f"candidates of shape {pairs.shape[:-1]}, expected (tokens, {topk})")
    ids = pairs[:, :, 0]
    real = (ids == np.floor(ids)) & (np.abs(ids) <= np.iinfo(np.int32).max)
    return TopKRows(np.where(real, ids, -1).astype(np.int32), pairs[:, :, 1].astype(np.float32))


def _context(model: dict[str, Any]) -> int | None:
    """Tokens of context that a server says a model has; None where it says none."""
    length = model.get("max_model_len")
    return length if type(length) is int else None
