"""Commands of the package: ``python -m recipe.prune_opd COMMAND``; ``--help`` says which there are.

A command is a folder of ``recipe.prune_opd.commands``. Its ``command.py`` has two functions,
``add_arguments(parser)`` and ``run(args) -> int``, the exit code. Its docstring is its help. It is
imported when it is called, and imports what takes long (torch, transformers, verl, matplotlib) when
it runs: help comes at once.
"""

import argparse
import importlib
import sys

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
    """Run the command line and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv[0] if argv else "").parse_args(argv)
    try:
        return args.run(args)
    except ValueError as error:  # bad input: one sentence, no traceback
        print(f"{args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file that vanished, may not be read, or does not fit on the disk
        if error.filename is None:
            raise
        print(
            f"{args.command}: {error.filename} cannot be used ({error.strerror})", file=sys.stderr
        )
        return 2


def _parser(called: str) -> argparse.ArgumentParser:
    """All commands by name, and the arguments of the one that is called."""
    parser = argparse.ArgumentParser(prog="python -m recipe.prune_opd", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == called:
            module = importlib.import_module(f"recipe.prune_opd.commands.{name}.command")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
