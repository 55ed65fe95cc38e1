"""Looks for what commonly goes wrong with a pair of models, before a run is started.

    python -m recipe.prune_opd doctor STUDENT TEACHER --data train.parquet

STUDENT and TEACHER are local folders or hub names. Tokenizers, end tokens, chat templates, context,
the data's prompts and memory are read from files; then a few tokens are sampled from the student
and scored by both models, in float32, on this machine (no GPU is needed for small models;
--no-weights leaves this out). Each finding is

    ok        nothing to do          warning   the run starts, and may go wrong later
    skipped   not looked at          error     the run stops, or what it learns is noise

with what was seen and what to change. Exit code: 0 nothing found, 1 warnings, 2 errors.
docs/doctor.md explains every finding.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe.prune_opd.commands.files import check_pair
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding, Plan

STYLES = {OK: "green", SKIPPED: "dim", WARNING: "yellow", ERROR: "bold red"}
DTYPES = ("bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    plan = Plan()
    parser.add_argument("student", metavar="STUDENT", help="folder or hub name")
    parser.add_argument("teacher", metavar="TEACHER", help="folder or hub name")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="prompts in verl's format: .parquet, .json or .jsonl",
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
    data.add_argument(
        "--max-rows",
        type=count,
        default=plan.max_rows,
        metavar="N",
        help="prompts to read (%(default)s)",
    )
    run_ = parser.add_argument_group("the run you plan")
    for name, what in (
        ("max_prompt_length", "data.max_prompt_length"),
        (
            "max_response_length",
            "longest response, data.max_response_length or prune_opd.budget.max",
        ),
        ("topk", "prune_opd.topk"),
        ("gpus", "GPUs of the training"),
    ):
        flag = "--" + name.replace("_", "-")
        run_.add_argument(
            flag, type=count, default=getattr(plan, name), metavar="N", help=f"{what} (%(default)s)"
        )
    run_.add_argument(
        "--gpu-memory", type=positive, metavar="GB", help="memory of a GPU; default: not compared"
    )
    run_.add_argument(
        "--dtype",
        choices=DTYPES,
        default=plan.dtype,
        help="what training computes in (%(default)s)",
    )
    run_.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the models"
    )
    passes = parser.add_argument_group("passes")
    passes.add_argument(
        "--no-weights", action="store_true", help="read files only, load no weights"
    )
    passes.add_argument(
        "--tokens",
        type=count,
        default=plan.tokens,
        metavar="N",
        help="tokens sampled for each of 3 prompts (%(default)s)",
    )
    passes.add_argument(
        "--device",
        default=plan.device,
        help="where the models run: cpu, cuda, cuda:1 (%(default)s)",
    )
    passes.add_argument(
        "--engine",
        action="store_true",
        help="also start vLLM or SGLang and compare its log-probs with the trainer's; a minute",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )


def count(text: str) -> int:
    """An argument that is a whole number >= 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, allowed: a whole number >= 1")
    return number


def positive(text: str) -> float:
    """An argument that is a number > 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, allowed: a number > 0")
    return number


def mapping(text: str) -> dict[str, Any]:
    """An argument that is a JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"got {text}, allowed: a JSON object")
    return value


def run(args: argparse.Namespace) -> int:
    """Examine the pair and print.

    Returns:
        0 nothing found, 1 warnings, 2 errors.

    Raises:
        ValueError: a path holds no model, or the data file does not exist.
    """
    check_pair(args.student, args.teacher, args.data, weights=not args.no_weights)
    from recipe.prune_opd.commands.doctor.health import examine  # torch: help need not wait for it

    plan = Plan(
        data=args.data,
        prompt_key=args.prompt_key,
        template_kwargs=args.chat_template_kwargs,
        max_prompt_length=args.max_prompt_length,
        max_response_length=args.max_response_length,
        max_rows=args.max_rows,
        topk=args.topk,
        dtype=args.dtype,
        gpus=args.gpus,
        gpu_memory=args.gpu_memory,
        tokens=args.tokens,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        weights=not args.no_weights,
        engine=args.engine,
    )
    findings = examine(args.student, args.teacher, plan)
    code = exit_code(findings)
    if args.json:
        print(
            json.dumps(
                {"exit_code": code, "findings": [asdict(finding) for finding in findings]}, indent=2
            )
        )
    else:
        show(findings)
    return code


def exit_code(findings: list[Finding]) -> int:
    """0 nothing found, 1 warnings, 2 errors."""
    return max({ERROR: 2, WARNING: 1}.get(finding.status, 0) for finding in findings)


def show(findings: list[Finding]) -> None:
    """A table, then how many there are of each kind."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("finding", "", "what was seen, and what to change"):
        table.add_column(column, no_wrap=column != "what was seen, and what to change")
    for finding in findings:
        seen = Text(finding.evidence)
        if finding.change:
            seen.append(f"\n-> {finding.change}", style=STYLES[finding.status])
        table.add_row(finding.name, Text(finding.status, style=STYLES[finding.status]), seen)
    console = Console()
    console.print(table)
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    console.print(", ".join(f"{number} {status}" for status, number in counts.items() if number))
