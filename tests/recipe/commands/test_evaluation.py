"""Accuracies and intervals of ``evaluate`` are right, from dumps as verl writes them."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.checks.settings import check_settings
from recipe.prune_opd.commands.evaluate.command import Result
from recipe.prune_opd.commands.evaluate.dumps import by_step, read_dump
from recipe.prune_opd.commands.evaluate.evaluation import (
    BOOTSTRAP,
    FEW,
    LEVEL,
    NONE,
    WILSON,
    Response,
    estimate,
    pass_at_k,
    summarise,
)


def responses(benchmark: str, *problems: str, tokens: int | None = None) -> list[Response]:
    """One per character: 1 right, 0 wrong, ? unread."""
    return [
        Response(
            benchmark,
            str(number),
            mark == "1",
            "no box" if mark == "?" else "",
            tokens,
            mark == "?",
        )
        for number, marks in enumerate(problems)
        for mark in marks
    ]


@pytest.mark.parametrize(
    ("n", "correct", "k"), [(4, 1, 2), (5, 3, 2), (6, 2, 3), (6, 0, 4), (6, 6, 1), (5, 4, 2)]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, correct, k):
    marks = [True] * correct + [False] * (n - correct)
    subsets = list(itertools.combinations(marks, k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n, correct, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {n}"):
        pass_at_k(n, correct, k)


def test_many_problems_have_a_bootstrap_over_problems():
    values = np.random.default_rng(0).random(60)
    found = estimate(values.tolist(), share=True)
    error = values.std(ddof=1) / math.sqrt(60)
    assert (found.mean, found.method) == (pytest.approx(values.mean()), BOOTSTRAP)
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.01
    )


@pytest.mark.parametrize(
    ("right", "problems"), [(0, 1319), (90, 256), (253, 256), (30, 30), (1, 2)]
)
def test_one_answer_to_each_problem_has_wilsons_interval(right, problems):
    from scipy import stats

    found = estimate([1.0] * right + [0.0] * (problems - right), share=True)
    theirs = stats.binomtest(right, problems).proportion_ci(LEVEL, "wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.method == WILSON


@pytest.mark.parametrize("problems", [2, 5, FEW, 30])
def test_intervals_hold_the_true_mean_as_often_as_they_say(problems):
    """Sixteen answers to each of few problems, some hard and some easy."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        values = generator.binomial(16, generator.beta(0.6, 0.9, problems)) / 16
        found = estimate(values.tolist(), True, seed)
        hits += found.low <= 0.4 <= found.high
    assert hits / 300 >= LEVEL - 0.05


def test_answers_that_are_all_right_are_not_certain():
    for values in ([1.0] * 30, [1.0] * 4):
        found = estimate(values, share=True)
        assert found.high == 1
        assert 0.4 < found.low < 0.9
    assert estimate([0.5] * 30, share=True).low == pytest.approx(0.3315, abs=1e-4)


def test_an_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(0).random(40).tolist()
    assert estimate(values, True) == estimate(values, True)
    assert estimate(values, True, seed=1) != estimate(values, True, seed=2)


def test_many_problems_are_resampled_in_parts():
    found = estimate(np.random.default_rng(0).random(3000).tolist(), share=False)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(1 / 12 / 3000), rel=0.1)


@pytest.mark.parametrize(
    ("values", "share"),
    [([0.5], True), ([1.0], True), ([3.0], False), ([3.0, 5.0], False), ([7.0] * 40, False)],
)
def test_where_none_can_be_given_there_is_no_interval(values, share):
    found = estimate(values, share)
    assert (found.mean, found.method) == (np.mean(values), NONE)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_no_problems_have_no_mean():
    with pytest.raises(ValueError, match="no problems"):
        estimate([], share=True)


def test_summary_by_hand():
    found = summarise(
        responses("AIME24", "1100", "0000", "111?", tokens=10) + responses("AMC23", "11"), ks=[1, 2]
    )
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
    graded = {
        "acc": right,
        "pred": "5",
        "unread": "",
        "data_source": "AIME24",
        "tokens": 8,
        "truncated": False,
    }
    base = {
        "input": f"question {problem}",
        "output": output,
        "gts": "5",
        "score": float(right),
        "step": 20,
    }
    return {
        **base,
        "reward": float(right),
        **graded,
        "uid": f"{problem}_{session}_{index}",
        **fields,
    }


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
    assert (found["tokens"]["mean"], found["truncated"]["mean"], found["reasons"]) == (
        10,
        0.25,
        {"no box": 1},
    )


def test_evaluate_table(dumps, tmp_path, capsys):
    assert main(["evaluate", str(dumps)]) == 0
    printed = capsys.readouterr().out
    for shown in ("AIME24", "50.0 [9.5, 90.5]", "2: 100.0 [34.2, 100.0]", " 10 ", "25.0%"):
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


ALONE = {"mean": 1.0, "low": None, "high": None, "method": "none"}


def test_the_last_output_of_a_session_counts(tmp_path, capsys):
    rows = [
        row("a", 0, "x", False, index=1),
        row("a", 0, "x", True, index=2),
        row("a", 0, "x", False, index=0),
    ]
    found = result(capsys, dump(tmp_path / "1.jsonl", rows))
    assert (found["responses"], found["average"]) == ([1, 1], ALONE)


def test_dumps_of_another_reward_function(tmp_path, capsys):
    """No benchmark, no uid: problems are told apart by their prompt."""
    rows = [
        {"input": f"q{n % 2}", "output": r"\boxed{5}", "gts": "5", "score": n % 2, "step": 3}
        for n in range(4)
    ]
    file = dump(tmp_path / "3.jsonl", rows)
    found = result(capsys, file)
    assert (found["benchmark"], found["problems"], found["average"]["mean"]) == ("unknown", 2, 0.5)
    assert (found["tokens"], found["truncated"]) == (None, None)
    assert result(capsys, file, "--benchmark", "AIME24")["benchmark"] == "AIME24"


def test_rows_of_one_problem_are_samples_of_it(tmp_path, capsys):
    """As in a validation file that holds each of two problems 32 times: every row has a uid of its
    own."""
    base = {"input": "question a", "gts": "5"}, {"input": "question b", "gts": "7"}
    rows = [row(f"u{n}", 0, "x", n % 8 < 5 - 2 * (n % 2), **base[n % 2]) for n in range(64)]
    file = dump(tmp_path / "20.jsonl", rows)
    found = result(capsys, file)
    assert (found["problems"], found["responses"], list(found["passed"])) == (2, [32, 32], ["32"])
    average = found["average"]
    assert average["low"] < 0.1
    assert average["high"] > 0.8
    assert main(["evaluate", str(file)]) == 0
    assert f"note: {file}: its 64 prompts are 2 problems" in capsys.readouterr().out


def test_equal_prompts_with_other_ground_truths_are_other_problems(tmp_path, capsys):
    """Pictures are not in a dump: their prompts may read alike."""
    rows = [row(f"u{n}", 0, "x", True, input="What is this?", gts=["a", f"{n}"]) for n in range(3)]
    file = dump(tmp_path / "20.jsonl", rows)
    assert result(capsys, file)["problems"] == 3
    assert main(["evaluate", str(file)]) == 0
    assert "note:" not in capsys.readouterr().out


def test_the_first_prompt_of_several_outputs_is_the_problem_s(tmp_path, capsys):
    turns = [
        ("a", 0, 0, "Q"),
        ("a", 0, 1, "Q and more"),
        ("a", 1, 0, "Q"),
        ("a", 1, 1, "Q and else"),
        ("b", 0, 0, "Q"),
    ]
    rows = [
        row(uid, session, "x", True, index, input=text)
        for uid, session, index, text in reversed(turns)
    ]
    found = result(capsys, dump(tmp_path / "20.jsonl", rows))
    assert (found["problems"], found["responses"]) == (1, [3, 3])


def test_regrade_takes_the_texts(tmp_path, capsys):
    pytest.importorskip("math_verify")
    rows = [
        {"input": "q", "output": rf"\boxed{{{n}}}", "gts": "5", "score": -1.0, "step": 3}
        for n in (5, 6, "")
    ]
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
    "no text": (
        '{"input": "q", "output": 5, "score": 1}',
        [],
        "line 1: output is 5, allowed: text",
    ),
    "no number": (
        '{"input": "q", "output": "", "score": 1, "tokens": "many"}',
        [],
        "line 1: tokens is 'many', allowed: a number >= 0 or null",
    ),
    "not finite": (
        '{"input": "q", "output": "", "score": 1, "tokens": NaN}',
        [],
        "tokens is nan, allowed: a number >=",
    ),
    "cut twice": (
        '{"input": "q", "output": "", "score": 1, "truncated": 2}',
        [],
        "truncated is 2, allowed: true, false",
    ),
    "no score": (
        '{"input": "q", "output": "", "score": NaN}',
        [],
        "got the score nan, allowed: 0 or 1",
    ),
    "too deep": ("[" * 100_000, [], "line 1 is no JSON that can be read"),
    "deep inside": (
        '{"input": "q", "output": "", "score": 1, "gts": ' + "[" * 900 + "]" * 900 + "}",
        [],
        "line 1 is no JSON that can be read",
    ),
    "too large": (
        '{"input": "q", "output": "", "score": 1, "tokens": 1' + "0" * 400 + "}",
        [],
        "allowed: a number >= 0 or null",
    ),
    "a large step": (
        '{"input": "q", "output": "", "score": 1, "step": 1' + "0" * 400 + "}",
        [],
        "allowed: a whole number or null",
    ),
    "digits": (
        f'{{"input": "q", "output": "", "score": 0.5, "uid": "a_b_{"9" * 5000}"}}',
        [],
        "got the score 0.5",
    ),
    "pointer": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        [],
        "1.jsonl is a Git LFS pointer",
    ),
    "no step": (
        '{"input": "q", "output": "", "score": 1, "step": [1]}',
        [],
        "line 1: step is [1], allowed: a whole number or null",
    ),
    "not a row": (
        '\n{"a": 1}',
        [],
        "line 2 is no response of a validation dump, it lacks input, output, score",
    ),
    "a list": ("[1]", [], "it lacks input, output, score"),
    "k": ('{"input": "q", "output": "", "score": 1}', ["--k", "2"], "pass@2"),
    "k below 1": ('{"input": "q", "output": "", "score": 1}', ["--k", "0"], "--k: got 0"),
    "regrade": ('{"input": "q", "output": "", "score": 1}', ["--regrade"], "ground truth"),
    "seed": (
        '{"input": "q", "output": "", "score": 1}',
        ["--seed", "-1"],
        "--seed: got -1, allowed",
    ),
    "limit": (
        '{"input": "q", "output": "", "score": 1}',
        ["--tokenizer", "T", "--limit", "0"],
        "--limit: got 0, allowed",
    ),
    "limit alone": (
        '{"input": "q", "output": "", "score": 1}',
        ["--limit", "4"],
        "needs --tokenizer",
    ),
    "tokenizer": (
        '{"input": "q", "output": "", "score": 1}',
        ["--tokenizer", "/nowhere/T"],
        "cannot be loaded",
    ),
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


def test_a_folder_is_none_of_the_dumps(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        error == f"evaluate: {tmp_path} is a folder, allowed: a file {{step}}.jsonl of"
        " trainer.validation_data_dir\n"
    )


@pytest.mark.parametrize("recipe", ["prune_opd_eval", "[opd,paper_validation]"])
def test_the_recipe_validates_as_the_paper(recipe, compose):
    config = compose(f"+recipe={recipe}", "prune_opd.teacher.path=T", "data.benchmarks=/somewhere")
    rollout, sampling = (
        config.actor_rollout_ref.rollout,
        config.actor_rollout_ref.rollout.val_kwargs,
    )
    assert (
        sampling.n,
        sampling.do_sample,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
    ) == (
        16,
        True,
        1.0,
        0.95,
        -1,
    )
    assert (rollout.prompt_length, rollout.response_length, rollout.max_model_len) == (
        1024,
        31744,
        1024 + 31744,
    )
    names = [Path(file).stem for file in config.data.val_files]
    assert names == ["amc23", "aime24", "aime25", "hmmt24", "hmmt25"]
    assert {str(Path(file).parent) for file in config.data.val_files} == {"/somewhere"}
    assert config.trainer.test_freq == 20
    assert config.trainer.validation_data_dir == f"{config.trainer.default_local_dir}/validation"
    typed = check_settings(config)
    assert typed.drift.enable is (recipe == "prune_opd_eval")
    assert typed.budget.resolved(rollout.response_length).longest == 12288, (
        "training keeps the paper's limit"
    )


def test_eval_recipe_changes_nothing_but_validation(compose):
    from omegaconf import OmegaConf

    def flat(node, prefix=""):
        if not isinstance(node, dict):
            return {prefix: node}
        return {
            key: value
            for name in node
            for key, value in flat(node[name], f"{prefix}.{name}".lstrip(".")).items()
        }

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
    rows = by_step(read_dump(dumps)[:1], dumps, "x")[20]
    found = Result(dumps, 20, summarise(rows)[0]).as_dict()
    assert "NaN" not in json.dumps(found)


def test_what_a_dump_holds_moves_no_cursor(tmp_path, capsys):
    evil = "a\x1b[2J\x07b"
    row = {"input": "q", "output": "o", "score": 0, "data_source": evil, "unread": evil, "step": 1}
    file = tmp_path / "1.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert main(["evaluate", str(file)]) == 0
    said = capsys.readouterr().out
    assert "\\u001b[2J" in said
    assert not {"\x1b", "\x07"} & set(said)
    file.write_text(json.dumps({**row, "tokens": "\x1b[2J"}) + "\n")
    assert main(["evaluate", str(file)]) == 2
    assert "\x1b" not in capsys.readouterr().err
