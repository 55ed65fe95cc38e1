"""Does this teacher fit this student? Where the two part, and what training would save, before it
is started.

    python -m recipe.prune_opd diagnose STUDENT TEACHER --data train.parquet --max-response-length
    2048 --out report

STUDENT and TEACHER are local folders or hub names. The student answers some prompts of the data,
both models score the answers, and what is printed says how far their most likely tokens overlap, on
which tokens they part, how long responses stay reliable, and how many tokens training would
generate under which settings, with settings to paste. It needs the weights of both models, one
after the other, and uses a GPU where there is one.

Up to --prompts x --samples x --max-response-length tokens are sampled. On a CPU begin small:

    python -m recipe.prune_opd diagnose STUDENT TEACHER --data train.parquet --prompts 8
    --max-response-length 192

Responses that the student has already written can be taken instead with --rollouts FILE.jsonl, one
object a line: {"prompt": TEXT or MESSAGES, "response": TEXT} or {"prompt_ids": [...],
"response_ids": [...]}.

docs/diagnose.md explains every number, and what the verdict rests on.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.diagnose.tables import (
    SHARES,
    expectation,
    notes,
    rows_along,
    rows_of_grid,
    rows_of_kinds,
    summary,
)
from recipe.prune_opd.commands.doctor.command import DTYPES, count, mapping, positive
from recipe.prune_opd.commands.files import check_pair
from recipe.prune_opd.commands.pair.findings import Plan
from recipe.prune_opd.commands.terminal import console

AUTO = "auto"
GATES = ("off", "cumulative", "windowed", "consecutive", "relative")
"""Kinds of the gate that are compared: prune_opd.gate.kind, and none. Named here, since torch comes
with the config."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("student", metavar="STUDENT", help="folder or hub name")
    parser.add_argument("teacher", metavar="TEACHER", help="folder or hub name")
    plan = Plan()
    _data_arguments(parser, plan)
    _run_arguments(parser, plan)
    _compared_arguments(parser)
    _passes_arguments(parser)
    _output_arguments(parser)


def _data_arguments(parser: argparse.ArgumentParser, plan: Plan) -> None:
    """Of prompts and responses."""
    data = parser.add_argument_group(
        "prompts or responses (one of --data and --rollouts is needed)"
    )
    data.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="prompts in verl's format: .parquet, .json or .jsonl",
    )
    data.add_argument(
        "--rollouts",
        type=Path,
        metavar="FILE",
        help="responses of the student, .jsonl, not sampled here",
    )
    data.add_argument(
        "--prompts",
        type=count,
        default=16,
        metavar="N",
        help="prompts, chosen by --seed (%(default)s)",
    )
    data.add_argument(
        "--samples",
        type=count,
        default=2,
        metavar="N",
        help="responses to each prompt (%(default)s)",
    )
    data.add_argument(
        "--prompt-key",
        default=plan.prompt_key,
        metavar="NAME",
        help="data.prompt_key (%(default)s)",
    )
    data.add_argument(
        "--chat-template-kwargs",
        type=mapping,
        metavar="JSON",
        help="data.apply_chat_template_kwargs, e.g. '{\"enable_thinking\": false}'",
    )


def _run_arguments(parser: argparse.ArgumentParser, plan: Plan) -> None:
    """Of the run that is planned."""
    run_ = parser.add_argument_group("the run you plan")
    run_.add_argument(
        "--max-response-length",
        type=count,
        default=plan.max_response_length,
        metavar="N",
        help="longest training response, prune_opd.budget.max (%(default)s)",
    )
    run_.add_argument(
        "--max-prompt-length",
        type=count,
        default=plan.max_prompt_length,
        metavar="N",
        help="data.max_prompt_length; longer prompts are passed over (%(default)s)",
    )
    run_.add_argument(
        "--topk", type=count, default=plan.topk, metavar="K", help="prune_opd.topk (%(default)s)"
    )
    run_.add_argument(
        "--threshold",
        type=_share,
        default=0.7,
        metavar="GAMMA",
        help="prune_opd.drift.threshold (%(default)s)",
    )
    run_.add_argument(
        "--steps", type=count, default=203, metavar="N", help="training steps (%(default)s)"
    )
    run_.add_argument(
        "--batch",
        type=count,
        default=256,
        metavar="N",
        help="responses of a step, data.train_batch_size x rollout.n (%(default)s)",
    )
    run_.add_argument(
        "--temperature",
        type=positive,
        default=1.0,
        metavar="T",
        help="actor_rollout_ref.rollout.temperature (%(default)s)",
    )
    run_.add_argument(
        "--teacher-temperature",
        type=positive,
        default=1.0,
        metavar="T",
        help="prune_opd.teacher.temperature (%(default)s)",
    )


def _compared_arguments(parser: argparse.ArgumentParser) -> None:
    """Of settings to compare."""
    compared = parser.add_argument_group("settings to compare")
    compared.add_argument(
        "--topks",
        type=count,
        nargs="+",
        metavar="K",
        help="prune_opd.topk (half of --topk, it, twice it)",
    )
    compared.add_argument(
        "--thresholds",
        type=_share,
        nargs="+",
        default=[0.6, 0.7, 0.8, 0.9],
        metavar="GAMMA",
        help="prune_opd.drift.threshold (0.6 0.7 0.8 0.9)",
    )
    compared.add_argument(
        "--w-drops",
        type=_share,
        nargs="+",
        metavar="W",
        help="prune_opd.drift.w_drop (half of the recommended one, it, twice it)",
    )
    compared.add_argument(
        "--gates",
        nargs="+",
        choices=GATES,
        default=GATES,
        metavar="KIND",
        help=f"of {', '.join(GATES)} (all)",
    )


def _passes_arguments(parser: argparse.ArgumentParser) -> None:
    """Of how responses are made and scored."""
    passes = parser.add_argument_group("passes")
    passes.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="samples (%(default)s)",
    )
    passes.add_argument(
        "--batch-size",
        type=count,
        default=8,
        metavar="N",
        help="responses that transformers samples at once (%(default)s)",
    )
    passes.add_argument(
        "--chunk",
        type=count,
        default=256,
        metavar="N",
        help="tokens that are scored at once (%(default)s)",
    )
    passes.add_argument(
        "--dtype",
        choices=(AUTO, *DTYPES),
        default=AUTO,
        help="of the weights; auto: bfloat16 on a GPU, else float32",
    )
    passes.add_argument(
        "--device", default=AUTO, help="cpu, cuda, cuda:1; auto: cuda where there is one"
    )
    passes.add_argument(
        "--seed", type=int, default=0, help="of prompts, samples and resampling (%(default)s)"
    )
    passes.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the models"
    )


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    """Of what is written."""
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help=(
            "folder for diagnosis.html, .json and .rollouts.jsonl (to give to --rollouts), or the"
            " .html file"
        ),
    )
    output.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables"
    )


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"got {text}, allowed: a number in (0, 1]")
    return number


def run(args: argparse.Namespace) -> int:
    """Diagnose the pair and print.

    Raises:
        ValueError: an argument, a file or a model is not as it should be; names which.
    """
    answer, examples, rollouts = diagnose(args)
    if args.out is not None:
        write(answer, examples, rollouts, args.out)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        show(answer)
        if args.out is not None:
            print(f"\n{page_file(args.out)}")
    return 0


def diagnose(
    args: argparse.Namespace,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The answer, some responses for the page, and all of them as ``--rollouts`` reads them.

    Everything is checked before weights are loaded.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from recipe.prune_opd.checks.models import Model
    from recipe.prune_opd.commands.diagnose.forecast import forecast
    from recipe.prune_opd.commands.doctor import health
    from recipe.prune_opd.commands.pair import passes as pair_passes
    from recipe.prune_opd.method.drift import overlap_events

    transformers_logging.disable_progress_bar()
    plan = _plan(args)
    student, teacher = (
        Model(key, path, args.trust_remote_code, None, None)
        for key, path in (("STUDENT", args.student), ("TEACHER", args.teacher))
    )
    vocabulary = min(student.vocab_size, teacher.vocab_size)
    ks = _numbers_of_candidates(args, vocabulary)
    warnings = pair_passes.warnings_of(
        [
            health.vocabulary(student, teacher, args.topk),
            health.tokens(student, teacher),
            health.end_ids(student, teacher),
            health.context(student, teacher, args.max_prompt_length + args.max_response_length),
        ]
    )
    passes, planned = _passes(args, scored(ks), plan.device), _planned(args, ks)
    if args.rollouts is None:
        prompts, ready = pair_passes.choose_prompts(student, plan, passes), []
    else:
        prompts, ready = [], pair_passes.read_rollouts(args.rollouts, student, plan, vocabulary)
    rollouts, scores = pair_passes.examine_pair(student, teacher, plan, passes, prompts, ready)
    ended = torch.tensor([rollout.response_ids[-1] in student.ends for rollout in rollouts])
    found = forecast(
        scores, pair_passes.kinds_of(student, scores.tokens), ended, planned, args.teacher
    )
    answer = {
        "student": args.student,
        "teacher": args.teacher,
        "data": str(args.data or args.rollouts),
        "planned": asdict(planned),
        "passes": asdict(passes) | {"device": plan.device, "sampled": args.rollouts is None},
        **found,
        "notes": [*warnings, *notes(found["responses"])],
    }
    events = overlap_events(scores.overlap[args.topk], scores.mask, args.threshold)
    lines = [
        {"prompt_ids": rollout.prompt_ids, "response_ids": rollout.response_ids}
        for rollout in rollouts
    ]
    return without_nan(answer), pair_passes.examples(student, rollouts, events), lines


def _plan(args: argparse.Namespace) -> Plan:
    """Files, lengths and device, checked as far as that needs no model."""
    import torch

    from recipe.prune_opd.commands.doctor.health import check_device

    if (args.data is None) == (args.rollouts is None):
        given = "neither" if args.data is None else "both"
        raise ValueError(f"--data, --rollouts: got {given}, allowed: one of them")
    if args.rollouts is not None:
        check_readable("--rollouts: ", args.rollouts, "a file with one JSON object a line")
    check_pair(args.student, args.teacher, args.data)
    if args.out is not None:
        _check_out(args.out)
    device = (
        ("cuda" if torch.cuda.is_available() else "cpu") if args.device == AUTO else args.device
    )
    check_device(device)
    return Plan(
        data=args.data,
        prompt_key=args.prompt_key,
        template_kwargs=args.chat_template_kwargs,
        max_prompt_length=args.max_prompt_length,
        max_response_length=args.max_response_length,
        device=device,
        trust_remote_code=args.trust_remote_code,
    )


def _check_out(out: Path) -> None:
    """Refuse a place for the files that cannot take them, while nothing has been computed.

    Raises:
        ValueError: names the place.
    """
    try:
        page_file(out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out: {out} cannot be written ({error}), allowed: a folder or a .html"
        ) from error
    folder = next((file for file in _files(out) if file.is_dir()), None)
    if folder is not None:
        raise ValueError(
            f"--out: {folder} is a folder, allowed: a folder with another name, or a file ending in"
            " .html"
        )


def _passes(args: argparse.Namespace, ks: tuple[int, ...], device: str) -> Any:
    """How responses are made and scored."""
    from recipe.prune_opd.commands.pair.passes import Passes

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
    )


def _planned(args: argparse.Namespace, ks: tuple[int, ...]) -> Any:
    """The run, and the settings to compare."""
    from recipe.prune_opd.commands.diagnose.forecast import Planned
    from recipe.prune_opd.commands.diagnose.recommend import w_drop_for

    w_drop = w_drop_for(args.max_response_length)
    return Planned(
        limit=args.max_response_length,
        steps=args.steps,
        batch=args.batch,
        topk=args.topk,
        threshold=args.threshold,
        ks=ks,
        thresholds=tuple(sorted({*args.thresholds, args.threshold})),
        w_drops=tuple(sorted(args.w_drops or (w_drop / 2, w_drop, min(1.0, 2 * w_drop)))),
        gates=tuple(args.gates),
        seed=args.seed,
    )


def _numbers_of_candidates(args: argparse.Namespace, vocabulary: int) -> tuple[int, ...]:
    """--topks and --topk, none above the vocabulary."""
    if args.topks is None:
        wanted = {k for k in (args.topk // 2, 2 * args.topk) if 1 <= k < vocabulary}
    else:
        wanted = set(args.topks)
        if max(wanted) > vocabulary:
            raise ValueError(
                f"--topks: got {max(wanted)}, allowed: at most the common vocabulary, {vocabulary}"
            )
    return tuple(sorted({*wanted, args.topk}))


def scored(ks: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of candidates to score: those that are compared, and that of the verdict where it is
    among their tops."""
    from recipe.prune_opd.commands.diagnose.recommend import JUDGED_K

    return tuple(sorted({*ks, JUDGED_K})) if max(ks) >= JUDGED_K else ks


def without_nan(value: Any) -> Any:
    """For JSON, which has no NaN: None."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda constant: None)


# ------------------------------------------------------------------------------------------- output


def page_file(out: Path) -> Path:
    """Where the page goes."""
    return out if out.suffix == ".html" else out / "diagnosis.html"


def _files(out: Path) -> tuple[Path, Path, Path]:
    """Page, JSON and responses."""
    file = page_file(out)
    return file, file.with_suffix(".json"), file.with_suffix(".rollouts.jsonl")


def write(
    answer: dict[str, Any],
    examples: list[dict[str, Any]],
    rollouts: list[dict[str, Any]],
    out: Path,
) -> None:
    """Write the page, and beside it the JSON and the responses."""
    from recipe.prune_opd.commands.diagnose.page import draw

    lines = "".join(json.dumps(rollout) + "\n" for rollout in rollouts)
    for file, text in zip(
        _files(out), (draw(answer, examples), json.dumps(answer, indent=2), lines), strict=True
    ):
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--out: {file} cannot be written ({error})") from error


def show(answer: dict[str, Any]) -> None:
    """Tables."""
    from rich.text import Text

    terminal = console(highlight=False)
    name, reason = answer["verdict"]["name"], answer["verdict"]["reason"]
    terminal.print(Text.assemble((name, "bold"), f": {reason}"))
    terminal.print(summary(answer))
    for table in (_along(answer), _kinds(answer), _tokens(answer)):
        terminal.print(table)
    terminal.print("Recommended:\n")
    # As it is, to be copied.
    print("\n".join(f"    {line} \\" for line in answer["recommended"]["overrides"])[:-2])
    terminal.print("\n" + "\n".join(f"- {reason}" for reason in answer["recommended"]["reasons"]))
    terminal.print(expectation(answer))
    for note in answer["notes"]:
        terminal.print(f"Note: {note}.")


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _along(answer: dict[str, Any]) -> Any:
    title = f"Along the responses (probability of the top {answer['planned']['topk']})"
    table = _table(title, "from token", "tokens", "overlap", "events", *SHARES.values())
    for row in rows_along(answer):
        table.add_row(*row)
    return table


def _kinds(answer: dict[str, Any]) -> Any:
    table = _table(
        "By the student's token",
        "kind",
        "of all tokens",
        "overlap",
        "events per token",
        "of all events",
    )
    for row in rows_of_kinds(answer):
        table.add_row(*row)
    return table


def _tokens(answer: dict[str, Any]) -> Any:
    planned = answer["planned"]
    title = (
        f"Tokens per response by gate: generated/trained on, share saved; k = {planned['topk']},"
        " others: --json"
    )
    gates = ["no gate" if kind == "off" else kind for kind in planned["gates"]]
    table = _table(title, "γ", "w_drop", *gates)
    for row in rows_of_grid(answer, planned["topk"]):
        table.add_row(*row)
    return table
