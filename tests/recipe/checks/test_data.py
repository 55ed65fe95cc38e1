"""Data that would fail in the middle of a run is refused by file and row; good data is never."""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import concatenate_datasets, load_dataset
from made import POINTER, check_inputs, refusal, row, save_data

from recipe.prune_opd.checks import sources
from recipe.prune_opd.checks.data import check_file, prompt_fault, read_prompts
from recipe.prune_opd.checks.scoring import NAMED_SCORER, SCORER
from recipe.prune_opd.checks.shapes import first_of_each, marks_of, regular, shape_of

SUFFIXES = (".parquet", ".jsonl", ".json")
CHAT = "allowed: a list of messages with role and content"
USER, ANSWER = ("user", "w1"), ("assistant", "w2")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_data_formats(inputs, tmp_path, key, suffix):
    file = tmp_path / f"data{suffix}"
    inputs.data[key] = [
        save_data(tmp_path / f"other{suffix}", [row()]),
        save_data(file, [row(), row()]),
    ]
    check_inputs(inputs)
    save_data(file, [{"question": "w1"}])
    os.utime(file, (0, 0))
    message = refusal(inputs)
    assert message.startswith(f"data.{key}: {file} has no column 'prompt'")
    assert "question" in message


def test_files_that_verl_cannot_join_are_refused(inputs, tmp_path):
    """pandas writes another type of text than ``datasets`` reads from JSON."""
    table, lines = (
        save_data(tmp_path / "a.parquet", [row()]),
        save_data(tmp_path / "b.jsonl", [row()]),
    )
    inputs.data.val_files = [table, lines]
    message = refusal(inputs)
    assert message.startswith("data.val_files: column 'data_source' is Value('string') in " + lines)
    assert f"Value('large_string') in {table}, allowed: one type in all files" in message
    parts = [
        load_dataset(kind, data_files=file, split="train")
        for kind, file in (("parquet", table), ("json", lines))
    ]
    with pytest.raises(ValueError, match="aligned"):
        concatenate_datasets(parts)


def test_files_with_other_columns_or_fields_are_joined(inputs, tmp_path):
    rows = [
        row(),
        row(extra_info={"index": 1}),
        row(extra_info={"split": "test", "index": 1}, more="w1"),
    ]
    inputs.data.val_files = [
        save_data(tmp_path / f"{i}.parquet", [one]) for i, one in enumerate(rows)
    ]
    check_inputs(inputs)


@pytest.mark.parametrize("files", [3, {"a": 1}, ["a.parquet", None], [""]])
def test_files_are_given_by_name(inputs, files):
    inputs.data.train_files = files
    assert refusal(inputs).startswith("data.train_files: got ")


def test_a_folder_is_no_data(inputs, tmp_path):
    inputs.data.train_files = str(tmp_path)
    assert refusal(inputs).startswith(
        f"data.train_files: {tmp_path} is a folder, allowed: parquet or JSON"
    )


def test_fewer_samples_than_a_batch_are_refused(inputs, tmp_path):
    inputs.data.train_files = save_data(tmp_path / "d.parquet", [row()] * 4)
    inputs.data.train_batch_size, inputs.data.train_max_samples = 4, 3
    assert refusal(inputs).startswith(
        "data.train_max_samples: got 3, allowed: at least data.train_batch_size, 4"
    )
    inputs.data.train_max_samples = 4
    check_inputs(inputs)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_may_name_their_agent_loops(inputs, tmp_path, suffix):
    names = ["tool_agent", "single_turn_agent", "tool_agent", "no_such"]
    rows = [row(agent_name=name) for name in names]
    inputs.data.train_batch_size = 3
    inputs.data.train_files = save_data(tmp_path / f"good{suffix}", rows[:3])
    check_inputs(inputs)
    inputs.data.train_files = file = save_data(tmp_path / f"data{suffix}", rows)
    found = f"data.train_files: {file}, row 3 of column 'agent_name' holds 'no_such', allowed: "
    assert refusal(inputs).startswith(found)


def test_with_cached_rollouts_rows_name_verls_loop_of_one_turn(inputs, tmp_path):
    inputs.prune_opd.semi.enable = True
    file = save_data(tmp_path / "data.parquet", [row(agent_name="tool_agent")])
    inputs.data.train_files = file
    assert refusal(inputs).endswith("allowed with prune_opd.semi.enable: single_turn_agent")


@pytest.mark.parametrize("key", ["image_key", "video_key", "audio_key"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_are_refused_where_servers_score(inputs, tmp_path, suffix, key):
    name = inputs.data[key]
    rows = [row(**{name: []}), row(**{name: ["picture.png"]})]
    inputs.data.train_batch_size = 1
    inputs.data.train_files = save_data(tmp_path / f"none{suffix}", rows[:1])
    for home, more in (("worker_group", rows), ("server", rows[:1])):
        inputs.prune_opd.teacher.home = home
        inputs.data.train_files = save_data(tmp_path / f"{home}{suffix}", more)
        check_inputs(inputs)
    inputs.data.train_files = file = save_data(tmp_path / f"data{suffix}", rows)
    assert refusal(inputs).startswith(
        f"data.train_files: {file}, row 1 of column {name!r} holds ['picture.png'], allowed where"
        " servers score responses: none"
    )


def test_validation_data_may_choose_its_agent_loop(inputs, tmp_path):
    inputs.data.val_files = save_data(tmp_path / "data.parquet", [row(agent_name="tool_agent")])
    check_inputs(inputs)


def test_fewer_prompts_than_a_batch_are_refused(inputs):
    inputs.data.train_batch_size = 2
    assert (
        refusal(inputs) == "data.train_files: 1 prompts, allowed: at least data.train_batch_size, 2"
    )
    inputs.data.train_files = [inputs.data.train_files] * 2
    check_inputs(inputs)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_data_without_rows_is_refused(inputs, tmp_path, suffix):
    file = tmp_path / f"data{suffix}"
    save_data(file, [row()] if suffix == ".parquet" else [])
    if suffix == ".parquet":
        import pandas

        pandas.read_parquet(file)[:0].to_parquet(file)
    inputs.data.train_files = str(file)
    assert refusal(inputs).startswith(f"data.train_files: {file} ")


@pytest.mark.parametrize("name", ["data.parquet", "data.jsonl", "data.json", "data.txt"])
def test_unreadable_data_is_refused(inputs, tmp_path, name):
    file = tmp_path / name
    file.write_text("no data {")
    inputs.data.val_files = str(file)
    assert refusal(inputs).startswith(f"data.val_files: {file} ")


def test_a_file_that_breaks_off_inside_is_refused(tmp_path):
    """Its footer, which has the columns and the number of rows, is whole."""
    file = tmp_path / "d.parquet"
    save_data(file, [row(("user", f"w{i}" * 50)) for i in range(100)])
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^k: {file} is no readable parquet file"):
        check_file("k", file, "prompt")


@pytest.mark.parametrize("name", ["data.parquet", "data.jsonl", "data.json"])
@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_data_cloned_without_its_content_is_named(inputs, tmp_path, key, name):
    file = tmp_path / name
    file.write_text(POINTER)
    inputs.data[key] = str(file)
    assert refusal(inputs).startswith(
        f"data.{key}: {file} is a Git LFS pointer, not the file itself"
    )


@pytest.mark.parametrize("key", ["train_files", "val_files"])
@pytest.mark.parametrize("files", ["nowhere.parquet", ["nowhere.parquet"], None, []])
def test_missing_data_is_refused(inputs, key, files):
    inputs.data[key] = files
    assert refusal(inputs).startswith(f"data.{key}: ")


def test_a_home_folder_is_one(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_data(tmp_path / "d.parquet", [row()])
    inputs.data.train_files = "~/d.parquet"
    check_inputs(inputs)


def test_the_prompt_column_is_verls_key(inputs, tmp_path):
    renamed = row() | {"chat": row()["prompt"], "prompt": "some text"}
    inputs.data.train_files = inputs.data.val_files = save_data(tmp_path / "d.parquet", [renamed])
    inputs.data.prompt_key = "chat"
    check_inputs(inputs)


def test_remote_data_and_own_datasets_are_not_looked_at(inputs):
    inputs.data.train_files = "hdfs://cluster/data.parquet"
    check_inputs(inputs)
    inputs.data.train_files = "nowhere.bin"
    inputs.data.custom_cls.path, inputs.data.custom_cls.name = "mine.py", "Mine"
    check_inputs(inputs)


# ------------------------------------------------------------------------------------------ prompts


PROMPTS = {
    "text": ("w1 w2", f"holds 'w1 w2', {CHAT}"),
    "from and value": ([{"from": "human", "value": "w1"}], f"{CHAT} instead of from and value"),
    "texts": (["w1"], f"holds ['w1'], {CHAT}"),
    "no content": ([{"role": "user"}], CHAT),
    "no role": ([{"content": "w1"}], CHAT),
    "no turns": ([], f"holds [], {CHAT}"),
    "null": (None, f"holds None, {CHAT}"),
    "role is null": ([{"role": None, "content": "w1"}], "whose turn 0 has no role, allowed: user"),
    "content is null": (
        [{"role": "user", "content": None}],
        "whose turn 0 has the content None, allowed: text",
    ),
    "content is a number": (
        [{"role": "user", "content": 3}],
        "whose turn 0 has the content 3, allowed: text",
    ),
    "answer": (row(USER, ANSWER)["prompt"], "ends with a turn of assistant"),
    "answer, other role": (row(USER, ("gpt", "w2"))["prompt"], "ends with a turn of gpt"),
    "empty": ([{"role": "user", "content": ""}], "whose last turn is empty, allowed: text"),
    "blank": ([{"role": "user", "content": " \n"}], "whose last turn is empty, allowed: text"),
}


def cases(faults: dict[str, Any], typed: tuple[str, ...]) -> list[tuple[str, str, bool]]:
    """Name, suffix, whether alone. A parquet column has one type: beside others only what has
    it."""
    every = itertools.product(faults, SUFFIXES, (True, False))
    return [
        (name, suffix, alone)
        for name, suffix, alone in every
        if suffix != ".parquet" or alone or name in typed
    ]


TYPED = (
    "no turns",
    "null",
    "role is null",
    "content is null",
    "answer",
    "answer, other role",
    "empty",
    "blank",
)


@pytest.mark.parametrize(("name", "suffix", "alone"), cases(PROMPTS, TYPED))
def test_a_prompt_that_is_none_is_named_with_its_row(inputs, tmp_path, name, suffix, alone):
    prompt, said = PROMPTS[name]
    others = [] if alone else [row()] * 7
    file = save_data(tmp_path / f"d{suffix}", [*others, row() | {"prompt": prompt}, *others])
    inputs.data.val_files = file
    message = refusal(inputs)
    assert message.startswith(
        f"data.val_files: {file}, row {len(others)} of column 'prompt' holds "
    )
    # To Arrow they are null beside others.
    if not (name in ("no content", "no role") and not alone):
        assert said in message


GOOD = {
    "system": [("system", ""), USER],
    "long": [USER, ANSWER, USER],
    "tool": [USER, {"role": "assistant", "content": None}, ("tool", "3")],
    "system alone": [("system", "w1")],
    "extra keys": [{"role": "user", "content": "w1", "name": None}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "w1"}]}],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("turns", GOOD.values(), ids=GOOD)
def test_prompts_of_other_shapes_are_allowed(tmp_path, turns, suffix):
    file = save_data(tmp_path / f"d{suffix}", [row(*turns)])
    (prompt,) = check_file("k", Path(file), "prompt", SCORER).prompts
    assert [turn["role"] for turn in prompt.messages] == [
        turn["role"] for turn in row(*turns)["prompt"]
    ]
    assert prompt_fault(prompt.messages) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_prompt_of_every_set_of_roles_and_shapes_is_kept(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(sources, "BATCH", 4)
    kinds = [[USER], [("system", "w3"), USER], [USER, ANSWER, USER], [("system", ""), USER]]
    rows = [row(*kind) for kind in kinds for _ in range(5)] * 2
    save_data(tmp_path / f"d{suffix}", rows)
    found = check_file("k", tmp_path / f"d{suffix}", "prompt")
    assert found.rows == 40
    assert [prompt.messages for prompt in found.prompts] == [row(*kind)["prompt"] for kind in kinds]
    places = [
        f"k: {tmp_path / f'd{suffix}'}, row {number} of column 'prompt'"
        for number in (0, 5, 10, 15)
    ]
    assert [prompt.where for prompt in found.prompts] == places
    assert found.sources == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_first_prompts_are_read(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(sources, "BATCH", 4)
    file = tmp_path / f"d{suffix}"
    save_data(file, [row(("user", f"w{i}")) for i in range(10)])
    assert [prompt[0]["content"] for prompt in read_prompts(file, "prompt", 6)] == [
        f"w{i}" for i in range(6)
    ]
    assert len(read_prompts(file, "prompt", 100)) == 10


# ------------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize("column", ["data_source", "reward_model"])
@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_columns_that_the_reward_function_needs(inputs, tmp_path, column, key):
    """verl scores training responses as well as those of validation."""
    without = {name: value for name, value in row().items() if name != column}
    file = inputs.data[key] = save_data(tmp_path / "d.parquet", [without])
    assert refusal(inputs).startswith(
        f"data.{key}: {file} has no column {column!r}, which the reward function needs"
    )
    inputs.reward.custom_reward_function.path = "mine.py"
    said = f"data.{key}: {file} has no column {column!r}, which reward.custom_reward_function needs"
    assert refusal(inputs).startswith(said)
    manager = inputs.reward.reward_manager
    manager.source, manager.module.path, manager.name = "importlib", "mine.py", "Mine"
    check_inputs(inputs)


REWARDS = {
    "no object": {"reward_model": "4"},
    "null": {"reward_model": None},
    "no truth": {"reward_model": {"style": "rule"}},
    "truth is null": {"reward_model": {"ground_truth": None, "style": "rule"}},
    "no source": {"data_source": None},
    "source is a number": {"data_source": 3},
}


@pytest.mark.parametrize(
    ("name", "suffix", "alone"), cases(REWARDS, ("null", "no truth", "truth is null", "no source"))
)
def test_a_row_without_what_the_reward_function_needs_is_named(
    inputs, tmp_path, name, suffix, alone
):
    (column,) = REWARDS[name]
    others = [] if alone else [row()] * 7
    file = save_data(tmp_path / f"d{suffix}", [*others, row(**REWARDS[name]), *others])
    inputs.data.train_files = file
    message = refusal(inputs)
    assert message.startswith(
        f"data.train_files: {file}, row {len(others)} of column {column!r} holds "
    )
    needed = "an object with ground_truth" if column == "reward_model" else "text"
    assert message.endswith(f"allowed: {needed}, which the reward function needs")


def test_a_reward_function_of_the_users_may_do_without_a_value(tmp_path):
    """verl's reward managers take the two fields apart all the same."""
    file = tmp_path / "d.parquet"
    save_data(file, [row(reward_model={"ground_truth": None, "style": "rule"}, data_source=None)])
    check_file("k", file, "prompt", NAMED_SCORER)
    save_data(file, [row(reward_model={"style": "rule"})])
    with pytest.raises(
        ValueError,
        match=r"an object with ground_truth, which reward\.custom_reward_function needs$",
    ):
        check_file("k", file, "prompt", NAMED_SCORER)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_extra_info_must_be_an_object(tmp_path, suffix):
    """verl reads an index from it."""
    file = tmp_path / f"d{suffix}"
    save_data(file, [row(extra_info={"index": 3}), row(extra_info=None)])
    check_file("k", file, "prompt", SCORER)
    save_data(file, [row(extra_info="{'index': 3}")])
    os.utime(file, (0, 0))
    with pytest.raises(
        ValueError,
        match=rf"^k: {file} has a column 'extra_info' of type (large_)?string, allowed: objects$",
    ):
        check_file("k", file, "prompt", SCORER)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_source_is_found_with_its_first_row(tmp_path, suffix):
    file = tmp_path / f"d{suffix}"
    save_data(file, [row(data_source=name) for name in ("b", "b", "a", "b", "c", "a")])
    sources = check_file("k", file, "prompt", SCORER).sources
    assert sources == {
        name: f"k: {file}, row {number}" for name, number in (("b", 0), ("a", 2), ("c", 4))
    }


# ------------------------------------------------------------------------------------------- shapes


VALUES = [
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "b c"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": " \t"}],
    [{"role": "user", "content": None}],
    [{"role": None, "content": "a"}],
    [{"role": "system", "content": "a"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}],
    [None],
    [],
    None,
    [{"role": "user", "content": "again"}],
]


@pytest.mark.parametrize("large", [False, True])
def test_arrow_tells_apart_what_python_does(large):
    import pyarrow as pa

    text = pa.large_string() if large else pa.string()
    turn = pa.struct({"role": text, "content": text})
    column = pa.array(
        [[{"role": "x", "content": "y"}], *VALUES], (pa.large_list if large else pa.list_)(turn)
    )[1:]
    assert regular(column.type)
    rows = [number for _, number in first_of_each(column)]
    assert (
        rows == [number for _, number in first_of_each(VALUES)] == [0, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    )
    assert len(set(marks_of(column).to_pylist())) == len(set(map(shape_of, VALUES))) == 10


def test_types_that_arrow_cannot_tell_apart_are_read_as_python(tmp_path):
    import pyarrow as pa

    kind = pa.map_(pa.string(), pa.string())
    assert not regular(pa.list_(kind))
    assert [
        number for _, number in first_of_each(pa.array([[("a", "b")], None, [("a", "b")]], kind))
    ] == [0, 1]


def test_large_files_are_read_whole_and_quickly(tmp_path):
    """One bad row in a hundred thousand; a look at each in Python would take several times as
    long."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [row(("user", f"w{i} " * 50)) for i in range(1000)]
    parts = [pa.Table.from_pylist(rows)] * 100 + [pa.Table.from_pylist([row(USER, ANSWER)])]
    parquet.write_table(pa.concat_tables(parts), tmp_path / "d.parquet")
    begun = time.process_time()
    with pytest.raises(
        ValueError, match=r"row 100000 of column 'prompt' holds .* ends with a turn of assistant"
    ):
        check_file("k", tmp_path / "d.parquet", "prompt", SCORER)
    assert time.process_time() - begun < 5


def test_a_json_file_that_is_one_object_is_refused(tmp_path):
    file = tmp_path / "d.json"
    file.write_text(json.dumps({"prompt": 3}))
    with pytest.raises(ValueError, match=rf"^k: {file}"):
        check_file("k", file, "prompt")


@pytest.mark.parametrize("depth", [300, 2000])
def test_json_that_is_nested_without_end_is_one_sentence(inputs, tmp_path, depth):
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt":' + "[" * depth + "]" * depth + "}")
    inputs.data.train_files = str(file)
    assert refusal(inputs).startswith(f"data.train_files: {file} is no readable JSON file")
