"""Parts that doctor and diagnose share know neither of them, and ask engines the same way."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import recipe.prune_opd.commands.pair as pair
from recipe.prune_opd.commands.pair.engines import Answer, Engine, ask
from recipe.prune_opd.commands.pair.sampling import Sampling

ABOVE = ("recipe.prune_opd.commands.doctor", "recipe.prune_opd.commands.diagnose")


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return whole | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("file", sorted(Path(pair.__file__).parent.glob("*.py")), ids=str)
def test_what_is_shared_imports_neither_command(file):
    assert [name for name in imported(file) if name.startswith(ABOVE)] == []


def test_diagnose_does_not_import_doctor():
    files = (Path(pair.__file__).parents[1] / "diagnose").glob("*.py")
    assert [
        file for file in files if any(name.startswith(ABOVE[0]) for name in imported(file))
    ] == []


def test_vllm_is_asked_for_samples_of_the_whole_distribution_with_a_seed_each(monkeypatch):
    seen: dict[str, object] = {}

    class LLM:
        def __init__(self, **given):
            seen["engine"] = given
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.stop))

        def stop(self):
            seen["stopped"] = True

        def generate(self, prompts, sampling):
            seen["prompts"] = [prompt["prompt_token_ids"] for prompt in prompts]
            seen["sampling"] = [vars(each) for each in sampling]
            rows = [{7: SimpleNamespace(logprob=-0.5)}, {1: SimpleNamespace(logprob=-0.25)}]
            response = SimpleNamespace(token_ids=[7, 1], logprobs=rows)
            return [SimpleNamespace(outputs=[response]) for _ in prompts]

    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = LLM, lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    how = Sampling(20, frozenset({5, 1}), temperature=0.8, seed=3)
    engine = Engine("vllm", "MODEL", "bfloat16", trust_remote_code=False, eager=False)
    assert ask(engine, [[3, 4], [3, 4]], how) == [Answer([7, 1], [-0.5, -0.25])] * 2
    assert seen["engine"] == {
        "model": "MODEL",
        "dtype": "bfloat16",
        "seed": 3,
        "max_model_len": 22,
        "enforce_eager": False,
        "trust_remote_code": False,
    }
    common = {
        "temperature": 0.8,
        "max_tokens": 20,
        "stop_token_ids": [1, 5],
        "detokenize": False,
        "logprobs": 0,
    }
    assert seen["sampling"] == [{**common, "seed": 3}, {**common, "seed": 4}]
    assert seen["stopped"]


def test_what_an_engine_prints_does_not_mix_with_the_answer():
    """vLLM and its processes write their log to standard output."""
    program = (
        "import os, sys; from recipe.prune_opd.commands.pair.engines import talk_to_stderr\n"
        "with talk_to_stderr(): print('log'); os.system('echo child')\n"
        "print('answer')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "answer\n"
    assert "log" in done.stderr
    assert "child" in done.stderr
