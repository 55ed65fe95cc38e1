"""Look for what commonly goes wrong with a pair of models, before a run is started.

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

from dataclasses import asdict

from recipe.prune_opd.commands.doctor.arguments import Arguments
from recipe.prune_opd.commands.files import check_pair
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding
from recipe.prune_opd.commands.terminal import as_json, console, say

STYLES = {OK: "green", SKIPPED: "dim", WARNING: "yellow", ERROR: "bold red"}


def run(args: Arguments) -> int:
    """Examine the pair and print.

    Returns:
        0 nothing found, 1 warnings, 2 errors.

    Raises:
        ValueError: a path holds no model, or the data file does not exist.
    """
    check_pair(args.student, args.teacher, args.data, weights=not args.no_weights)
    from recipe.prune_opd.commands.doctor.health import examine  # torch: help need not wait for it

    findings = examine(args)
    code = exit_code(findings)
    if args.json:
        answer = {"exit_code": code, "findings": [asdict(finding) for finding in findings]}
        say(as_json(answer))
    else:
        show(findings)
    return code


def exit_code(findings: list[Finding]) -> int:
    """Exit code: 0 nothing found, 1 warnings, 2 errors."""
    return max({ERROR: 2, WARNING: 1}.get(finding.status, 0) for finding in findings)


def show(findings: list[Finding]) -> None:
    """Print a table, then how many there are of each kind."""
    from rich import box
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
    terminal = console()
    terminal.print(table)
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    terminal.print(", ".join(f"{number} {status}" for status, number in counts.items() if number))
