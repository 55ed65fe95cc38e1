"""Models that do not fit each other are refused by path and token; those that fit never are."""

import importlib
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from made import CHATML, POINTER, VOCABULARY, check_inputs, refusal, row, save_data, save_model
from omegaconf import OmegaConf

from recipe.prune_opd.checks.files import local_path, refuse_pointers
from recipe.prune_opd.checks.models import Model, check_server_context, scaled_context
from recipe.prune_opd.checks.scoring import GRADING

STUDENT, TEACHER = "actor_rollout_ref.model.path", "prune_opd.teacher.path"


# ------------------------------------------------------------------------------------------ folders


def test_paths_as_a_shell_leaves_them_are_accepted(inputs, good, tmp_path, monkeypatch):
    home, name = os.path.split(good["model"])
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


@pytest.mark.parametrize("key", [STUDENT, TEACHER])
def test_a_model_folder_that_does_not_exist_is_refused(inputs, tmp_path, key):
    OmegaConf.update(inputs, key, str(tmp_path / "nowhere"))
    assert refusal(inputs).startswith(f"{key}: {tmp_path / 'nowhere'} does not exist")


@pytest.mark.parametrize("gone", [["config.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_model_folder_without_its_parts_is_refused(inputs, tmp_path, gone):
    folder = inputs.prune_opd.teacher.path = save_model(tmp_path / "teacher")
    for name in gone:
        (Path(folder) / name).unlink()
    assert refusal(inputs).startswith(
        f"{TEACHER}: {folder} holds no model configuration with tokenizer"
    )


@pytest.mark.parametrize("key", [STUDENT, TEACHER])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model-00001-of-2.bin"]
)
def test_a_model_cloned_without_its_content_is_named(inputs, tmp_path, key, name):
    folder = Path(save_model(tmp_path / "cloned"))
    (folder / name).write_text(POINTER)
    OmegaConf.update(inputs, key, str(folder))
    message = refusal(inputs)
    assert message.startswith(f"{key}: {folder / name} is a Git LFS pointer, not the file itself")
    assert "git lfs pull" in message


def test_weights_in_a_format_that_is_not_read_may_be_pointers(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "pytorch_model.bin").write_text(POINTER)
    refuse_pointers("key", str(tmp_path), weights=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a Git LFS pointer"):
        refuse_pointers("key", str(tmp_path), weights=True)


def test_a_file_is_no_model(inputs, good):
    inputs.actor_rollout_ref.model.path = good["data"]
    assert refusal(inputs).startswith(
        f"{STUDENT}: {good['data']} is a file, allowed: a model folder"
    )


@pytest.mark.parametrize("name", ["tokenizer_path", "hf_config_path"])
def test_the_key_of_a_part_elsewhere_is_named(inputs, tmp_path, name):
    inputs.actor_rollout_ref.model[name] = str(tmp_path / "nowhere")
    assert refusal(inputs).startswith(
        f"actor_rollout_ref.model.{name}: {tmp_path / 'nowhere'} does not exist"
    )


def test_a_copy_that_left_nothing_is_one_that_failed(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("verl.utils.fs.copy_to_local", lambda path: str(tmp_path / "copy"))
    inputs.actor_rollout_ref.model.path = "hdfs://a/b"
    assert refusal(inputs).startswith(f"{STUDENT}: hdfs://a/b cannot be copied here")


@pytest.mark.parametrize("ends", ["<eos>", [[1]], [1.5]])
def test_an_end_token_is_a_number(inputs, tmp_path, ends):
    folder = Path(save_model(tmp_path / "ends"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    inputs.prune_opd.teacher.path = str(folder)
    assert refusal(inputs).startswith(
        f"{TEACHER}: {folder} has the eos_token_id {ends!r} in its generation settings"
    )


# ------------------------------------------------------------------------------------------- tokens


def test_a_pair_with_one_tokenizer_is_accepted(inputs, caplog):
    inputs.prune_opd.topk = len(VOCABULARY)
    check_inputs(inputs)
    assert not caplog.records


def test_ids_with_another_meaning_are_refused(inputs, tmp_path):
    words = [*VOCABULARY]
    words[5], words[6] = words[6], words[5]
    inputs.prune_opd.teacher.path = save_model(tmp_path / "swapped", words)
    message = refusal(inputs)
    assert message.startswith(f"{TEACHER}: 2 of 23 token ids mean another token")
    assert "first is 5: 'w3' against 'w2'" in message


@pytest.mark.parametrize(
    ("added", "rows"), [([], 64), (["<tool>"], 24), (["<tool>"], 64), (["<tool>"], 23)]
)
def test_embeddings_may_differ_in_rows(inputs, tmp_path, added, rows):
    """The last: a token of the teacher's without a row is none that the student could write."""
    inputs.prune_opd.teacher.path = save_model(tmp_path / "padded", VOCABULARY + added, rows)
    check_inputs(inputs)


@pytest.mark.parametrize("key", [STUDENT, TEACHER])
def test_tokens_without_a_row_in_an_embedding_are_refused(inputs, tmp_path, key):
    words = [*VOCABULARY, "<tool>", "<more>"]
    OmegaConf.update(inputs, STUDENT, save_model(tmp_path / "full", words))
    OmegaConf.update(inputs, TEACHER, save_model(tmp_path / "full", words))
    folder = save_model(tmp_path / "small", words, rows=23)
    OmegaConf.update(inputs, key, folder)
    message = refusal(inputs)
    assert message.startswith(
        f"{key}: {folder} has 23 rows in its embedding, too few for 2 of the tokens"
    )
    assert "the first is 23 (<tool>)" in message


@pytest.mark.parametrize("smaller", ["student", "teacher"])
def test_topk_above_the_common_vocabulary_is_refused(inputs, tmp_path, smaller):
    key = TEACHER if smaller == "student" else STUDENT
    OmegaConf.update(inputs, key, save_model(tmp_path / "large", rows=64))
    inputs.prune_opd.topk = 24
    assert refusal(inputs) == "prune_opd.topk: got 24, allowed: at most the common vocabulary, 23"


def test_the_teachers_vocabulary_is_returned(inputs, tmp_path):
    inputs.prune_opd.teacher.path = save_model(tmp_path / "padded", rows=64)
    assert check_inputs(inputs).teachers[0].vocab_size == 64


@pytest.mark.parametrize("outside", [23, 10**6])
def test_an_end_token_that_is_none_is_refused(inputs, tmp_path, outside):
    """With a row and without one."""
    folder = save_model(tmp_path / "ends", ends=[1, outside], rows=64)
    inputs.actor_rollout_ref.model.path = folder
    message = refusal(inputs)
    assert message.startswith(
        f"{STUDENT}: {folder} ends a response with token 1 (<eos>), {outside} (unknown)"
    )
    assert f"of which {outside} is no token with a row" in message
    assert "generation_config.json" in message


def test_a_student_without_an_end_token_is_refused(inputs, tmp_path):
    folder = Path(save_model(tmp_path / "endless", eos_token_id=None))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            content.pop("eos_token", None)
            (folder / name).write_text(json.dumps(content))
    inputs.actor_rollout_ref.model.path = str(folder)
    assert refusal(inputs).startswith(f"{STUDENT}: {folder} has no end token, needed: eos_token")


def test_different_ends_are_a_warning(inputs, tmp_path, caplog):
    inputs.prune_opd.teacher.path = save_model(tmp_path / "ends", ends=[1, 2])
    with caplog.at_level(logging.WARNING):
        check_inputs(inputs)
    (record,) = caplog.records
    assert "token 1 (<eos>), the teacher with 1 (<eos>), 2 (<end>)" in record.getMessage()


# ------------------------------------------------------------------------------------------ context


@pytest.mark.parametrize(
    ("engine", "context", "allowed"),
    [("vllm", 499, False), ("vllm", 500, True), ("sglang", 500, False), ("sglang", 501, True)],
)
def test_prompt_and_response_must_fit_the_students_context(
    inputs, tmp_path, engine, context, allowed
):
    """The longest response is one of validation, however short those of training are."""
    inputs.data.max_prompt_length, inputs.data.max_response_length = 100, 400
    inputs.prune_opd.budget.max = 50
    inputs.actor_rollout_ref.rollout.name = engine
    folder = save_model(tmp_path / "short", max_position_embeddings=context)
    inputs.actor_rollout_ref.model.path = folder
    if allowed:
        check_inputs(inputs)
        return
    message = refusal(inputs)
    assert message.startswith(
        "data.max_response_length: got 400, allowed with data.max_prompt_length=100: at most 399,"
    )
    assert f"into {context} tokens" in message
    assert f"the context of {folder}" in message


@pytest.mark.parametrize(("most", "allowed"), [(499, False), (500, True), (2048, True)])
def test_prompt_and_response_must_fit_what_the_rollout_is_given(inputs, most, allowed):
    inputs.data.max_prompt_length, inputs.data.max_response_length = 100, 400
    inputs.actor_rollout_ref.rollout.max_model_len = most
    if allowed:
        check_inputs(inputs)
    else:
        assert "must fit into 499 tokens, actor_rollout_ref.rollout.max_model_len" in refusal(
            inputs
        )


def test_the_rollout_cannot_be_given_more_than_the_context(inputs):
    inputs.actor_rollout_ref.rollout.max_model_len = 2049
    message = refusal(inputs)
    assert message.startswith(
        "actor_rollout_ref.rollout.max_model_len: got 2049, allowed: at most 2048, the context of"
    )


def test_scaling_adds_nothing_to_what_the_rollout_takes(inputs, tmp_path):
    """verl gives its servers ``max_position_embeddings`` as it stands."""
    rope = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1000,
        "rope_theta": 10000.0,
    }
    folder = save_model(tmp_path / "yarn", max_position_embeddings=1000, rope_parameters=rope)
    inputs.actor_rollout_ref.model.path = folder
    assert scaled_context(Model("m", folder, False, None, None)) == 4000
    assert "must fit into 1000 tokens" in refusal(inputs)
    override = {"max_position_embeddings": 4000}
    OmegaConf.update(inputs, "actor_rollout_ref.model.override_config", override, force_add=True)
    check_inputs(inputs)


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
    inputs.prune_opd.teacher.path = save_model(tmp_path / "short", max_position_embeddings=context)
    check_inputs(inputs)  # a training pass has no such bound
    inputs.prune_opd.teacher.server.engine = engine
    inputs.prune_opd.gate.enable = not home
    if home:
        inputs.prune_opd.teacher.home, inputs.prune_opd.strategy = "server", "intersection"
    if allowed:
        check_inputs(inputs)
    else:
        message = refusal(inputs)
        assert message.startswith(
            f"{TEACHER}: {tmp_path / 'short'} has a context of {context} tokens, needed"
        )
        assert f"on {engine} servers: {context + 1}," in message


def test_a_teacher_that_names_no_context_is_accepted():
    check_server_context(SimpleNamespace(context=None), 10**9, "vllm")


@pytest.mark.parametrize(
    ("rope", "size"),
    [
        ({"rope_type": "default"}, 100),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 80}, 320),
        ({"rope_type": "linear", "factor": 2.0}, 200),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 80}, 100),
        (None, 100),
    ],
)
def test_scaled_rotary_embeddings_count_as_vllm_counts_them(rope, size):
    model = SimpleNamespace(config=SimpleNamespace(rope_parameters=rope), context=100)
    assert scaled_context(model) == size


# ---------------------------------------------------------------------------------------- templates


REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHATML
)
REFUSES_OTHER_ORDERS = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)
USER, ANSWER = ("user", "w1"), ("assistant", "w2")


def test_a_student_needs_a_chat_template_and_a_teacher_does_not(inputs, tmp_path):
    folder = save_model(tmp_path / "base", template=None)
    inputs.prune_opd.teacher.path = folder
    check_inputs(inputs)
    inputs.actor_rollout_ref.model.path = folder
    assert refusal(inputs).startswith(f"{STUDENT}: {folder} has no chat template")
    inputs.actor_rollout_ref.model.custom_chat_template = CHATML
    check_inputs(inputs)


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (REFUSES_SYSTEM, [("system", "w3"), USER], "TemplateError: no system role"),
        (REFUSES_OTHER_ORDERS, [USER, USER], "TemplateError: roles must alternate"),
        (CHATML, [USER, {"role": "assistant", "content": None}, USER], "TypeError: "),
    ],
    ids=["system", "order", "null"],
)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_a_row_that_the_template_refuses_is_named(
    inputs, tmp_path, template, turns, reason, suffix, key
):
    """It is one of many, and not among the first."""
    folder = inputs.actor_rollout_ref.model.path = save_model(
        tmp_path / "student", template=template
    )
    many = [row(USER, ANSWER, USER)] * 30
    file = inputs.data[key] = save_data(tmp_path / f"d{suffix}", [*many, row(*turns), *many])
    message = refusal(inputs)
    assert message.startswith(f"data.{key}: {file}, row 30 of column 'prompt' holds [{{")
    assert f"which the chat template of {folder} refuses ({reason}" in message


def test_a_template_may_fail_in_any_way(inputs, tmp_path):
    template = "{{ messages[0]['content'].nothing.at_all }}" + CHATML
    inputs.actor_rollout_ref.model.path = save_model(tmp_path / "student", template=template)
    assert "refuses (UndefinedError: " in refusal(inputs)


def test_templates_take_their_arguments(inputs, tmp_path):
    template = "{% if not think %}{{ raise_exception('think') }}{% endif %}" + CHATML
    inputs.actor_rollout_ref.model.path = save_model(tmp_path / "student", template=template)
    assert "refuses (TemplateError: think)" in refusal(inputs)
    OmegaConf.update(inputs, "data.apply_chat_template_kwargs", {"think": True}, force_add=True)
    check_inputs(inputs)


# ------------------------------------------------------------------------------------- pairs in use


ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def composed_command(compose, monkeypatch, tmp_path):
    """Configuration of a training command, as verl would compose it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda command: compose(*(argument for argument in command if "=" in argument))


@pytest.mark.parametrize("task", ["walk", "signposts"])
def test_the_pairs_and_data_of_the_examples_are_accepted(
    composed_command, tmp_path, monkeypatch, caplog, task
):
    """As they are made, but for the training."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "pairs")
    import launch
    import tiny

    module, setup = importlib.import_module(task), getattr(launch, task.upper())
    tokenizer = module.build_tokenizer()
    for name in ("student", "teacher"):
        tiny.save(tiny.build_model(tokenizer), tokenizer, tmp_path / "models" / name)
    module.write_parquet(tmp_path / "data", train=128, validation=16)
    for recipe in ("opd", "prune_opd", "prune_opd_gate", "iw_opd", "semi_opd"):
        out = tmp_path / recipe
        config = composed_command(launch.training_command(tmp_path, out, recipe, 2, [], setup))
        found = check_inputs(config)
        assert (found.teachers[0].vocab_size, found.reward_function) == (len(tokenizer), None)
    assert not caplog.records


def test_the_inputs_of_the_end_to_end_tests_are_accepted(composed_command, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "e2e")
    import harness

    harness.build_inputs(tmp_path)
    for teacher in ("permuted", "noisy"):
        settings = {"prune_opd.teacher.path": tmp_path / teacher}
        config = composed_command(
            harness.command(tmp_path, tmp_path / "run", "prune_opd", settings)
        )
        assert check_inputs(config).reward_function is None


@pytest.mark.skipif(not DATA.is_dir(), reason="the paper's data is not there")
def test_the_papers_data_is_accepted_and_graded_here(inputs):
    inputs.data.train_files = str(DATA / "dapo_math_17k.parquet")
    names = ("amc23", "aime24", "aime25", "hmmt24", "hmmt25", "math_500")
    inputs.data.val_files = [str(DATA / f"{name}.parquet") for name in names]
    inputs.data.train_batch_size = 1024
    assert check_inputs(inputs).reward_function == GRADING


ODD_MODELS = {
    "no layers": ("config.json", {"num_hidden_layers": 0}, "has num_hidden_layers 0 in its"),
    "no width": ("config.json", {"hidden_size": 0}, "has hidden_size 0 in its configuration"),
    "no rows": ("config.json", {"vocab_size": 0}, "has vocab_size 0 in its configuration"),
    "no heads": ("config.json", {"num_attention_heads": 0}, "holds no model configuration"),
    "text for a size": ("config.json", {"max_position_embeddings": "x"}, "max_position_embeddings"),
    "text for an end": ("config.json", {"eos_token_id": "</s>"}, "eos_token_id"),
    "another text": ("generation_config.json", {"eos_token_id": "</s>"}, "eos_token_id '</s>' in"),
    "true for an end": ("generation_config.json", {"eos_token_id": True}, "eos_token_id True in"),
    "no object": ("generation_config.json", [], "holds no model configuration with tokenizer"),
    "deep": ("config.json", "[" * 100_000, "holds no model configuration with tokenizer"),
    "deep settings": ("generation_config.json", "[" * 100_000, "holds no model configuration"),
    "deep tokenizer": ("tokenizer.json", "[" * 100_000, "holds no model configuration"),
}


@pytest.mark.parametrize("case", ODD_MODELS)
def test_a_model_folder_of_another_shape_is_one_sentence(inputs, tmp_path, case):
    name, change, reason = ODD_MODELS[case]
    file = Path(save_model(tmp_path / "student")) / name
    if isinstance(change, dict):
        change = (json.loads(file.read_text()) if file.is_file() else {}) | change
    file.write_text(change if isinstance(change, str) else json.dumps(change))
    inputs.actor_rollout_ref.model.path = str(file.parent)
    message = refusal(inputs)
    assert message.startswith(f"{STUDENT}: {file.parent} ")
    assert reason in message


@pytest.mark.parametrize("path", ["n" * 5000, "/" + "n" * 5000, "a\0b"])
def test_a_name_that_no_folder_has_is_one_sentence(inputs, path):
    inputs.prune_opd.teacher.path = path
    assert refusal(inputs).startswith(f"{TEACHER}: ")


def test_a_template_that_divides_by_zero_is_one_sentence(inputs, tmp_path):
    template = CHATML + "{{ 1 // 0 }}"
    inputs.actor_rollout_ref.model.path = save_model(tmp_path / "student", template=template)
    assert "refuses (ZeroDivisionError: " in refusal(inputs)
