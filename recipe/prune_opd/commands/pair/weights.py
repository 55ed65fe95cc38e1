"""What only the weights can tell of a pair: whole, finite, the same in a batch and in the engine,
near each other.

Shapes: B sequences, T response positions, K candidates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from recipe.prune_opd.checks.files import reason_of
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.estimate import costs
from recipe.prune_opd.commands.pair.engines import TITLES, Answer, ask, installed
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding, Plan
from recipe.prune_opd.method.drift import OverlapRatio, overlap_events, overlap_ratio
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.pruning import Rules, prune
from recipe.prune_opd.method.reward import Scores, TopK
from verl_ext.topk import log_probs_at, top_log_probs

THRESHOLD = 0.7
RULES = Rules(OverlapRatio(THRESHOLD), 0.01, 0.5, True, "only_stu", "student_p")
"""The recipe's defaults."""
SELF_LOSS = 1e-3
"""A student that is its own teacher has a loss below it; in float32 it is 1e-6 or less."""
POOR_OVERLAP = 0.3
"""Mean overlap below which a teacher has little to say about what the student writes."""
ENGINE_CLOSE, ENGINE_FAR = 0.05, 0.5
"""Mean difference of log-probs: ordinary rounding up to the first, other weights or another model
from the second."""


@dataclass(frozen=True)
class Sample:
    """A prompt with the response that was sampled for it."""

    ids: Tensor
    """(prompt + response,) int64."""
    prompt: int
    """Tokens of the prompt."""


@dataclass(frozen=True)
class OwnTopK(TopK):
    """One model's own most likely tokens on the responses: int32 ids, float32 log-probs."""

    mask: Tensor
    """(B, T) bool, False on padding."""


def passes(
    student: Model, teacher: Model, prompts: Sequence[list[int]], plan: Plan
) -> list[Finding]:
    """What only the weights can tell.

    Args:
        student: STUDENT.
        teacher: TEACHER.
        prompts: ids, three or fewer, that the student is to answer.
        plan: what the run is to be.
    """
    names = ("student's weights", "own teacher", "rollout engine", "teacher's weights", "agreement")
    if not plan.weights:
        return [Finding(name, SKIPPED, "not checked: --no-weights") for name in names]
    k = min(plan.topk, student.vocab_size, teacher.vocab_size)
    with torch.no_grad():
        model, finding = load(student, plan, names[0])
        findings = [finding]
        if model is None or finding.status == ERROR:
            return findings + [
                Finding(name, SKIPPED, "not checked: needs the student") for name in names[1:]
            ]
        bar = tqdm(prompts, desc="sampling from the student", unit=" responses")
        known = min(max(student.tokens) + 1, student.vocab_size)
        try:
            # Of different lengths, so that some are padded.
            sequences = [
                sample(model, prompt, max(plan.tokens - 5 * i, 1), known, seed=i)
                for i, prompt in enumerate(bar)
            ]
        except FloatingPointError as error:
            findings[0] = Finding(
                names[0], ERROR, str(error), "the checkpoint is broken: take an earlier one"
            )
            return findings + [
                Finding(name, SKIPPED, "not checked: needs the student") for name in names[1:]
            ]
        findings.append(
            own_teacher(model, sequences, k, min(student.vocab_size, teacher.vocab_size))
        )
        mine = score(model, sequences, k, min(student.vocab_size, teacher.vocab_size))
        # From here on in plan.dtype.
        findings[0] = overflow(model, sequences, plan.dtype, findings[0])
        findings.append(engine(model, student, prompts, plan))
        del model
        model, finding = load(teacher, plan, names[3])
        findings.append(finding)
        longest_id = max(int(sequence.ids.max()) for sequence in sequences)
        if model is None or finding.status == ERROR or longest_id >= teacher.vocab_size:
            return [
                *findings,
                Finding(
                    names[4], SKIPPED, "not checked: needs the teacher on the student's tokens"
                ),
            ]
        theirs = score(model, sequences, k, min(student.vocab_size, teacher.vocab_size))
        findings[-1] = overflow(model, sequences, plan.dtype, finding)
        return [*findings, agreement(mine, theirs)]


def load(model: Model, plan: Plan, name: str, dtype: str = "float32") -> tuple[Any, Finding]:
    """The model in ``dtype``, and whether its weights are whole and finite."""
    from transformers import AutoModelForCausalLM

    try:
        needed = 1.1 * costs.weight_bytes(costs.model_shape(model.config), dtype)
    except ValueError as error:
        return None, Finding(name, ERROR, str(error), "take a causal language model")
    free = _free_memory(plan.device)
    if needed > free:
        evidence = (
            f"not checked: {costs.readable(needed)} needed in {dtype}, {costs.readable(free)} free"
        )
        return None, Finding(
            name, SKIPPED, evidence, "run it where there is more memory, or give --device"
        )
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=getattr(torch, dtype),
            trust_remote_code=plan.trust_remote_code,
            output_loading_info=True,
        )
    # Safetensors has an exception of its own, and a model's own code may raise anything.
    except Exception as error:
        return None, Finding(
            name, ERROR, reason_of(error), "the folder needs weights that transformers reads"
        )
    loaded, info = answer
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        evidence = f"{len(absent)} tensors are not in the checkpoint, the first: {absent[0]}"
        return None, Finding(
            name, ERROR, evidence, "they would be random: save the model again, whole"
        )
    loaded = loaded.to(plan.device).eval()
    broken = _not_finite(loaded)
    if broken:
        evidence = f"{len(broken)} tensors hold NaN or infinity, the first: {broken[0]}"
        return loaded, Finding(
            name, ERROR, evidence, "the checkpoint is broken: take an earlier one"
        )
    return loaded, Finding(name, OK, "finite")


def _not_finite(model: Any) -> list[str]:
    named = list(model.named_parameters())
    bar = tqdm(named, desc="weights", unit=" tensors", disable=len(named) < 100)
    return [name for name, values in bar if not torch.isfinite(values).all()]


def _free_memory(device: str) -> float:
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)


def sample(model: Any, prompt: list[int], tokens: int, vocabulary: int, seed: int) -> Sample:
    """A response at temperature 1; no end token ends it, so that every prompt gives as many rows.

    Args:
        model: the student.
        prompt: its ids.
        tokens: length of the response.
        vocabulary: ids below it are sampled.
        seed: of the random numbers.

    Raises:
        FloatingPointError: a probability is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, cache = torch.tensor([prompt], device=model.device), None
    fed = ids
    for _ in range(tokens):
        output = model(input_ids=fed, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        probabilities = output.logits[0, -1, :vocabulary].float().softmax(-1).cpu()
        if not torch.isfinite(probabilities).all():
            raise FloatingPointError("the weights are finite, the log-probs in float32 are not")
        fed = torch.multinomial(probabilities, 1, generator=generator).to(model.device).unsqueeze(0)
        ids = torch.cat([ids, fed], 1)
    return Sample(ids[0], len(prompt))


def _alone(model: Any, sequence: Sample) -> Tensor:
    """(T, V) float32 logits that score the response, each sequence by itself: row t is the position
    before token t."""
    return model(input_ids=sequence.ids.unsqueeze(0)).logits[0, sequence.prompt - 1 : -1].float()


def _together(model: Any, sequences: Sequence[Sample]) -> list[Tensor]:
    """The same of all sequences in one padded batch."""
    ids = pad_sequence([sequence.ids for sequence in sequences], batch_first=True)
    lengths = torch.tensor([len(sequence.ids) for sequence in sequences], device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    logits = model(input_ids=ids, attention_mask=mask.long()).logits.float()
    return [
        row[sequence.prompt - 1 : len(sequence.ids) - 1]
        for row, sequence in zip(logits, sequences, strict=True)
    ]


def score(model: Any, sequences: Sequence[Sample], k: int, vocabulary: int) -> OwnTopK:
    """A model's own K most likely tokens at every position of the responses."""
    return _scores((_alone(model, sequence) for sequence in sequences), k, vocabulary)


def _scores(logits: Iterable[Tensor], k: int, vocabulary: int) -> OwnTopK:
    tops = [top_log_probs(rows, k, vocabulary) for rows in logits]
    ids, log_probs = (
        pad_sequence(list(values), batch_first=True) for values in zip(*tops, strict=True)
    )
    mask = pad_sequence(
        [torch.ones(len(top[0]), dtype=torch.bool, device=ids.device) for top in tops], True
    )
    return OwnTopK(ids, log_probs, mask)


def own_teacher(model: Any, sequences: Sequence[Sample], k: int, vocabulary: int) -> Finding:
    """The loss of a student that is its own teacher, by this package's own functions.

    The student scores each sequence alone, the teacher all in one padded batch, so that padding
    that leaks into other positions shows.
    """
    student = score(model, sequences, k, vocabulary)
    batch = _together(model, sequences)
    teacher = _scores(batch, k, vocabulary)
    on_student = pad_sequence(
        [
            log_probs_at(rows, ids[: len(rows)])
            for rows, ids in zip(batch, student.ids, strict=True)
        ],
        batch_first=True,
    )
    responses = pad_sequence([one.ids[one.prompt :] for one in sequences], batch_first=True)
    pruned = prune(Scores(responses, student, teacher, on_student), student.mask, RULES)
    overlap, events = pruned.overlap, pruned.events
    loss = float(
        topk_policy_loss(student.log_probs, student.log_probs, pruned.advantages, student.mask)[0]
    )
    number = int(student.mask.sum())
    evidence = (
        f"loss {loss:.1e} over {number} sampled tokens, overlap {_mean(overlap, student.mask):.3f},"
        f" {int(events.sum())} drift events"
    )
    if abs(loss) < SELF_LOSS and not events.any():
        return Finding("own teacher", OK, evidence)
    change = (
        "the model scores a sequence differently in a padded batch: its code or attn_implementation"
        " is at fault"
    )
    return Finding("own teacher", ERROR, evidence, change)


def _mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].mean())


def overflow(model: Any, sequences: Sequence[Sample], dtype: str, finding: Finding) -> Finding:
    """``finding`` with what the dtype of the computation does to the log-probs; the model is in
    that dtype after it."""
    exact = torch.cat([_alone(model, sequence).log_softmax(-1) for sequence in sequences])
    for parameter in model.parameters():  # buffers stay in float32, as in training
        parameter.data = parameter.data.to(getattr(torch, dtype))
    rounded = torch.cat([_alone(model, sequence).log_softmax(-1) for sequence in sequences])
    sampled = torch.cat([sequence.ids[sequence.prompt :] for sequence in sequences]).unsqueeze(-1)
    bad = int((~torch.isfinite(rounded.gather(-1, sampled))).sum())
    if bad:
        evidence = (
            f"finite, but in {dtype} the log-probs of {bad} of {len(sampled)} sampled tokens"
            " are not"
        )
        return Finding(
            finding.name, ERROR, evidence, "it overflows: compute in bfloat16 or float32"
        )
    error = float((exact - rounded).gather(-1, sampled).abs().mean())
    return Finding(
        finding.name, OK, f"finite; rounding to {dtype} moves a log-prob by {error:.1e} on average"
    )


def agreement(student: OwnTopK, teacher: OwnTopK) -> Finding:
    """How much the two rank alike on what the student writes."""
    overlap = overlap_ratio(student.ids, teacher.ids)
    mean = _mean(overlap, student.mask)
    share = _mean(overlap_events(overlap, student.mask, THRESHOLD).float(), student.mask)
    k = student.ids.shape[-1]
    evidence = (
        f"overlap of the top {k} on {int(student.mask.sum())} sampled tokens: {mean:.2f}; drift"
        f" events at γ = {THRESHOLD}: {share:.0%}"
    )
    if mean < POOR_OVERLAP:
        change = (
            "the teacher would choose quite other words from the start: check that it is the right"
            " model"
        )
        return Finding("agreement", WARNING, evidence, change)
    return Finding("agreement", OK, evidence)


# ------------------------------------------------------------------------------------------- engine


def engine(model: Any, student: Model, prompts: Sequence[list[int]], plan: Plan) -> Finding:
    """Log-probs of the rollout engine against those of the same weights in transformers, both in
    ``plan.dtype``."""
    name = "rollout engine"
    if not plan.engine:
        return Finding(name, SKIPPED, "not checked: --engine starts vLLM or SGLang and compares")
    title = "an engine"
    try:
        used = installed()
        title = TITLES[used]
        answers = _answers(used, model, student, prompts, plan)
    except ImportError as error:
        change = "install one of them, or leave --engine out"
        return Finding(name, WARNING, f"neither vLLM nor SGLang can be imported ({error})", change)
    except Exception as error:  # whatever it is, the other findings are wanted
        change = "the rollout would end the same way: its log on standard error says more"
        return Finding(name, ERROR, f"{title} does not run: {reason_of(error)}", change)
    differences = torch.cat(
        [_difference(model, *pair) for pair in zip(prompts, answers, strict=True)]
    )
    mean, most = float(differences.mean()), float(differences.max())
    evidence = (
        f"log-probs of {len(differences)} tokens by {title} differ by {mean:.3f} on average,"
        f" {most:.3f} at most"
    )
    if mean < ENGINE_CLOSE:
        return Finding(name, OK, evidence)
    change = (
        "the engine runs other weights or another precision than the trainer: compare dtype,"
        " quantisation, versions"
    )
    return Finding(name, WARNING if mean < ENGINE_FAR else ERROR, evidence, change)


def _answers(
    used: str, model: Any, student: Model, prompts: Sequence[list[int]], plan: Plan
) -> list[Answer]:
    """What the engine samples. It takes most of a GPU, so that the student's other copy leaves it
    meanwhile."""
    model.to("cpu")
    if plan.device.startswith("cuda"):
        torch.cuda.empty_cache()
    arguments = {
        "path": student.path,
        "dtype": plan.dtype,
        "trust_remote_code": plan.trust_remote_code,
    }
    answers = ask(used, prompts, plan.tokens, **arguments)
    model.to(plan.device)
    return answers


def _difference(model: Any, prompt: list[int], answer: Answer) -> Tensor:
    """(T,) absolute differences on one sampled response."""
    ids = torch.tensor(answer.token_ids, device=model.device)
    logits = _alone(
        model, Sample(torch.tensor(prompt + answer.token_ids, device=model.device), len(prompt))
    )
    ours = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return (ours.cpu() - torch.tensor(answer.log_probs)).abs()
