"""Every command has its help at once, imports no other, and ends a wrong call in one sentence."""

import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from recipe.prune_opd.__main__ import COMMANDS, main
from recipe.prune_opd.commands.diagnose.arguments import GATES as COMPARED
from recipe.prune_opd.method.gates import GATES

ROOT = Path(__file__).resolve().parents[3]


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def options_of(name: str) -> list[str]:
    module = importlib.import_module(f"recipe.prune_opd.commands.{name}.command")
    positional = {"files", "overrides", "runs", "dataset", "student", "teacher"}
    names = [field.name for field in fields(module.Arguments) if field.name not in positional]
    return [f"--{name.replace('_', '-')}" for name in names]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_every_option(name, capsys):
    printed = help_of(capsys, name)
    assert "--json" in options_of(name)
    assert [option for option in options_of(name) if option not in printed] == []
    assert "%%" not in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_page_of_its_command(name):
    link = re.search(rf"\[`{name}`\]\((docs/\w+\.md)\)", (ROOT / "README.md").read_text())
    page = (ROOT / link[1]).read_text()
    named = [option for option in options_of(name) if option not in ("-h", "--help")]
    assert [option for option in named if option not in page] == []


OPTIONS = {
    "estimate": (
        "--steps --prompt-length --length --spread --gate-saving --mfu --peak-tflops --bandwidth"
        " --token-overhead --step-overhead --gpu-memory --mean-limit --short"
        " --decode-tokens-per-second --json"
    ),
    "evaluate": "--k --benchmark --regrade --tokenizer --limit --seed --json",
    "prepare": "--out --input --split --against --drop-duplicates --suffix --json",
    "report": "--out --title --step --json",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_that_scripts_of_users_have(name):
    assert options_of(name) == OPTIONS[name].split()


WRONG = [
    (["evaluate"], "FILE.jsonl", "got none, allowed: a file {step}.jsonl"),
    (["evaluate", "a", "--k"], "--k", "got none, allowed: whole numbers"),
    (["evaluate", "a", "--k", "1", "x"], "--k", "got x, allowed: whole numbers >= 1"),
    (["evaluate", "a", "--seed", "1.5"], "--seed", "got 1.5, allowed: a whole number"),
    (["evaluate", "a", "--limit", "None"], "--limit", "got None, allowed: a whole number"),
    (["evaluate", "a", "--limit"], "--limit", "Missing value"),
    (["evaluate", "a", "--benchmarks", "x"], "--benchmarks", "Unrecognized"),
    (["evaluate", "a", "--no-regrade"], "--no-regrade", "Unrecognized"),
    (["prepare"], "DATASET", "required"),
    (["diagnose", "a", "b", "--seed", "-1"], "--seed", "got -1, allowed: a whole number >= 0"),
    (["diagnose", "a", "b", "--seed", "9" * 20], "--seed", "whole number >= 0, at most 2147483647"),
    (["doctor", "a", "b", "--topk", "9" * 20], "--topk", "whole number >= 1, at most 2147483647"),
    (
        ["doctor", "a", "b", "--chat-template-kwargs", '{"a":' * 5000],
        "--chat-template-kwargs",
        "allowed: a JSON object",
    ),
    (["prepare", "aime24", "aime25"], "aime25", "Unrecognized"),
    (["estimate"], "CONFIG", "got none, allowed: arguments of verl.trainer.main_ppo"),
    (["estimate", "a=b", "--length", "-1"], "--length", "got -1, allowed: a number >= 0"),
    (["estimate", "a=b", "--mfu", "nan"], "--mfu", "got nan, allowed: a number >= 0"),
    (["estimate", "a=b", "--short", "inf"], "--short", "got inf, allowed: a number >= 0"),
    (["report"], "RUN", "got none, allowed: folders of runs"),
    (["report", "a", "--step", "first"], "--step", "got first, allowed: a whole number"),
]


@pytest.mark.parametrize(("arguments", "name", "message"), WRONG, ids=lambda value: str(value))
def test_an_argument_that_is_wrong_is_named(arguments, name, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    said = " ".join(re.sub("[│|]", " ", printed.err).split())  # without the frame around it
    assert name in said
    assert message in said


def test_an_option_may_be_spelled_with_underscores(tmp_path, capsys):
    file = tmp_path / "a.json"
    file.write_text(
        '[{"problem": "Q", "answer": "1", "id": "0"}, {"problem": "Q", "answer": "1", "id": "1"}]'
    )
    written = ["--out", str(tmp_path / "out.parquet"), "--json"]
    assert main(["prepare", "aime25", "--input", str(file), "--drop_duplicates", *written]) == 0
    assert '"duplicates_left_out": 1' in capsys.readouterr().out


def test_the_help_of_all_commands_is_plain_text(capsys):
    printed = help_of(capsys)
    assert "`" not in printed
    assert sorted(name for name in COMMANDS if f"    {name} " not in printed) == []


HELP = """
import sys, time
from recipe.prune_opd.__main__ import main
try:
    main([*sys.argv[1:], "--help"])
finally:
    slow = {"torch", "transformers", "verl", "ray", "matplotlib", "scipy", "pandas", "datasets"}
    slow &= sys.modules.keys()
    if time.process_time() > 1:  # what the machine does beside it does not count
        slow.add("more than a second")
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

    @dataclass(frozen=True)
    class Nothing:
        """No arguments."""

    monkeypatch.setattr(module, "run", refused)
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


SAID = """
import sys
from types import SimpleNamespace
from recipe.prune_opd import __main__ as program

program._arguments = lambda *given: None
module = SimpleNamespace(run=lambda args: print(sys.argv[1] * 100_000) or 0)
program.importlib = SimpleNamespace(import_module=lambda name: module)
sys.exit(program.main(["report"]))
"""


def test_a_full_disk_below_what_is_printed_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SAID, "x"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    expected = "report: a file, or what is printed, cannot be used (No space left on device)"
    assert done.stderr.splitlines() == [expected]


def test_a_reader_that_has_seen_enough_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-c", SAID, "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        running.stdout.read(1)
        running.stdout.close()
        assert (running.stderr.read(), running.wait()) == (b"", 1)


def test_text_that_the_terminal_cannot_show_is_printed_all_the_same():
    done = subprocess.run(
        [sys.executable, "-c", SAID, os.fsencode("\udcff")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr, done.stdout[:2]) == (0, "", "??")
