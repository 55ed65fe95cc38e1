"""What all commands share: their help."""

import argparse
import importlib

import pytest

from recipe.prune_opd.__main__ import COMMANDS, main


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_every_option(name, capsys):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"recipe.prune_opd.commands.{name}").add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    printed = help_of(capsys, name)
    assert options
    assert sorted(option for option in options if option not in printed) == []
    assert "%%" not in printed


def test_the_help_of_all_commands_is_plain_text(capsys):
    printed = help_of(capsys)
    assert "`" not in printed
    assert sorted(name for name in COMMANDS if f"    {name} " not in printed) == []
