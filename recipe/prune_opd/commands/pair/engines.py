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

from recipe.prune_opd.commands.pair.sampling import Sampling

TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
"""Module of an engine -> its name, the preferred one first."""


@dataclass(frozen=True)
class Engine:
    """Engine to start, and the model it runs."""

    name: str
    """Key of ``TITLES``."""
    path: str
    """Folder of the model, or its hub name."""
    dtype: str
    trust_remote_code: bool
    eager: bool = True
    """Begin at once. False: compile first, which is worth it where much is sampled on a GPU."""


@dataclass(frozen=True)
class Answer:
    """Response as an engine tells it."""

    token_ids: list[int]
    log_probs: list[float]
    """Log-probs of these tokens, at temperature 1."""


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


def ask(engine: Engine, prompts: Sequence[list[int]], how: Sampling) -> list[Answer]:
    """Sample a response to each prompt. The engine is started for it, and gone afterwards.

    Args:
        engine: what to start.
        prompts: ids.
        how: length, ends, temperature, seed.

    Raises:
        ImportError: the engine is not installed.
        Exception: whatever the engine fails with.
    """
    if engine.name == "vllm":
        with talk_to_stderr():
            return _ask_vllm(engine, prompts, how)
    # In a process of its own: SGLang ends the process it was started from when one of its own
    # fails.
    with talk_to_stderr(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_ask_sglang, engine, prompts, how).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the engine's process died, its log on standard error says why"
            ) from error


def _longest(prompts: Sequence[list[int]], how: Sampling) -> int:
    """Tokens of the longest prompt with its response."""
    return max(len(ids) + how.room_after(ids) for ids in prompts)


def _ask_vllm(engine: Engine, prompts: Sequence[list[int]], how: Sampling) -> list[Answer]:
    """Ask vLLM, see ``ask``. Each prompt has a seed of its own: equal prompts get other answers."""
    import vllm

    sampling = [
        vllm.SamplingParams(
            temperature=how.temperature,
            max_tokens=how.room_after(ids),
            seed=how.seed + number,
            stop_token_ids=sorted(how.ends),
            detokenize=False,
            logprobs=0,
        )
        for number, ids in enumerate(prompts)
    ]
    running = vllm.LLM(
        model=engine.path,
        dtype=engine.dtype,
        seed=how.seed,
        max_model_len=_longest(prompts, how),
        enforce_eager=engine.eager,
        trust_remote_code=engine.trust_remote_code,
    )
    try:
        outputs = running.generate([{"prompt_token_ids": ids} for ids in prompts], sampling)
    finally:  # its memory is needed for scoring
        running.llm_engine.engine_core.shutdown()
    return [_vllm_answer(output.outputs[0]) for output in outputs]


def _vllm_answer(response: Any) -> Answer:
    """Answer out of what vLLM says of a response."""
    ids = list(response.token_ids)
    rows = zip(ids, response.logprobs, strict=True)
    return Answer(ids, [row[token].logprob for token, row in rows])


def _ask_sglang(engine: Engine, prompts: Sequence[list[int]], how: Sampling) -> list[Answer]:
    """Ask SGLang, see ``ask``. Its ``shutdown`` ends all children of the process."""
    import sglang

    running = sglang.Engine(
        model_path=engine.path,
        dtype=engine.dtype,
        context_length=_longest(prompts, how),
        trust_remote_code=engine.trust_remote_code,
        random_seed=how.seed,
        disable_cuda_graph=engine.eager,
    )
    try:
        sampling = {
            "temperature": how.temperature,
            "max_new_tokens": how.tokens,
            "stop_token_ids": sorted(how.ends),
        }
        outputs = running.generate(
            input_ids=list(prompts), sampling_params=sampling, return_logprob=True
        )
        entries = [output["meta_info"]["output_token_logprobs"] for output in outputs]
    finally:
        running.shutdown()
    return [
        Answer([token for _, token, *_ in row], [value for value, *_ in row]) for row in entries
    ]


@contextmanager
def talk_to_stderr() -> Iterator[None]:
    """Send standard output of this process and its children to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
