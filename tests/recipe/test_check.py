import copy
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.inputs import _check_context, check_inputs, local_path

VOCABULARY = ["<unk>", "<eos>", "<end>", *(f"w{i}" for i in range(20))]


@pytest.fixture(scope="module")
def composed(compose):
    return compose("+recipe=prune_opd", "prune_opd.teacher.path=T")


@pytest.fixture
def config(composed) -> DictConfig:
    """The recipe's configuration, free to change."""
    return copy.deepcopy(composed)


def serve(config: DictConfig) -> None:
    """Have the teacher on servers."""
    config.prune_opd.teacher.home, config.prune_opd.strategy = "server", "intersection"


# ------------------------------------------------------------------------------------------------ models


def save_model(
    folder: Path, words: list[str] = VOCABULARY, rows: int = 0, ends: list[int] | None = None, context: int = 2048
) -> str:
    """A model folder without weights: configuration and word-level tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    LlamaConfig(
        vocab_size=rows or len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=context,
        eos_token_id=1,
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    if ends is not None:
        GenerationConfig(eos_token_id=ends).save_pretrained(folder)
    return str(folder)


def save_data(file: Path, rows: list[dict]) -> str:
    if file.suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


PROMPT = {"prompt": [{"role": "user", "content": "w1 w2"}], "data_source": "d"}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, str]:
    """A student folder and a data file."""
    folder = tmp_path_factory.mktemp("good")
    return {"student": save_model(folder / "student"), "data": save_data(folder / "d.parquet", [PROMPT])}


@pytest.fixture
def inputs(config, good, tmp_path, monkeypatch) -> DictConfig:
    """A configuration whose files are all there; the teacher's folder is the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    config.actor_rollout_ref.model.path = good["student"]
    config.prune_opd.teacher.path = save_model(tmp_path / "teacher")
    config.data.train_files = config.data.val_files = good["data"]
    config.data.train_batch_size = 1
    return config


def refusal(config: DictConfig) -> str:
    with pytest.raises(ValueError, match=r"^[a-z_.]+: ") as refused:
        check_inputs(config)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_paths_as_a_shell_leaves_them_are_accepted(inputs, monkeypatch):
    home, name = os.path.split(inputs.prune_opd.teacher.path)
    monkeypatch.setenv("HOME", home)
    for path in (f"~/{name}", f"{home}/{name}/"):
        inputs.prune_opd.teacher.path = path
        check_inputs(inputs)
        assert local_path(path) == f"{home}/{name}"
    assert local_path("org/name") == "org/name"
    assert local_path("hdfs://a/b/") == "hdfs://a/b/"


def test_a_tokenizer_beside_the_weights_is_found(inputs, tmp_path):
    inputs.actor_rollout_ref.model.tokenizer_path = save_model(tmp_path / "own", VOCABULARY[::-1])
    assert "share one tokenizer" in refusal(inputs)


def test_a_pair_with_one_tokenizer_is_accepted(inputs, caplog):
    inputs.prune_opd.topk = len(VOCABULARY)
    check_inputs(inputs)
    assert not caplog.records


def test_ids_with_another_meaning_are_refused(inputs, tmp_path):
    words = [*VOCABULARY]
    words[5], words[6] = words[6], words[5]
    inputs.prune_opd.teacher.path = save_model(tmp_path / "swapped", words)
    message = refusal(inputs)
    assert message.startswith("prune_opd.teacher.path: 2 of 23 token ids mean another token")
    assert "first is 5: 'w3' against 'w2'" in message


@pytest.mark.parametrize(("added", "rows"), [([], 64), (["<tool>"], 24), (["<tool>"], 64)])
def test_embeddings_may_differ_in_rows(inputs, tmp_path, added, rows):
    inputs.prune_opd.teacher.path = save_model(tmp_path / "padded", VOCABULARY + added, rows)
    check_inputs(inputs)


@pytest.mark.parametrize("smaller", ["student", "teacher"])
def test_topk_above_the_common_vocabulary_is_refused(inputs, tmp_path, smaller):
    path = save_model(tmp_path / "large", rows=64)
    if smaller == "student":
        inputs.prune_opd.teacher.path = path
    else:
        inputs.actor_rollout_ref.model.path = path
    inputs.prune_opd.topk = 24
    assert refusal(inputs) == "prune_opd.topk: got 24, allowed: at most the common vocabulary, 23"


@pytest.mark.parametrize("key", ["actor_rollout_ref.model.path", "prune_opd.teacher.path"])
def test_a_model_folder_that_does_not_exist_is_refused(inputs, tmp_path, key):
    OmegaConf.update(inputs, key, str(tmp_path / "nowhere"))
    message = refusal(inputs)
    assert message.startswith(f"{key}: {tmp_path / 'nowhere'} does not exist")


@pytest.mark.parametrize("gone", [["config.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_model_folder_without_its_parts_is_refused(inputs, tmp_path, gone):
    for name in gone:
        (tmp_path / "teacher" / name).unlink()
    folder = tmp_path / "teacher"
    assert refusal(inputs).startswith(f"prune_opd.teacher.path: {folder} holds no model configuration with tokenizer")


@pytest.mark.parametrize("home", [False, True], ids=["gate", "home"])
@pytest.mark.parametrize(
    ("engine", "context", "allowed"),
    [("vllm", 500, False), ("vllm", 501, True), ("sglang", 506, False), ("sglang", 507, True)],
)
def test_a_teacher_that_serves_must_hold_the_longest_sequence_and_more(
    inputs, tmp_path, engine, context, allowed, home
):
    inputs.data.max_prompt_length, inputs.data.max_response_length = 100, 600
    inputs.prune_opd.budget.max = 400
    inputs.prune_opd.teacher.path = save_model(tmp_path / "short", context=context)
    check_inputs(inputs)  # a training pass has no such bound
    inputs.prune_opd.teacher.server.engine = engine
    inputs.prune_opd.gate.enable = not home
    if home:
        serve(inputs)
    if allowed:
        check_inputs(inputs)
    else:
        message = refusal(inputs)
        assert message.startswith(
            f"prune_opd.teacher.path: {tmp_path / 'short'} has a context of {context} tokens, needed"
        )
        assert f"on {engine} servers: {context + 1}," in message


def test_a_teacher_that_names_no_context_is_accepted():
    _check_context(SimpleNamespace(context=None), 10**9, "vllm")


def test_the_teachers_vocabulary_is_returned(inputs, tmp_path):
    inputs.prune_opd.teacher.path = save_model(tmp_path / "padded", rows=64)
    assert check_inputs(inputs) == 64


def test_different_ends_are_a_warning(inputs, tmp_path, caplog):
    inputs.prune_opd.teacher.path = save_model(tmp_path / "ends", ends=[1, 2])
    with caplog.at_level(logging.WARNING):
        check_inputs(inputs)
    (record,) = caplog.records
    assert "token 1 (<eos>), the teacher with 1 (<eos>), 2 (<end>)" in record.getMessage()


# ------------------------------------------------------------------------------------------------ data


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_data_formats(inputs, tmp_path, key, suffix):
    file = tmp_path / f"data{suffix}"
    inputs.data[key] = [inputs.data[key], save_data(file, [PROMPT, PROMPT])]
    check_inputs(inputs)
    save_data(file, [{"question": "w1"}])
    os.utime(file, (0, 0))
    message = refusal(inputs)
    assert message.startswith(f"data.{key}: {file} has no column 'prompt'")
    assert "question" in message


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_a_column_that_would_choose_another_agent_loop_is_refused(inputs, tmp_path, suffix):
    file = save_data(tmp_path / f"data{suffix}", [PROMPT | {"agent_name": "tool_agent"}])
    inputs.data.train_files = file
    assert refusal(inputs).startswith(f"data.train_files: {file} has a column 'agent_name'")


def test_validation_data_may_choose_its_agent_loop(inputs, tmp_path):
    inputs.data.val_files = save_data(tmp_path / "data.parquet", [PROMPT | {"agent_name": "tool_agent"}])
    check_inputs(inputs)


def test_fewer_prompts_than_a_batch_are_refused(inputs):
    inputs.data.train_batch_size = 2
    assert refusal(inputs) == "data.train_files: 1 prompts, allowed: at least data.train_batch_size, 2"
    inputs.data.train_files = [inputs.data.train_files] * 2
    check_inputs(inputs)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_data_without_rows_is_refused(inputs, tmp_path, suffix):
    file = tmp_path / f"data{suffix}"
    save_data(file, [PROMPT] if suffix == ".parquet" else [])
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


@pytest.mark.parametrize("key", ["train_files", "val_files"])
@pytest.mark.parametrize("files", ["nowhere.parquet", ["nowhere.parquet"], None, []])
def test_missing_data_is_refused(inputs, key, files):
    inputs.data[key] = files
    assert refusal(inputs).startswith(f"data.{key}: ")


def test_the_prompt_column_is_verls_key(inputs, tmp_path):
    inputs.data.train_files = inputs.data.val_files = save_data(tmp_path / "d.parquet", [{"chat": "w1"}])
    inputs.data.prompt_key = "chat"
    check_inputs(inputs)


def test_remote_data_and_own_datasets_are_not_looked_at(inputs):
    inputs.data.train_files = "hdfs://cluster/data.parquet"
    check_inputs(inputs)
    inputs.data.train_files = "nowhere.bin"
    inputs.data.custom_cls.path = "my_dataset.py"
    check_inputs(inputs)
