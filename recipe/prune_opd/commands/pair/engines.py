"""Rollout engines on a model's weights, started outside of a training to sample and to be compared.

Engines write their log to standard output. Here it goes to standard error: with ``--json`` the
answer is alone there.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from typing import Any

TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
"""Module of an engine -> its name, the preferred one first."""


@dataclass(frozen=True)
class Answer:
    """A sampled response as an engine tells it."""

    token_ids: list[int]
    log_probs: list[float]
    """Of these tokens, at temperature 1."""


def installed() -> str:
    """Module of the first engine of ``TITLES`` that this environment has.

    Raises:
        ImportError: none can be imported; says why.
    """
    reasons = []
    for name in TITLES:
        try:
            with talk_to_stderr():
                import_module(name)
            return name
        except ImportError as error:
            reasons.append(str(error))
    raise ImportError("; ".join(reasons))


def ask(name: str, prompts: Sequence[list[int]], tokens: int, **arguments: Any) -> list[Answer]:
    """A response to each prompt, sampled at temperature 1. The engine is started for it, and gone
    afterwards.

    Args:
        name: of ``TITLES``.
        prompts: ids.
        tokens: most of a response.
        arguments: ``path`` of the model, ``dtype``, ``trust_remote_code``.

    Raises:
        Exception: whatever the engine fails with.
    """
    longest = max(map(len, prompts)) + tokens
    if name == "vllm":
        return _ask_vllm(prompts, tokens, longest, **arguments)
    # In a process of its own: SGLang ends the process it was started from when one of its own
    # fails.
    with talk_to_stderr(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_ask_sglang, prompts, tokens, longest, **arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the engine's process died, its log on standard error says why"
            ) from error


def _ask_vllm(
    prompts: Sequence[list[int]], tokens: int, longest: int, **arguments: Any
) -> list[Answer]:
    with vllm_engine(max_model_len=longest, enforce_eager=True, **arguments) as (vllm, engine):
        sampling = vllm.SamplingParams(temperature=1.0, max_tokens=tokens, logprobs=0, seed=0)
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling)
    answers = []
    for response in (output.outputs[0] for output in outputs):
        ids = list(response.token_ids)
        log_probs = [row[token].logprob for token, row in zip(ids, response.logprobs, strict=True)]
        answers.append(Answer(ids, log_probs))
    return answers


@contextmanager
def vllm_engine(path: str, **arguments: Any) -> Iterator[tuple[Any, Any]]:
    """vLLM's module and a running engine, which is shut down at the end: its memory is needed for
    scoring.

    Args:
        path: the model.
        arguments: of ``vllm.LLM``.

    Raises:
        ImportError: it is not installed.
    """
    with talk_to_stderr():
        import vllm

        engine = vllm.LLM(model=path, **arguments)
        try:
            yield vllm, engine
        finally:
            engine.llm_engine.engine_core.shutdown()


def _ask_sglang(
    prompts: Sequence[list[int]],
    tokens: int,
    longest: int,
    path: str,
    dtype: str,
    trust_remote_code: bool,
) -> list[Answer]:
    """See ``ask``. ``shutdown`` ends all children of the process."""
    import sglang

    engine = sglang.Engine(
        model_path=path,
        dtype=dtype,
        context_length=longest,
        trust_remote_code=trust_remote_code,
        random_seed=0,
        disable_cuda_graph=True,
    )
    try:
        sampling = {"temperature": 1.0, "max_new_tokens": tokens}
        outputs = engine.generate(
            input_ids=list(prompts), sampling_params=sampling, return_logprob=True
        )
        entries = [output["meta_info"]["output_token_logprobs"] for output in outputs]
    finally:
        engine.shutdown()
    return [
        Answer([token for _, token, *_ in row], [value for value, *_ in row]) for row in entries
    ]


@contextmanager
def talk_to_stderr() -> Iterator[None]:
    """Standard output of this process and its children goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
