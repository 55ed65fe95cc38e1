"""Course of ``diagnose``: files, prompts, responses, scores, and the answer made of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.diagnose.arguments import AUTO, Arguments
from recipe.prune_opd.commands.diagnose.forecast import forecast, planned_drift
from recipe.prune_opd.commands.diagnose.gradients import check_memory
from recipe.prune_opd.commands.diagnose.grading import grade_of
from recipe.prune_opd.commands.diagnose.output import Diagnosis
from recipe.prune_opd.commands.diagnose.passes import Passes, examine_pair
from recipe.prune_opd.commands.diagnose.plan import Planned
from recipe.prune_opd.commands.diagnose.questions import Question, Solution, choose
from recipe.prune_opd.commands.diagnose.ready import read_rollouts
from recipe.prune_opd.commands.diagnose.recommend import JUDGED_K, w_drop_for
from recipe.prune_opd.commands.diagnose.survival import Case, find_signal
from recipe.prune_opd.commands.diagnose.tables import notes
from recipe.prune_opd.commands.diagnose.tokens import examples, kinds_of
from recipe.prune_opd.commands.pair.findings import ERROR, WARNING, Finding
from recipe.prune_opd.commands.pair.fit import fit, token_ids, vocabulary
from recipe.prune_opd.commands.pair.models import Pair, check_device
from recipe.prune_opd.commands.pair.sampling import Rollout


def diagnose(args: Arguments) -> Diagnosis:
    """Diagnose a pair. Everything is checked before weights are loaded.

    Raises:
        ValueError: an argument, a file or a model is not as it should be; names which.
    """
    _hush()
    pair = Pair.read(args.student, args.teacher, args.trust_remote_code)
    ks = _numbers_of_candidates(args, pair.vocabulary)
    warnings = warnings_of(fit(pair, args.topk, args.max_prompt_length + args.max_response_length))
    passes, planned = _passes(args, scored(ks), _device(args)), _planned(args, ks)
    other = _other(args)
    questions, solutions, ready = _questions(args, pair, passes)
    grade, ungraded = grade_of(args, questions)
    prompts = [question.ids for question in questions]
    rollouts, scores = examine_pair(pair, passes, args.max_response_length, prompts, ready)
    questions = questions if ready else [questions[rollout.prompt] for rollout in rollouts]
    drift = planned_drift(scores, planned)
    signal, said = find_signal(
        Case(args, pair, other, passes, rollouts, questions, solutions, grade, ungraded, scores),
        drift,
    )
    kinds, ended = kinds_of(pair.student, scores.tokens), _ended(pair.student, rollouts)
    found = forecast(scores, kinds, ended, planned, args.teacher)
    answer = {
        "student": args.student,
        "teacher": args.teacher,
        "data": str(args.data or args.rollouts),
        "planned": asdict(planned),
        "passes": asdict(passes) | {"sampled": args.rollouts is None},
        **found,
        "signal": signal,
        "notes": [*warnings, *notes(found["responses"]), *said],
    }
    return Diagnosis(
        without_nan(answer),
        examples(pair.student, rollouts, drift.events),
        list(map(_line, rollouts, questions)),
    )


def _hush() -> None:
    """Keep transformers' bars about files off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _questions(
    args: Arguments, pair: Pair, passes: Passes
) -> tuple[list[Question], list[Solution], list[Rollout]]:
    """Questions of the data, or those of ready responses, one for each; solutions; responses."""
    if args.solutions is not None:
        check_memory(pair, passes)
    if args.rollouts is None:
        return (*choose(pair.student, args), [])
    ready, questions = read_rollouts(args, pair)
    return questions, [], ready


def _other(args: Arguments) -> Pair | None:
    """Pair of the student and the other teacher.

    Raises:
        ValueError: it is not of the student's tokens.
    """
    if args.other_teacher is None:
        return None
    key = "--other-teacher"
    other = Pair.read(args.student, args.other_teacher, args.trust_remote_code, key)
    try:
        warnings_of([vocabulary(other, args.topk), token_ids(other)])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return other


def _line(rollout: Rollout, question: Question) -> dict[str, Any]:
    """Response as ``--rollouts`` reads it."""
    known = {
        "data_source": question.source,
        "ground_truth": question.truth,
        "extra_info": question.extra,
    }
    return {
        "prompt_ids": rollout.prompt_ids,
        "response_ids": rollout.response_ids,
        **{name: value for name, value in known.items() if value is not None},
    }


def _ended(student: Model, rollouts: Sequence[Rollout]) -> torch.Tensor:
    """Responses that ended by themselves, (B,) bool."""
    return torch.tensor([rollout.response_ids[-1] in student.ends for rollout in rollouts])


def _device(args: Arguments) -> str:
    """Name the device, and refuse one that this machine does not have."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = best if args.device == AUTO else args.device
    check_device(device)
    return device


def _passes(args: Arguments, ks: tuple[int, ...], device: str) -> Passes:
    """Settings of sampling and scoring."""
    own = "float32" if device == "cpu" else "bfloat16"
    return Passes(
        k=args.topk,
        ks=ks,
        prompts=args.prompts,
        samples=args.samples,
        seed=args.seed,
        temperature=args.temperature,
        teacher_temperature=args.teacher_temperature,
        dtype=own if args.dtype == AUTO else args.dtype,
        batch=args.batch_size,
        chunk=args.chunk,
        engine=args.engine,
        device=device,
    )


def _planned(args: Arguments, ks: tuple[int, ...]) -> Planned:
    """Planned run, and settings to compare."""
    w_drop = w_drop_for(args.max_response_length)
    return Planned(
        limit=args.max_response_length,
        steps=args.steps,
        batch=args.batch,
        topk=args.topk,
        threshold=args.bound,
        ks=ks,
        thresholds=args.bounds,
        w_drops=tuple(sorted(args.w_drops or (w_drop / 2, w_drop, min(1.0, 2 * w_drop)))),
        gates=args.gates,
        seed=args.seed,
        metric=args.metric,
    )


def _numbers_of_candidates(args: Arguments, vocabulary: int) -> tuple[int, ...]:
    """Numbers of candidates to compare: ``--topks`` and ``--topk``, none above the vocabulary."""
    most = max(args.topks, default=0)
    if most > vocabulary:
        raise ValueError(
            f"--topks: got {most}, allowed: at most the common vocabulary, {vocabulary}"
        )
    around = [k for k in (args.topk // 2, 2 * args.topk) if 1 <= k < vocabulary]
    return tuple(sorted({*(args.topks or around), args.topk}))


def scored(ks: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of candidates to score: those compared, and the verdict's if below."""
    return tuple(sorted({*ks, JUDGED_K})) if max(ks) >= JUDGED_K else ks


def warnings_of(findings: Sequence[Finding]) -> list[str]:
    """Sentences of what ``doctor`` warns of, after a look for errors.

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


def without_nan(value: Any) -> Any:
    """A value for JSON, which has no NaN: None in its place."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda constant: None)
