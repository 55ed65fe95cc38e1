"""Statistics worked out by hand, dumps as verl writes them, and the paper's validation settings."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.analysis.evaluation import LEVEL, Response, bootstrap, pass_at_k, summarise
from recipe.prune_opd.checks.settings import check_settings
from recipe.prune_opd.commands import evaluate


def responses(benchmark: str, *problems: str, tokens: int | None = None) -> list[Response]:
    """One per character: 1 right, 0 wrong, ? unread."""
    return [
        Response(benchmark, str(number), mark == "1", "no box" if mark == "?" else "", tokens, mark == "?")
        for number, marks in enumerate(problems)
        for mark in marks
    ]


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 2), (5, 3, 2), (6, 2, 3), (6, 0, 4), (6, 6, 1), (5, 4, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, correct, k):
    marks = [True] * correct + [False] * (n - correct)
    subsets = list(itertools.combinations(marks, k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n, correct, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {n}"):
        pass_at_k(n, correct, k)


def test_bootstrap_agrees_with_scipy():
    from scipy import stats

    values = np.random.default_rng(0).random(60)
    ours = bootstrap(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", confidence_level=LEVEL, rng=1).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    found = [bootstrap(generator.random(80), seed, resamples=400) for seed in range(200)]
    assert sum(estimate.low <= 0.5 <= estimate.high for estimate in found) / 200 == pytest.approx(LEVEL, abs=0.04)


def test_bootstrap_is_the_same_for_the_same_seed():
    values = [0.0, 1.0, 0.5, 0.25]
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1, resamples=7) != bootstrap(values, seed=2, resamples=7)
    assert bootstrap(values, resamples=501).mean == np.mean(values)


def test_one_problem_has_no_interval_and_none_no_mean():
    alone = bootstrap([0.5])
    assert alone.mean == 0.5
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    with pytest.raises(ValueError, match="no problems"):
        bootstrap([])


def test_summary_by_hand():
    found = summarise(responses("AIME24", "1100", "0000", "111?", tokens=10) + responses("AMC23", "11"), ks=[1, 2])
    aime, amc = found
    assert (aime.benchmark, aime.problems, aime.responses) == ("AIME24", 3, (4, 4))
    assert aime.average.mean == pytest.approx((0.5 + 0 + 0.75) / 3)
    assert aime.passed[1] == aime.average
    assert aime.passed[2].mean == pytest.approx((1 - 1 / 6 + 0 + 1) / 3)
    assert (aime.unread.mean, aime.reasons) == (pytest.approx(1 / 12), {"no box": 1})
    assert (aime.tokens.mean, aime.truncated.mean) == (10, pytest.approx(1 / 12))
    assert (amc.average.mean, amc.tokens, amc.reasons) == (1.0, None, {})


def test_problems_weigh_the_same_whatever_their_responses():
    (found,) = summarise(responses("AIME24", "1", "0000"))
    assert (found.responses, found.average.mean, list(found.passed)) == ((1, 4), 0.5, [1])


def test_k_above_the_responses_is_refused():
    with pytest.raises(ValueError, match=r"pass@4: AIME24 has a problem with 2 responses"):
        summarise(responses("AIME24", "1100", "11"), ks=[1, 4])


def dump(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def row(problem: str, session: int, output: str, right: bool, index: int = 0, **fields) -> dict:
    """As verl's trainer dumps it, with the fields of our reward function."""
    graded = {"acc": right, "pred": "5", "unread": "", "data_source": "AIME24", "tokens": 8, "truncated": False}
    base = {"input": f"question {problem}", "output": output, "gts": "5", "score": float(right), "step": 20}
    return {**base, "reward": float(right), **graded, "uid": f"{problem}_{session}_{index}", **fields}


ROWS = [
    row("a", 0, r"\boxed{5}", True),
    row("a", 1, r"\boxed{4}", False),
    row("b", 0, "no", False, unread="no box", truncated=True, tokens=16),
    row("b", 1, r"\boxed{5}", True),
]


@pytest.fixture(scope="module")
def dumps(tmp_path_factory) -> Path:
    return dump(tmp_path_factory.mktemp("validation") / "20.jsonl", ROWS)


def result(capsys, *arguments: object) -> dict:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    return found


def test_verl_writes_what_is_read(tmp_path, capsys):
    """With the trainer's own writer."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    columns = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    base = [columns.pop(key) for key in ("input", "output", "gts", "score")]
    columns["acc"] = [np.bool_(value) for value in columns["acc"]]
    PPOTrainer._write_generations(*base, columns, str(tmp_path), 20)
    capsys.readouterr()
    found = result(capsys, tmp_path / "20.jsonl")
    assert (found["step"], found["benchmark"], found["average"]["mean"]) == (20, "AIME24", 0.5)


def test_evaluate_json(dumps, capsys):
    found = result(capsys, dumps, "--k", 1, 2)
    assert (found["file"], found["step"], found["benchmark"]) == (str(dumps), 20, "AIME24")
    assert (found["problems"], found["responses"]) == (2, [2, 2])
    assert found["average"]["mean"] == 0.5
    assert {k: passed["mean"] for k, passed in found["passed"].items()} == {"1": 0.5, "2": 1.0}
    assert (found["tokens"]["mean"], found["truncated"]["mean"], found["reasons"]) == (10, 0.25, {"no box": 1})


def test_evaluate_table(dumps, tmp_path, capsys):
    assert main(["evaluate", str(dumps)]) == 0
    printed = capsys.readouterr().out
    for shown in ("AIME24", "50.0 [50.0, 50.0]", "2: 100.0 [100.0, 100.0]", "10 [8, 12]", "25.0%"):
        assert shown in printed
    assert "unread in AIME24, step 20: no box 1" in printed
    assert "file" not in printed
    other = dump(tmp_path / "40.jsonl", [{**row, "step": 40} for row in ROWS])
    assert main(["evaluate", str(dumps), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "file" in printed
    assert "step 40: no box 1" in printed


def test_names_in_the_table_are_no_markup(tmp_path, capsys):
    folder = tmp_path / "x ["
    folder.mkdir()
    rows = [row("a", 0, "x", False, data_source="x [/b] :smile:", unread="[/i]")]
    files = [dump(folder / name, rows) for name in ("b] 1.jsonl", "b] 2.jsonl")]
    assert main(["evaluate", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    assert "x [/b] :smile:" in printed
    assert "unread in x [/b] :smile:, step 20: [/i] 1" in printed
    assert "b] 2.jsonl" in printed


def test_the_last_output_of_a_session_counts(tmp_path, capsys):
    rows = [row("a", 0, "x", False, index=1), row("a", 0, "x", True, index=2), row("a", 0, "x", False, index=0)]
    found = result(capsys, dump(tmp_path / "1.jsonl", rows))
    assert (found["responses"], found["average"]) == ([1, 1], {"mean": 1.0, "low": None, "high": None})


def test_dumps_of_another_reward_function(tmp_path, capsys):
    """No benchmark, no uid: problems are told apart by their prompt."""
    rows = [{"input": f"q{n % 2}", "output": r"\boxed{5}", "gts": "5", "score": n % 2, "step": 3} for n in range(4)]
    file = dump(tmp_path / "3.jsonl", rows)
    found = result(capsys, file)
    assert (found["benchmark"], found["problems"], found["average"]["mean"]) == ("unknown", 2, 0.5)
    assert (found["tokens"], found["truncated"]) == (None, None)
    assert result(capsys, file, "--benchmark", "AIME24")["benchmark"] == "AIME24"


def test_regrade_takes_the_texts(tmp_path, capsys):
    pytest.importorskip("math_verify")
    rows = [{"input": "q", "output": rf"\boxed{{{n}}}", "gts": "5", "score": -1.0, "step": 3} for n in (5, 6, "")]
    file = dump(tmp_path / "3.jsonl", rows)
    found = result(capsys, file, "--regrade")
    assert (found["average"]["mean"], found["reasons"]) == (pytest.approx(1 / 3), {"empty box": 1})
    assert main(["evaluate", str(file)]) == 2
    assert "got the score -1.0" in capsys.readouterr().err


def test_tokens_are_counted_where_the_dump_has_none(tmp_path, capsys, monkeypatch):
    import transformers

    class Words:
        @classmethod
        def from_pretrained(cls, path):
            assert path == "T"
            return lambda text, add_special_tokens: {"input_ids": text.split()}

    monkeypatch.setattr(transformers, "AutoTokenizer", Words)
    rows = [{"input": "q", "output": text, "gts": "5", "score": 0} for text in ("a b c", "a b c d")]
    found = result(capsys, dump(tmp_path / "3.jsonl", rows), "--tokenizer", "T", "--limit", 4)
    assert (found["tokens"]["mean"], found["truncated"]["mean"], found["step"]) == (3.5, 0.5, None)


BAD = {
    "no such file": (None, [], "does not exist"),
    "empty": ("", [], "holds no responses"),
    "no JSON": ("{", [], "line 1 is no JSON"),
    "no UTF-8": (b'\n{"input": "\xff"}', [], "line 2 is no JSON in UTF-8 ("),
    "no text": ('{"input": "q", "output": 5, "score": 1}', [], "line 1: output is 5, allowed: text"),
    "no number": (
        '{"input": "q", "output": "", "score": 1, "tokens": "many"}',
        [],
        "line 1: tokens is 'many', allowed: a number or null",
    ),
    "no step": (
        '{"input": "q", "output": "", "score": 1, "step": [1]}',
        [],
        "line 1: step is [1], allowed: a whole number or null",
    ),
    "not a row": ('\n{"a": 1}', [], "line 2 is no response of a validation dump, it lacks input, output, score"),
    "a list": ("[1]", [], "it lacks input, output, score"),
    "k": ('{"input": "q", "output": "", "score": 1}', ["--k", "2"], "pass@2"),
    "k below 1": ('{"input": "q", "output": "", "score": 1}', ["--k", "0"], "--k: got 0"),
    "regrade": ('{"input": "q", "output": "", "score": 1}', ["--regrade"], "ground truth"),
    "limit alone": ('{"input": "q", "output": "", "score": 1}', ["--limit", "4"], "needs --tokenizer"),
    "tokenizer": ('{"input": "q", "output": "", "score": 1}', ["--tokenizer", "/nowhere/T"], "cannot be loaded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path, capsys):
    text, arguments, message = BAD[case]
    file = tmp_path / "1.jsonl"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["evaluate", str(file), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("evaluate: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("recipe", ["prune_opd_eval", "[opd,paper_validation]"])
def test_the_recipe_validates_as_the_paper(recipe, compose):
    config = compose(f"+recipe={recipe}", "prune_opd.teacher.path=T", "data.benchmarks=/somewhere")
    rollout, sampling = config.actor_rollout_ref.rollout, config.actor_rollout_ref.rollout.val_kwargs
    assert (sampling.n, sampling.do_sample, sampling.temperature, sampling.top_p, sampling.top_k) == (
        16,
        True,
        1.0,
        0.95,
        -1,
    )
    assert (rollout.prompt_length, rollout.response_length, rollout.max_model_len) == (1024, 31744, 1024 + 31744)
    names = [Path(file).stem for file in config.data.val_files]
    assert names == ["amc23", "aime24", "aime25", "hmmt24", "hmmt25"]
    assert {str(Path(file).parent) for file in config.data.val_files} == {"/somewhere"}
    assert config.trainer.test_freq == 20
    assert config.trainer.validation_data_dir == f"{config.trainer.default_local_dir}/validation"
    typed = check_settings(config)
    assert typed.drift.enable is (recipe == "prune_opd_eval")
    assert typed.budget.build(rollout.response_length).max == 12288, "training keeps the paper's limit"


def test_eval_recipe_changes_nothing_but_validation(compose):
    from omegaconf import OmegaConf

    def flat(node, prefix=""):
        if not isinstance(node, dict):
            return {prefix: node}
        return {key: value for name in node for key, value in flat(node[name], f"{prefix}.{name}".lstrip(".")).items()}

    plain, paper = (
        flat(OmegaConf.to_container(compose(f"+recipe={recipe}", "prune_opd.teacher.path=T")))
        for recipe in ("prune_opd", "prune_opd_eval")
    )
    assert {key for key in plain.keys() | paper.keys() if plain.get(key) != paper.get(key)} == {
        "actor_rollout_ref.rollout.max_model_len",
        "actor_rollout_ref.rollout.val_kwargs.do_sample",
        "actor_rollout_ref.rollout.val_kwargs.n",
        "actor_rollout_ref.rollout.val_kwargs.temperature",
        "actor_rollout_ref.rollout.val_kwargs.top_p",
        "data.benchmarks",
        "data.max_prompt_length",
        "data.max_response_length",
        "data.val_files",
        "reward.custom_reward_function.path",
        "trainer.test_freq",
        "trainer.validation_data_dir",
    }


def test_result_has_no_nan(dumps):
    rows = evaluate.by_step([ROWS[0]], dumps, "x")[20]
    found = evaluate.Result(dumps, 20, summarise(rows)[0]).as_dict()
    assert "NaN" not in json.dumps(found)
