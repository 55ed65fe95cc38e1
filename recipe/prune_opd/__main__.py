"""Commands of the package: ``python -m recipe.prune_opd COMMAND``; ``--help`` says which there are.

A command is a folder of ``recipe.prune_opd.commands``. Its ``command.py`` has a frozen dataclass
``Arguments``, whose fields are its options and their docstrings its help, and a function
``run(args: Arguments) -> int``, which returns the exit code. The docstring of the module describes
the command. It is imported when it is called, and imports what takes long (torch, transformers,
verl, matplotlib) when it runs: help comes at once.
"""

import argparse
import importlib
import io
import os
import sys
from types import ModuleType
from typing import Any

from verl_ext.texts import visible

PROGRAM = "python -m recipe.prune_opd"
COMMANDS: dict[str, str] = {
    "diagnose": (
        "does this teacher fit this student: where the two part, what training would save, which"
        " settings"
    ),
    "doctor": "what commonly goes wrong with a pair of models and its data, before a run",
    "estimate": "tokens, FLOPs, memory and time of a run, from model configurations alone",
    "evaluate": "accuracy, lengths and failures from verl's validation dumps",
    "prepare": "a dataset as parquet in verl's format, checked",
    "report": (
        "a page about runs: accuracy, limits, drift by position, tokens and time, samples token by"
        " token"
    ),
}
"""Name -> what it does, in a line."""
DESCRIPTION = (
    "What is asked before and after a training: does the pair fit, what will it cost, how did"
    " it go."
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Raises:
        SystemExit: help was asked for (0), or an argument is unknown, missing or of another type
            (2, and a message on stderr that names it).
    """
    argv = sys.argv[1:] if argv is None else argv
    name = _called(argv)
    module = importlib.import_module(f"recipe.prune_opd.commands.{name}.command")
    args = _arguments(name, module, argv[1:])
    # A text from anywhere may have what the terminal cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = module.run(args)
        sys.stdout.flush()
        return code
    except ValueError as error:  # bad input: one sentence, no traceback
        print(visible(f"{name}: {' '.join(str(error).splitlines())}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a file that vanished, may not be read, or does not fit on the disk
        where = "a file, or what is printed," if error.filename is None else error.filename
        said = f"{name}: {where} cannot be used ({error.strerror or error})"
        print(visible(said), file=sys.stderr)
        return 2


def _called(argv: list[str]) -> str:
    """Name of the command; the list of all of them for ``--help``, and where there is none."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser.parse_args(argv[:1]).command


def _arguments(name: str, module: ModuleType, argv: list[str]) -> Any:
    """Arguments of a command out of its part of the command line."""
    import tyro
    from tyro.conf import DisallowNone, FlagCreatePairsOff, HelptextFromCommentsOff

    return tyro.cli(
        module.Arguments,
        prog=f"{PROGRAM} {name}",
        description=module.__doc__,
        args=argv,
        config=(DisallowNone, FlagCreatePairsOff, HelptextFromCommentsOff),
    )


if __name__ == "__main__":
    sys.exit(main())
