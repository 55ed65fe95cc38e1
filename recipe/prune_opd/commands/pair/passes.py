"""Responses of the student, sampled here or read from a file, and the passes of both models over
them.

One model is in memory at a time. A response goes through it in chunks with its key-value cache
kept, so that of the logits no more than (chunk, V) exists; what stays is (T, K) ids and log-probs
per response.

Shapes: T response tokens, K candidates, V vocabulary, N rows of a chunk.
"""

import gc
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from recipe.prune_opd.checks.data import check_file as check_data
from recipe.prune_opd.checks.data import is_chat, read_prompts
from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.diagnose.diagnosis import KINDS, PairScores, kind_of, overlap_ratios
from recipe.prune_opd.commands.doctor.health import prompt_ids
from recipe.prune_opd.commands.files import json_lines
from recipe.prune_opd.commands.pair.engines import vllm_engine
from recipe.prune_opd.commands.pair.findings import ERROR, OK, WARNING, Finding, Plan
from recipe.prune_opd.commands.pair.weights import load
from verl_ext.topk import log_probs_at, top_log_probs

EXAMPLES, EXAMPLE_TOKENS = 4, 512
"""Responses for the page, and tokens of each."""


@dataclass(frozen=True)
class Rollout:
    """One response of the student."""

    prompt: int
    """Number of its prompt."""
    prompt_ids: list[int]
    response_ids: list[int]
    """At least one, the end token included if there is one."""


@dataclass(frozen=True)
class Passes:
    """How the responses are made and scored."""

    k: int = 16
    """Candidates whose probability is summed."""
    ks: tuple[int, ...] = (8, 16, 32)
    """Numbers of candidates that are compared; ``k`` is among them."""
    prompts: int = 16
    samples: int = 2
    """Responses per prompt."""
    seed: int = 0
    temperature: float = 1.0
    """Of the rollout: the student's logits are divided by it, in sampling and in scoring."""
    teacher_temperature: float = 1.0
    dtype: str = "float32"
    batch: int = 8
    """Responses that transformers samples at once."""
    chunk: int = 256
    """Tokens that are scored at once."""
    engine: str = "transformers"


# -------------------------------------------------------------------------------- prompts, rollouts


def choose_prompts(student: Model, plan: Plan, passes: Passes) -> list[list[int]]:
    """Ids of some prompts of the data, chosen by the seed; those above ``plan.max_prompt_length``
    are passed over.

    Raises:
        ValueError: the file is not there or not in verl's format, or all its prompts are too long.
    """
    assert plan.data is not None
    check_data("--data", plan.data, plan.prompt_key)
    messages = read_prompts(plan.data, plan.prompt_key, plan.max_rows)
    order = list(range(len(messages)))
    random.Random(passes.seed).shuffle(order)
    chosen: list[list[int]] = []
    for row in order:
        ids = prompt_ids(student, messages[row], plan.template_kwargs or {})
        if 0 < len(ids) <= plan.max_prompt_length:
            chosen.append(ids)
        if len(chosen) == passes.prompts:
            break
    if not chosen:
        raise ValueError(
            f"--data: {plan.data} has no prompt of at most {plan.max_prompt_length} tokens"
        )
    return chosen


def read_rollouts(file: Path, student: Model, plan: Plan, vocabulary: int) -> list[Rollout]:
    """Ready responses: one JSON object a line, as docs/diagnose.md says.

    Args:
        file: the lines.
        student: whose tokens they are.
        plan: longest response, settings of the chat template.
        vocabulary: ids below it are known to both models.

    Raises:
        ValueError: there is no such file, it is empty, or a line is not as it should be; names the
            line.
    """
    check_readable("--rollouts: ", file, "a file with one JSON object a line")
    rollouts, numbers = [], dict[tuple[int, ...], int]()
    for where, row in json_lines("--rollouts: ", file):
        ids, response = _read_line(where, row, student, plan, vocabulary)
        group = numbers.setdefault(tuple(ids), len(numbers))
        rollouts.append(Rollout(group, ids, response))
    if not rollouts:
        raise ValueError(f"--rollouts: {file} holds no responses")
    return rollouts


def _read_line(
    where: str, row: Any, student: Model, plan: Plan, vocabulary: int
) -> tuple[list[int], list[int]]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds {str(row)[:60]!r}, allowed: a JSON object")
    prompt = _ids(where, row, "prompt", student, plan, vocabulary)
    response = _ids(where, row, "response", student, plan, vocabulary)
    if "response_ids" not in row and row.get("ended", True) and student.ends:
        response = [*response, _end(student)]
    if not response:
        raise ValueError(f"{where} has an empty response, allowed: at least one token")
    return prompt, response[: plan.max_response_length]


def _ids(
    where: str, row: dict[str, Any], name: str, student: Model, plan: Plan, vocabulary: int
) -> list[int]:
    """Ids of ``name`` or of its text. Raises ValueError where neither is there or an id is
    unknown."""
    if f"{name}_ids" in row:
        ids = row[f"{name}_ids"]
        known = isinstance(ids, list) and all(type(i) is int and 0 <= i < vocabulary for i in ids)
        if not known:
            raise ValueError(
                f"{where}, {name}_ids: got {str(ids)[:60]}, allowed: a list of ids from 0 to"
                f" {vocabulary - 1}"
            )
    elif name in row and isinstance(row[name], str):
        ids = student.tokenizer.encode(row[name], add_special_tokens=False)
    elif name == "prompt" and is_chat(row.get(name)):
        ids = prompt_ids(student, row[name], plan.template_kwargs or {})
    else:
        found = (
            f"{name} = {str(row[name])[:60]!r}"
            if name in row
            else f"the keys {', '.join(row) or 'none'}"
        )
        chat = ", or as a list of messages" if name == "prompt" else ""
        raise ValueError(
            f"{where}: got {found}, allowed: {name}_ids as ids, or {name} as text{chat}"
        )
    if name == "prompt" and not ids:
        raise ValueError(f"{where} has an empty prompt, allowed: at least one token")
    return ids


def _end(student: Model) -> int:
    """The token that ends the student's text: its tokenizer's own, where that is one of its
    ends."""
    own = student.tokenizer.eos_token_id
    return own if own in student.ends else min(student.ends)


# ----------------------------------------------------------------------------------------- sampling


def sample(
    model: Any, student: Model, prompts: Sequence[list[int]], plan: Plan, passes: Passes
) -> list[Rollout]:
    """Responses to the prompts by transformers, ``passes.samples`` each.

    Args:
        model: the student's weights.
        student: whose end tokens end a response.
        prompts: ids.
        plan: longest response, device.
        passes: temperature, seed, responses at once.
    """
    from transformers import GenerationConfig, StoppingCriteria

    class Progress(StoppingCriteria):
        """Stops nothing; moves the bar."""

        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            bar.update(len(input_ids))
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    # In the place of the model's own, which may bring another top_p, a repetition penalty and the
    # like.
    model.generation_config = GenerationConfig(
        max_new_tokens=plan.max_response_length,
        do_sample=True,
        temperature=passes.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=sorted(student.ends) or None,
        pad_token_id=min(student.ends, default=0),
        suppress_tokens=list(range(max(student.tokens) + 1, student.vocab_size))
        or None,  # rows without a token
    )
    torch.manual_seed(passes.seed)
    asked, responses = _asked(prompts, passes), list[list[int]]()
    with tqdm(
        desc="sampling, at most", unit=" tokens", total=len(asked) * plan.max_response_length
    ) as bar:
        for start in range(0, len(asked), passes.batch):
            batch = [ids for _, ids in asked[start : start + passes.batch]]
            width = max(map(len, batch))
            # Padded on the left, where the mask hides it: any id will do.
            ids = torch.tensor(
                [[0] * (width - len(prompt)) + prompt for prompt in batch], device=plan.device
            )
            mask = torch.tensor(
                [[0] * (width - len(p)) + [1] * len(p) for p in batch], device=plan.device
            )
            answers = model.generate(ids, attention_mask=mask, stopping_criteria=[Progress()])
            responses += [
                _until_end(answer, student.ends) for answer in answers[:, width:].tolist()
            ]
            bar.n = len(responses) * plan.max_response_length
            bar.refresh()
    return _rollouts(asked, responses)


def _asked(prompts: Sequence[list[int]], passes: Passes) -> list[tuple[int, list[int]]]:
    return [(number, ids) for number, ids in enumerate(prompts) for _ in range(passes.samples)]


def _rollouts(asked: list[tuple[int, list[int]]], responses: list[list[int]]) -> list[Rollout]:
    return [
        Rollout(number, ids, response)
        for (number, ids), response in zip(asked, responses, strict=True)
    ]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Without the padding that follows an end token."""
    for number, token in enumerate(ids):
        if token in ends:
            return ids[: number + 1]
    return ids


def sample_vllm(
    student: Model, prompts: Sequence[list[int]], plan: Plan, passes: Passes
) -> list[Rollout]:
    """Responses to the prompts by vLLM, ``passes.samples`` each.

    Raises:
        ValueError: it is not installed.
    """
    asked = _asked(prompts, passes)
    try:
        return _rollouts(asked, _ask_vllm(student, [ids for _, ids in asked], plan, passes))
    except ImportError as error:
        raise ValueError(
            f"--engine: vllm cannot be imported ({error}), allowed: transformers, or install it"
        ) from error


def _ask_vllm(
    student: Model, prompts: Sequence[list[int]], plan: Plan, passes: Passes
) -> list[list[int]]:
    """A response to each prompt."""
    arguments = {
        "dtype": passes.dtype,
        "seed": passes.seed,
        "max_model_len": max(map(len, prompts)) + plan.max_response_length,
        "enforce_eager": plan.device == "cpu",
        "trust_remote_code": plan.trust_remote_code,
    }
    with vllm_engine(student.path, **arguments) as (vllm, engine):
        sampling = [
            vllm.SamplingParams(
                temperature=passes.temperature,
                max_tokens=plan.max_response_length,
                seed=passes.seed + number,
                stop_token_ids=sorted(student.ends),
                detokenize=False,
            )
            for number in range(len(prompts))
        ]
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling)
    return [list(output.outputs[0].token_ids) for output in outputs]


# ------------------------------------------------------------------------------------------ scoring


def load_model(model: Model, plan: Plan, passes: Passes) -> Any:
    """The weights.

    Raises:
        ValueError: they do not fit into memory, are not whole, or not finite.
    """
    loaded, finding = load(model, plan, model.key, passes.dtype)
    if loaded is None or finding.status != OK:
        raise ValueError(f"{model.key}: {model.path}: {finding.evidence}; {finding.change}")
    return loaded


def chunks_of_logits(model: Any, ids: Tensor, first: int, chunk: int) -> Iterator[Tensor]:
    """Logits that score the tokens from ``first`` on, each by the position before it.

    Args:
        model: in evaluation mode.
        ids: (L,) int64, prompt and response.
        first: >= 1, number of the first token that is scored.
        chunk: tokens that go through the model at once.

    Yields:
        (N, V) of the model's dtype, L - first rows in all.
    """
    cache = None
    for start in range(0, len(ids) - 1, chunk):
        piece = ids[start : min(start + chunk, len(ids) - 1)]
        output = model(input_ids=piece.unsqueeze(0), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows = output.logits[0, max(first - 1 - start, 0) :]
        if len(rows):
            yield rows


@dataclass(frozen=True)
class Scored:
    """One model on one response."""

    ids: Tensor
    """(T, K) int32, its own most likely, by descending logit."""
    log_probs: Tensor
    """(T, K) float32."""
    mass_at: Tensor | None = None
    """(T,) float32, probability of the ids that were asked for."""


def score(
    model: Any,
    of: Model,
    rollout: Rollout,
    vocabulary: int,
    temperature: float,
    passes: Passes,
    at: Tensor | None = None,
) -> Scored:
    """One model on one response, ranked in float32.

    Args:
        model: its weights.
        of: the model, for messages.
        rollout: the response.
        vocabulary: candidates are ids below it.
        temperature: divides the logits.
        passes: number of candidates, chunk.
        at: (T, k) int, ids whose probability is summed.

    Raises:
        ValueError: the log-probs are not finite.
    """
    ids = torch.tensor([*rollout.prompt_ids, *rollout.response_ids], device=model.device)
    tops, masses, done = [], [], 0
    for logits in chunks_of_logits(model, ids, len(rollout.prompt_ids), passes.chunk):
        rows = logits.float() / temperature
        tops.append(top_log_probs(rows, max(passes.ks), vocabulary))
        if at is not None:
            masses.append(
                log_probs_at(rows, at[done : done + len(rows)].to(rows.device)).exp().sum(-1)
            )
        done += len(rows)
    top_ids, log_probs = (torch.cat(pieces).cpu() for pieces in zip(*tops, strict=True))
    if log_probs.isnan().any():
        raise ValueError(
            f"{of.key}: {of.path} gives NaN in {passes.dtype}, allowed: another --dtype, or whole"
            " weights"
        )
    return Scored(top_ids, log_probs, torch.cat(masses).cpu() if masses else None)


def examine_pair(
    student: Model,
    teacher: Model,
    plan: Plan,
    passes: Passes,
    prompts: Sequence[list[int]] = (),
    rollouts: Sequence[Rollout] = (),
) -> tuple[list[Rollout], PairScores]:
    """Sample from the student unless there are responses, and let both models score them.

    Args:
        student: STUDENT.
        teacher: TEACHER, of the same tokens.
        plan: longest response, device.
        passes: everything else.
        prompts: ids of the prompts to answer.
        rollouts: ready responses instead.

    Raises:
        ValueError: a model or the engine cannot be loaded, or log-probs are not finite.
    """
    vocabulary, found = min(student.vocab_size, teacher.vocab_size), list(rollouts)
    if not found and passes.engine == "vllm":
        found = sample_vllm(student, prompts, plan, passes)
    with torch.no_grad():
        model = load_model(student, plan, passes)
        found = found or sample(model, student, prompts, plan, passes)
        bar = tqdm(found, desc="scoring by the student", unit=" responses")
        ours = [
            score(model, student, rollout, vocabulary, passes.temperature, passes)
            for rollout in bar
        ]
        del model
        _free()
        model = load_model(teacher, plan, passes)
        columns = []
        for rollout, mine in zip(
            tqdm(found, desc="scoring by the teacher", unit=" responses"), ours, strict=True
        ):
            at = mine.ids[:, : passes.k]
            theirs = score(
                model, teacher, rollout, vocabulary, passes.teacher_temperature, passes, at
            )
            columns.append(_compare(mine, theirs, rollout, passes))
    tokens, mask, student_mass, teacher_mass, teacher_on_student, *overlaps = (
        pad_sequence(list(column), batch_first=True) for column in zip(*columns, strict=True)
    )
    groups = torch.tensor([rollout.prompt for rollout in found])
    overlap = dict(zip(passes.ks, overlaps, strict=True))
    return found, PairScores(
        tokens, mask, overlap, student_mass, teacher_mass, teacher_on_student, groups
    )


def _compare(mine: Scored, theirs: Scored, rollout: Rollout, passes: Passes) -> list[Tensor]:
    """(T,) columns of ``PairScores``, an overlap for each k at the end."""
    assert theirs.mass_at is not None
    tokens = torch.tensor(rollout.response_ids)
    student_mass, teacher_mass = (
        scored.log_probs[:, : passes.k].exp().sum(-1) for scored in (mine, theirs)
    )
    ratios = overlap_ratios(mine.ids, theirs.ids, passes.ks)
    known = torch.ones(len(tokens), dtype=torch.bool)
    return [tokens, known, student_mass, teacher_mass, theirs.mass_at, *ratios.values()]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def kinds_of(model: Model, tokens: Tensor) -> Tensor:
    """Kind of each token, (B, T) int64 -> (B, T) int64, numbers in ``KINDS``."""
    special = {*model.tokenizer.all_special_ids, *model.ends}
    table = torch.zeros(int(tokens.max()) + 1, dtype=torch.int64)
    for token in tokens.unique().tolist():
        table[token] = KINDS.index(kind_of(model.tokenizer.decode([token]), token in special))
    return table[tokens]


def examples(model: Model, rollouts: Sequence[Rollout], events: Tensor) -> list[dict[str, Any]]:
    """Some responses for a reader, token by token.

    Args:
        model: whose tokens they are.
        rollouts: the responses.
        events: (B, T) bool, drift events.

    Returns:
        For each: ``prompt``, and ``tokens`` as pairs of text and whether it is an event.
    """
    shown = []
    for rollout, flags in list(zip(rollouts, events.tolist(), strict=True))[:EXAMPLES]:
        ids = rollout.response_ids[:EXAMPLE_TOKENS]
        texts = [model.tokenizer.decode([token]) for token in ids]
        tokens = list(zip(texts, flags[: len(ids)], strict=True))
        left = len(rollout.response_ids) - len(ids)
        shown.append(
            {"prompt": model.tokenizer.decode(rollout.prompt_ids), "tokens": tokens, "left": left}
        )
    return shown


def warnings_of(findings: Sequence[Finding]) -> list[str]:
    """What ``doctor`` warns of, after a look for errors.

    Raises:
        ValueError: one of the findings is an error; what was seen and what to change.
    """
    said = []
    for finding in findings:
        text = f"{finding.name}: {finding.evidence}; {finding.change}"
        if finding.status == ERROR:
            raise ValueError(text)
        if finding.status == WARNING:
            said.append(text)
    return said
