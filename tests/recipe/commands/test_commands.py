"""What all commands share: their help."""

import argparse
import importlib
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from recipe.prune_opd.__main__ import COMMANDS, main
from recipe.prune_opd.commands.diagnose.arguments import GATES as COMPARED
from recipe.prune_opd.config import GATES


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def options_of(name: str) -> set[str]:
    module = importlib.import_module(f"recipe.prune_opd.commands.{name}.command")
    if hasattr(module, "Arguments"):
        names = {field.name for field in fields(module.Arguments)} - {"student", "teacher"}
        return {f"--{name.replace('_', '-')}" for name in names}
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_every_option(name, capsys):
    options = options_of(name)
    printed = help_of(capsys, name)
    assert options
    assert sorted(option for option in options if option not in printed) == []
    assert "%%" not in printed


def test_the_help_of_all_commands_is_plain_text(capsys):
    printed = help_of(capsys)
    assert "`" not in printed
    assert sorted(name for name in COMMANDS if f"    {name} " not in printed) == []


HELP = """
import sys
from recipe.prune_opd.__main__ import main
try:
    main([*sys.argv[1:], "--help"])
finally:
    slow = {"torch", "transformers", "verl", "ray", "matplotlib", "scipy", "datasets"}
    slow &= sys.modules.keys()
    print("SLOW", *sorted(slow), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_that_takes_long(command):
    done = subprocess.run(
        [sys.executable, "-c", HELP, *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "usage: " in done.stdout
    assert done.stderr.splitlines() == ["SLOW"]


def test_a_command_imports_no_other():
    code = "import sys; from recipe.prune_opd.__main__ import main; main([])"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "recipe.prune_opd.__main__" in done.stderr
    assert "recipe.prune_opd.commands" not in done.stderr


def test_gates_that_are_compared_are_those_of_the_recipe():
    assert ("off", *(kind for kind in GATES if kind != "never")) == COMPARED


def test_the_script_is_the_same_program():
    from importlib.metadata import entry_points

    scripts = [
        entry for entry in entry_points(group="console_scripts") if entry.name == "prune-opd"
    ]
    if not scripts:
        pytest.skip("the package is not installed, or was before it had the script prune-opd")
    assert scripts[0].load() is main


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_cannot_be_opened_is_one_sentence(name, monkeypatch, capsys):
    """Whatever a command opens, and whenever: a file may vanish between two looks at it."""

    def refused(args):
        raise PermissionError(13, "Permission denied", "/some/file")

    module = importlib.import_module(f"recipe.prune_opd.commands.{name}.command")
    monkeypatch.setattr(module, "run", refused)
    monkeypatch.setattr(module, "add_arguments", lambda parser: None, raising=False)
    monkeypatch.setattr(module, "Arguments", Nothing, raising=False)
    assert main([name]) == 2
    assert capsys.readouterr().err == f"{name}: /some/file cannot be used (Permission denied)\n"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("side", ["STUDENT", "TEACHER"])
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors"]
)
@pytest.mark.parametrize("command", ["doctor", "diagnose"])
def test_a_model_that_was_cloned_without_its_files_is_named(command, file, side, tmp_path, capsys):
    data = tmp_path / "data.json"
    data.write_text('[{"prompt": "Q"}]')
    for name in ("STUDENT", "TEACHER"):
        (tmp_path / name).mkdir()
    (tmp_path / side / file).write_text(POINTER)
    pair = [str(tmp_path / name) for name in ("STUDENT", "TEACHER")]
    assert main([command, *pair, "--data", str(data)]) == 2
    message = (
        f"{side}: {tmp_path / side / file} is a Git LFS pointer, not the file itself: fetch it with"
        " git lfs pull"
    )
    assert capsys.readouterr().err == f"{command}: {message}\n"


def test_without_weights_none_are_looked_for(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_text(POINTER)
    assert main(["doctor", str(tmp_path), str(tmp_path), "--no-weights"]) == 2
    assert "holds no model configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["doctor", "--data"], ["diagnose", "--data"], ["diagnose", "--rollouts"]]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is a folder, allowed: a "), (POINTER, "is a Git LFS pointer"), ("", "")],
)
def test_files_of_a_pair_are_looked_at_first(content, message, option, tmp_path, capsys):
    file = tmp_path / "x.json"
    file.mkdir() if content is None else file.write_text(content)
    assert main([option[0], "a/b/c", str(file), option[1], str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"{option[0]}: {option[1]}: {file} {message}"
        if message
        else f"{option[0]}: TEACHER: {file} is a"
    )
