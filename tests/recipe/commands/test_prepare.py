"""Files of ``prepare`` hold each question once, in verl's format, and the same bytes every time."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from pyarrow import parquet

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.commands.prepare.datasets import (
    DAPO_HEAD,
    DAPO_TAIL,
    DATASETS,
    SUFFIX,
    bare_question,
)
from recipe.prune_opd.commands.prepare.overlaps import normalise

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
RAW = {
    "math_500": {
        "problem": "What is $1+1$?",
        "solution": "so $2$",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    "aime24": {
        "id": 60,
        "problem": "What is $1+1$?",
        "solution": "$2$",
        "answer": "002",
        "url": "u",
        "year": "2024",
    },
    "aime25": {"problem": "What is $1+1$?", "answer": "2", "id": "0"},
    "amc23": {"id": 0, "problem": "What is $1+1$?", "answer": 2.0, "url": "u"},
    "hmmt24": {
        "problem_idx": 1,
        "problem": "What is $1+1$?",
        "answer": "2",
        "problem_type": ["Algebra"],
    },
    "hmmt25": {
        "problem_idx": 1,
        "problem": "What is $1+1$?",
        "answer": "2",
        "problem_type": ["Algebra"],
    },
    "gsm8k": {"question": "What is $1+1$?", "answer": "1 + 1 = <<1+1=1002>>\n#### 1,002"},
}
"""A row of each dataset in its columns on the hub."""
TRUTHS = {"aime24": "002", "amc23": "2.0", "gsm8k": "1002"}


def verl(
    question: str, answer: str, index: str, head: str = DAPO_HEAD, tail: str = DAPO_TAIL
) -> dict:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": f"{head}{question}{tail}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def save(file: Path, rows: list) -> Path:
    if file.suffix == ".parquet":
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        file.write_text(json.dumps(rows))
    return file


def prepare(capsys, name: str, out: Path, *arguments: object) -> tuple[dict, list[dict]]:
    """The report and the rows that were written."""
    assert main(["prepare", name, "--out", str(out), "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out), parquet.read_table(out).to_pylist()


@pytest.mark.parametrize("ending", ["parquet", "json", "jsonl"])
@pytest.mark.parametrize("name", RAW)
def test_raw_columns(name, ending, tmp_path, capsys):
    file = save(tmp_path / f"raw.{ending}", [RAW[name]])
    report, (row,) = prepare(capsys, name, tmp_path / "out.parquet", "--input", file)
    dataset = DATASETS[name]
    assert row == {
        "data_source": dataset.source,
        "prompt": [{"content": "What is $1+1$?" + SUFFIX, "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": TRUTHS.get(name, "2"), "style": "rule"},
        "extra_info": {"index": str(RAW[name].get(dataset.id, 0)), "split": dataset.split},
    }
    assert (report["rows"], report["from"], report["data_source"]) == (1, str(file), dataset.source)


@pytest.mark.parametrize("ending", ["parquet", "json", "jsonl"])
def test_verl_format(ending, tmp_path, capsys):
    file = save(tmp_path / f"in.{ending}", [verl("What is $1+1$?", "2", "x")])
    _, (row,) = prepare(capsys, "DAPO-Math-17K", tmp_path / "out.parquet", "--input", file)
    assert row["prompt"] == [{"content": f"{DAPO_HEAD}What is $1+1$?{DAPO_TAIL}", "role": "user"}]
    assert (row["reward_model"]["ground_truth"], row["extra_info"]) == (
        "2",
        {"index": "x", "split": "train"},
    )


def test_messages_before_the_question_stay(tmp_path, capsys):
    before = verl("Q", "2", "x", "", SUFFIX)
    before["prompt"].insert(0, {"content": "Be brief.", "role": "system"})
    file = save(tmp_path / "in.json", [before])
    _, (row,) = prepare(capsys, "aime24", tmp_path / "out.parquet", "--input", file)
    assert [message["content"] for message in row["prompt"]] == ["Be brief.", "Q" + SUFFIX]


TRUTHS_OF_A_KIND = [
    (["0"], "0"),
    ([["0"]], "0"),
    ("['0']", "0"),
    ('["0"]', "0"),
    ([7], "7"),
    (7, "7"),
    (142.0, "142.0"),
    ("[0, 1]", "[0, 1]"),
    ("['a", "['a"),
    (" $5$ ", "$5$"),
    ("True", "True"),
]


@pytest.mark.parametrize(("given", "written"), TRUTHS_OF_A_KIND)
def test_a_ground_truth_is_text(given, written, tmp_path, capsys):
    """In verl's format and in a column of the dataset's own; the grader reads dollars."""
    in_verl = {**VERL, "reward_model": {"ground_truth": given}}
    for row in (in_verl, {**GOOD, "answer": given}):
        file = save(tmp_path / "in.json", [row])
        _, (found,) = prepare(capsys, "aime25", tmp_path / "out.parquet", "--input", file)
        assert found["reward_model"]["ground_truth"] == written


def test_a_list_in_parquet_is_one_answer(tmp_path, capsys):
    file = save(tmp_path / "in.parquet", [{**VERL, "reward_model": {"ground_truth": ["0"]}}])
    _, (found,) = prepare(capsys, "aime25", tmp_path / "out.parquet", "--input", file)
    assert found["reward_model"]["ground_truth"] == "0"


def test_earlier_turns_stay(tmp_path, capsys):
    turns = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?")]
    row = {**VERL, "prompt": [{"role": role, "content": content} for role, content in turns]}
    file = save(tmp_path / "in.json", [row])
    _, (found,) = prepare(capsys, "aime25", tmp_path / "out.parquet", "--input", file)
    written = [(turn["role"], turn["content"]) for turn in found["prompt"]]
    assert written == [*turns[:-1], ("user", "2 + 2?" + SUFFIX)]


def test_suffix_replaces_the_dataset_s_own(tmp_path, capsys):
    file = save(tmp_path / "in.json", [verl("Q", "2", "x")])
    for suffix in (SUFFIX, " Think.", ""):
        _, (row,) = prepare(
            capsys, "dapo_math_17k", tmp_path / "out.parquet", "--input", file, "--suffix", suffix
        )
        assert row["prompt"][0]["content"] == "Q" + suffix


@pytest.mark.parametrize("name", DATASETS)
def test_the_hub_is_asked_for_the_documented_dataset(name, tmp_path, capsys, monkeypatch):
    import datasets

    asked = []
    row = RAW.get(name) or verl("What is $1+1$?", "2", "x")

    def load(*arguments, **keywords):
        asked.append((arguments, keywords))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load)
    report, rows = prepare(capsys, name, tmp_path / "out.parquet", "--split", "other")
    assert asked == [((DATASETS[name].hub, DATASETS[name].config), {"split": "other"})]
    assert (len(rows), rows[0]["extra_info"]["split"], report["expected_rows"]) == (
        1,
        "other",
        None,
    )
    assert report["from"] == f"{DATASETS[name].hub}, other"
    page = (Path(__file__).resolve().parents[3] / "docs" / "prepare.md").read_text()
    assert f"`{name}`" in page
    assert f"`{DATASETS[name].hub}`" in page


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach it\nTraceback"), ValueError("Unknown split")]
)
def test_a_hub_that_fails_is_one_sentence(error, tmp_path, capsys, monkeypatch):
    import datasets

    def load(*arguments, **keywords):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert main(["prepare", "aime24", "--out", str(tmp_path / "out.parquet")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert str(error).splitlines()[0] in printed
    assert "--input FILE" in printed


def test_the_same_input_gives_the_same_bytes(tmp_path, capsys):
    rows = [verl(f"What is {n}?", str(n), f"id {n}") for n in range(5000)]
    inputs = [save(tmp_path / f"in.{ending}", rows) for ending in ("parquet", "json", "jsonl")]
    reordered = [dict(reversed(list(row.items()))) for row in rows]
    inputs.append(save(tmp_path / "reordered.json", reordered))
    found = []
    for number, file in enumerate([*inputs, inputs[0]]):
        out = tmp_path / f"{number}.parquet"
        report, _ = prepare(capsys, "dapo_math_17k", out, "--input", file)
        assert report["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
        assert report["bytes"] == out.stat().st_size
        found.append(out.read_bytes())
    assert len(set(found)) == 1
    again = tmp_path / "again.parquet"
    prepare(capsys, "dapo_math_17k", again, "--input", tmp_path / "0.parquet")
    assert again.read_bytes() == found[0], "its own output is an input like any other"
    assert [path.name for path in tmp_path.glob(".*")] == [], "no half files"


def test_identical_rows_are_left_out(tmp_path, capsys):
    """As on the hub, where DAPO-Math-17K is 100 copies of each row."""
    rows = [verl(f"Q{n}", str(n), str(n)) for n in range(3)] * 100
    report, written = prepare(
        capsys,
        "dapo_math_17k",
        tmp_path / "out.parquet",
        "--input",
        save(tmp_path / "in.json", rows),
    )
    assert (report["identical_rows_left_out"], [row["extra_info"]["index"] for row in written]) == (
        297,
        ["0", "1", "2"],
    )


def test_duplicates_are_counted_and_dropped_on_demand(tmp_path, capsys):
    rows = [
        verl("Find $\\dfrac{1}{2}$.", "1/2", "a"),
        verl("find \\(\\frac12\\)", "1/2", "b"),
        verl("Find $\\frac{1}{2}$", "0.6", "c"),
        verl("Find $x$.", "1", "d"),
        verl("Find $y$.", "1", "e"),
    ]
    train = save(tmp_path / "train.json", rows)
    save(
        tmp_path / "test.parquet",
        [verl("Find  $x$", "1", "t", "", SUFFIX), verl("Find $z$", "1", "u", "", SUFFIX)],
    )
    save(tmp_path / "none.parquet", [verl("Find $w$", "1", "v", "", SUFFIX)])
    options = [
        "--input",
        train,
        "--against",
        tmp_path / "test.parquet",
        "--against",
        tmp_path / "none.parquet",
    ]
    report, written = prepare(capsys, "dapo_math_17k", tmp_path / "out.parquet", *options)
    assert (report["repeated_questions"], report["repeated_with_another_answer"]) == (2, 1)
    assert report["shared"] == {
        str(tmp_path / "test.parquet"): 1,
        str(tmp_path / "none.parquet"): 0,
    }
    assert (report["first_shared_ids"], len(written)) == (["d"], 5)
    report, written = prepare(
        capsys, "dapo_math_17k", tmp_path / "out.parquet", *options, "--drop-duplicates"
    )
    assert [row["extra_info"]["index"] for row in written] == ["a", "e"]
    assert (report["rows"], report["duplicates_left_out"]) == (2, 3)


def test_questions_that_differ_stay_different():
    pairs = [
        ("$x+1$", "$x-1$"),
        ("$x^2$", "$x_2$"),
        ("$\\leftarrow$", "$\\arrow$"),
        ("1 < 2", "1 > 2"),
        ("1, 2", "12"),
    ]
    pairs += [("what is 1.5+x", "what is 15+x"), ("half is .5", "half is 5.")]
    for one, other in pairs:
        assert normalise(one) != normalise(other)
    for same in ("\\left( x \\right)", "$( x )$", "(X) .", "(x)."):
        assert normalise(same) == "(x)"


def test_bare_question():
    assert (
        bare_question(DAPO_HEAD + "Q" + DAPO_TAIL)
        == bare_question("Q" + SUFFIX)
        == bare_question("Q")
        == "Q"
    )
    assert bare_question(DAPO_HEAD + "Q") == bare_question("Q" + DAPO_TAIL) == "Q", (
        "it would be there twice"
    )
    assert bare_question("Q\n" + SUFFIX.strip() + "\n") == "Q"
    for asked in ("within \\boxed{}.", 'after "####".'):
        assert (
            bare_question(f"Q Let's think step by step and output the final answer {asked}") == "Q"
        )
    assert bare_question("Q  " + SUFFIX) == "Q  "
    assert bare_question("What is \\boxed{}.") == "What is \\boxed{}."


def test_the_table(tmp_path, capsys):
    file = save(tmp_path / "in.json", [RAW["aime25"]])
    out = tmp_path / "out.parquet"
    assert main(["prepare", "aime25", "--input", str(file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "AIME25" in printed
    assert "note: 1 rows, 30 were expected: another version of the data?" in printed


def test_names_in_the_table_are_no_markup(tmp_path, capsys):
    folder = tmp_path / "x [" / "b]"
    folder.mkdir(parents=True)
    other = save(folder / "other.parquet", [verl("Q", "2", "x", "", SUFFIX)])
    file = save(folder / "in.json", [{**RAW["aime25"], "problem": "Q", "id": "[red]1[/b] :smile:"}])
    options = ["--input", str(file), "--against", str(other), "--out", str(folder / "out.parquet")]
    assert main(["prepare", "aime25", *options]) == 0
    printed = "".join(capsys.readouterr().out.replace("│", "").split())
    for shown in ("[red]1[/b]:smile:", "[/b]/in.json", "[/b]/other.parquet", "[/b]/out.parquet"):
        assert shown in printed


def test_the_file_is_named_after_the_dataset(tmp_path, capsys, monkeypatch):
    file = save(tmp_path / "in.json", [RAW["aime25"]])
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "AIME25", "--input", str(file)]) == 0
    assert (tmp_path / "data" / "aime25.parquet").is_file()


GOOD = RAW["aime25"]
VERL = {"reward_model": {"ground_truth": "1"}, "prompt": "Q", "extra_info": {"index": "0"}}
TURN = {"role": "user", "content": "Q"}
ANSWERED = [TURN, {"role": "assistant", "content": "The answer is 1."}]
BAD = {
    "an answer at the end": (
        "aime25",
        ("in.json", [VERL, {**VERL, "prompt": ANSWERED}]),
        (
            "row 1 has a prompt that ends with a turn of 'assistant', 'The answer is 1.', allowed:"
            " one that ends with"
        ),
    ),
    "a system turn alone": (
        "aime25",
        ("in.json", [{**VERL, "prompt": [{**TURN, "role": "system"}]}]),
        "turn of 'system'",
    ),
    "a role that is none": (
        "aime25",
        ("in.json", [{**VERL, "prompt": [{**TURN, "role": 5}]}]),
        "with role and content",
    ),
    "parts": (
        "aime25",
        ("in.json", [{**VERL, "prompt": [{**TURN, "content": ["Q"]}]}]),
        "row 0 has the content ['Q'], al",
    ),
    "no content": (
        "aime25",
        ("in.json", [{**VERL, "prompt": [{"role": "system", "content": None}, TURN]}]),
        "row 0 has a message without content before the question",
    ),
    "several answers": (
        "aime25",
        ("in.json", [{**GOOD, "answer": ["1", "2"]}]),
        "the answer ['1', '2'], 2 of them, allowed",
    ),
    "printed answers": (
        "aime25",
        ("in.json", [{**GOOD, "answer": "['1', '2']"}]),
        "2 of them, allowed: one",
    ),
    "no answers": ("aime25", ("in.json", [{**GOOD, "answer": []}]), "row 0 has an empty answer"),
    "truth or not": (
        "aime25",
        ("in.json", [{**GOOD, "answer": True}]),
        "the answer True, allowed: text or a number",
    ),
    "no number": (
        "aime25",
        ("in.json", [{**GOOD, "answer": float("nan")}]),
        "the answer nan, allowed: text or a number",
    ),
    "no end": (
        "aime25",
        ("in.json", [{**GOOD, "answer": float("inf")}]),
        "the answer inf, allowed: text or a number",
    ),
    "an object": (
        "aime25",
        ("in.json", [{**GOOD, "answer": {"a": 1}}]),
        "the answer {'a': 1}, allowed: text or a number",
    ),
    "truth in verl": (
        "aime25",
        ("in.json", [VERL, {**VERL, "reward_model": {"ground_truth": ["1", "2"]}}]),
        "row 1 has the ground truth ['1', '2'], 2 of them, allowed: one",
    ),
    "a number as question": (
        "aime25",
        ("in.json", [{**GOOD, "problem": 5}]),
        "row 0 has the question 5, allowed: text",
    ),
    "an object as id": (
        "aime25",
        ("in.json", [{**GOOD, "id": {}}]),
        "row 0 has the id {}, allowed: text",
    ),
    "no number as id": (
        "aime25",
        ("in.json", [{**GOOD, "id": float("nan")}]),
        "row 0 has the id nan, allowed: text",
    ),
    "half a character": (
        "aime25",
        ("in.json", [{**GOOD, "problem": "\ud800"}]),
        "allowed: text in Unicode",
    ),
    "no hashes": (
        "gsm8k",
        ("in.json", [RAW["gsm8k"], {"question": "Q", "answer": "1 + 1 is 2"}]),
        "row 1 has the answer '1 + 1 is 2' without ####, allowed: a solution that ends in ####",
    ),
    "nothing after hashes": (
        "gsm8k",
        ("in.json", [{"question": "Q", "answer": "2 ####"}]),
        "row 0 has an empty answer",
    ),
    "too deep": ("aime25", ("in.json", "[" * 100_000), "in.json is no JSON"),
    "pointer": (
        "aime25",
        ("in.parquet", "version https://git-lfs.github.com/spec/v1\n"),
        "in.parquet is a Git LFS pointer",
    ),
    "no such dataset": ("foo", None, "got 'foo', allowed: dapo_math_17k"),
    "no such file": ("aime25", ("in.json", None), "in.json does not exist"),
    "ending": ("aime25", ("in.csv", "a"), "ends in '.csv', allowed: .parquet, .json, .jsonl"),
    "no parquet": ("aime25", ("in.parquet", "a"), "in.parquet is no readable parquet file"),
    "no JSON": ("aime25", ("in.json", "{"), "in.json is no JSON"),
    "no list": ("aime25", ("in.json", "{}"), "holds a JSON dict, allowed: a list"),
    "no JSON line": (
        "aime25",
        ("in.jsonl", json.dumps(GOOD) + "\n{"),
        "in.jsonl, line 2 is no JSON",
    ),
    "no object": ("aime25", ("in.json", "[1]"), "row 0 is no object but a int"),
    "empty": ("aime25", ("in.json", "[]"), "holds no rows"),
    "column": (
        "amc23",
        ("in.json", [{"question": "Q"}]),
        "row 0 has no column 'problem', 'answer', 'id', its columns: q",
    ),
    "empty answer": (
        "aime25",
        ("in.json", [GOOD, {**GOOD, "id": "1", "answer": " "}]),
        "row 1 has an empty answer",
    ),
    "no answer": ("aime25", ("in.json", [{**GOOD, "answer": None}]), "row 0 has an empty answer"),
    "empty question": (
        "aime25",
        ("in.json", [{**GOOD, "problem": ""}]),
        "row 0 has an empty question",
    ),
    "no id": ("aime25", ("in.json", [{**GOOD, "id": None}]), "row 0 has an empty id"),
    "one id twice": (
        "aime25",
        ("in.json", [GOOD, {**GOOD, "answer": "3"}]),
        "two different rows have the id '0'",
    ),
    "truth": (
        "aime25",
        ("in.json", [{"reward_model": {}, "prompt": "Q"}]),
        "row 0 has no reward_model.ground_truth",
    ),
    "prompt": (
        "aime25",
        ("in.json", [{**VERL, "prompt": []}]),
        "row 0 has the prompt [], allowed: a text or a list",
    ),
    "a number as prompt": (
        "aime25",
        ("in.json", [VERL, {**VERL, "prompt": 5}]),
        "row 1 has the prompt 5, allowed: ",
    ),
    "no role": (
        "aime25",
        ("in.json", [{**VERL, "prompt": [{"content": "Q"}] * 2}]),
        "messages with role and content",
    ),
    "extra_info": (
        "aime25",
        ("in.json", [{**VERL, "extra_info": "a"}]),
        "row 0 has the extra_info 'a', allowed: ",
    ),
    "bytes": ("aime25", ("in.json", b"[\xff]"), "in.json is no JSON"),
    "bytes in a line": (
        "aime25",
        ("in.jsonl", b"\n\xff\n"),
        "in.jsonl, line 2 is no JSON in UTF-8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path, capsys):
    name, given, message = BAD[case]
    arguments = []
    if given:
        file = tmp_path / given[0]
        arguments = ["--input", str(file)]
        if given[1] is not None:
            text = given[1] if isinstance(given[1], (str, bytes)) else json.dumps(given[1])
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["prepare", name, "--out", str(tmp_path / "out.parquet"), *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("prepare: ")
    assert printed.count("\n") == 1
    assert not (tmp_path / "out.parquet").exists()


def test_text_in_parquet_that_is_none_is_one_sentence(tmp_path, capsys):
    import pyarrow

    file = tmp_path / "in.parquet"
    broken = pyarrow.Array.from_buffers(  # a column of text whose bytes are not
        pyarrow.string(), 1, [None, *pyarrow.array([b"\xff"]).buffers()[1:]]
    )
    parquet.write_table(pyarrow.table({"problem": broken, "answer": ["1"], "id": ["0"]}), file)
    assert (
        main(["prepare", "aime25", "--out", str(tmp_path / "out.parquet"), "--input", str(file)])
        == 2
    )
    assert f"{file} is no readable parquet file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("none.parquet", "none.parquet does not exist"),
        (".", "is a folder, allowed: a parquet file in verl's format"),
        ("pointer.parquet", "pointer.parquet is a Git LFS pointer"),
        ("text.parquet", "text.parquet is no readable parquet file"),
        ("raw.parquet", "has no column 'reward_model'"),
        ("same.parquet", "every question is in an --against file"),
    ],
)
def test_bad_against(against, message, tmp_path, capsys):
    (tmp_path / "pointer.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "text.parquet").write_text("text")
    save(tmp_path / "raw.parquet", [GOOD])
    save(tmp_path / "same.parquet", [verl(GOOD["problem"], "2", "x", "", SUFFIX)])
    file, out = save(tmp_path / "in.json", [GOOD]), str(tmp_path / "out.parquet")
    options = ["--input", str(file), "--against", str(tmp_path / against), "--drop-duplicates"]
    assert main(["prepare", "aime25", "--out", out, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out.json", "ends in '.json', allowed: .parquet"),
        ("x.parquet", "is a folder, allowed: a file"),
    ],
)
def test_an_output_that_verl_could_not_read_is_refused_before_reading(
    out, message, tmp_path, capsys
):
    (tmp_path / "x.parquet").mkdir()
    assert main(["prepare", "aime25", "--input", "nowhere.json", "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_is_no_input(tmp_path, capsys):
    assert (
        main(
            ["prepare", "aime25", "--input", str(tmp_path), "--out", str(tmp_path / "out.parquet")]
        )
        == 2
    )
    assert f"--input: {tmp_path} is a folder, allowed: a .parquet, .json" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    file = save(tmp_path / "in.json", [GOOD])
    assert (
        main(["prepare", "aime25", "--input", str(file), "--out", str(file / "out.parquet")]) == 2
    )
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "gsm8k"])
def test_the_paper_s_files_keep_prompts_and_truths(name, tmp_path, capsys):
    file = DATA / f"{name}.parquet"
    if not file.is_file():
        pytest.skip(f"{name}.parquet is not beside the repository, in ../shared/data")
    theirs = parquet.read_table(file).to_pylist()
    report, ours = prepare(capsys, name, tmp_path / "out.parquet", "--input", file)
    assert report["rows"] == report["expected_rows"] == len(theirs)
    assert report["identical_rows_left_out"] == 0
    for key in ("prompt", "data_source"):
        assert [row[key] for row in ours] == [row[key] for row in theirs]
    assert [row["reward_model"]["ground_truth"] for row in ours] == [
        row["reward_model"]["ground_truth"] for row in theirs
    ]


def test_verl_s_loader_takes_the_files_together(tmp_path, capsys):
    """The way verl's dataset reads several files: as one."""
    import datasets

    for name in ("aime25", "amc23"):
        prepare(
            capsys,
            name,
            tmp_path / f"{name}.parquet",
            "--input",
            save(tmp_path / "in.json", [RAW[name]]),
        )
    cache = str(tmp_path / "cache")
    parts = [
        datasets.load_dataset(
            "parquet", data_files=str(tmp_path / f"{name}.parquet"), split="train", cache_dir=cache
        )
        for name in ("aime25", "amc23")
    ]
    both = datasets.concatenate_datasets(parts)
    assert both["data_source"][:] == ["AIME25", "AMC23"]
    assert both[0]["prompt"][0]["role"] == "user"


@pytest.mark.parametrize("option", ["--input", "--against"])
@pytest.mark.parametrize("through", ["name", "link"])
def test_what_is_read_is_not_written_over(option, through, tmp_path, capsys):
    source = save(tmp_path / "train.parquet", [verl("Q", "1", "0")])
    before, out = source.read_bytes(), source
    if through == "link":
        out = tmp_path / "other.parquet"
        out.symlink_to(source)
    given = {"--input": save(tmp_path / "in.json", [GOOD])} | {option: source}
    words = [str(word) for pair in given.items() for word in pair]
    assert main(["prepare", "aime25", *words, "--out", str(out)]) == 2
    said = f"--out: {out} is the file of {option}, allowed: another file"
    assert said in capsys.readouterr().err
    assert source.read_bytes() == before


def test_a_device_is_no_output(tmp_path, capsys):
    file, out = save(tmp_path / "in.json", [GOOD]), tmp_path / "out.parquet"
    os.mkfifo(out)
    assert main(["prepare", "aime25", "--input", str(file), "--out", str(out)]) == 2
    assert f"--out: {out} is a pipe or a device, allowed: a file" in capsys.readouterr().err
    assert out.is_fifo()


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, capsys, full_disk):
    file, out = tmp_path / "in.json", tmp_path / "out.parquet"
    file.write_text('[{"problem": "Q", "answer": "1", "id": "0"}]')
    out.write_text("good")
    with full_disk():
        assert main(["prepare", "aime25", "--input", str(file), "--out", str(out)]) == 2
    assert f"--out: {out} cannot be written (" in capsys.readouterr().err
    assert out.read_text() == "good"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.json", "out.parquet"]


@pytest.mark.parametrize("option", ["--suffix", "--split"])
def test_text_of_a_terminal_that_is_no_utf_8_is_named(option, tmp_path, capsys):
    file, out = save(tmp_path / "in.json", [GOOD]), str(tmp_path / "out.parquet")
    words = ["--input", str(file), "--out", out, option, os.fsdecode(b"\xff")]
    assert main(["prepare", "aime25", *words]) == 2
    assert f"{option}: got '\\udcff', allowed: text in UTF-8" in capsys.readouterr().err
