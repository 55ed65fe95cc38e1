"""Several teachers: a training row without a teacher that is there ends the start, as does one of
them that does not fit the student; the sentence says which."""

import pytest
from made import VOCABULARY, check_inputs, refusal, row, save_data, save_model
from omegaconf import DictConfig, open_dict


@pytest.fixture
def several(inputs, tmp_path) -> DictConfig:
    """Two teachers, and training data of two rows, of one each."""
    with open_dict(inputs):
        inputs.prune_opd.teacher.path = None
        inputs.prune_opd.teacher.key = "teacher"
        inputs.prune_opd.teacher.models = {
            name: save_model(tmp_path / name, rows=rows)
            for name, rows in {"math": 64, "code": 32}.items()
        }
    train(inputs, tmp_path, ["math", "code"])
    return inputs


def train(config: DictConfig, folder, teachers: list, file: str = "named.parquet") -> str:
    """Training data with a row for each teacher."""
    rows = [row(teacher=teacher) for teacher in teachers]
    config.data.train_files = save_data(folder / file, rows)
    return config.data.train_files


def test_rows_that_name_a_teacher_pass_and_teachers_come_in_the_order_of_their_names(several):
    found = check_inputs(several)
    assert [teacher.vocab_size for teacher in found.teachers] == [32, 64]
    assert [teacher.key for teacher in found.teachers] == [
        "prune_opd.teacher.models.code",
        "prune_opd.teacher.models.math",
    ]


@pytest.mark.parametrize("file", ["named.parquet", "named.jsonl"])
@pytest.mark.parametrize(("name", "shown"), [("maths", "'maths'"), ("", "''"), (None, "None")])
def test_a_row_that_names_none_is_refused_by_file_and_row(several, tmp_path, file, name, shown):
    file = train(several, tmp_path, ["math", "code", "code", name, "math"], file)
    assert refusal(several) == (
        f"data.train_files: {file}, row 3 of column 'teacher' holds {shown}, allowed: a name of"
        " prune_opd.teacher.models, code, math"
    )


def test_a_name_that_is_a_number_is_refused(several, tmp_path):
    train(several, tmp_path, [1, 2])
    assert "row 0 of column 'teacher' holds 1, allowed: a name of" in refusal(several)


def test_data_without_the_column_is_refused(several, good):
    several.data.train_files = good["data"]
    assert refusal(several).startswith(
        f"data.train_files: {good['data']} has no column 'teacher' (prune_opd.teacher.key), its"
    )


def test_the_column_is_by_default_that_of_the_reward_function(several):
    several.prune_opd.teacher.key = "data_source"
    assert "row 0 of column 'data_source' holds 'AIME24', allowed: a name of" in refusal(several)


def test_a_reward_function_still_gets_the_sources_of_rows_that_name_their_teacher(several):
    """``AIME24`` is graded by this package."""
    path = several.prune_opd.teacher.models.math
    several.prune_opd.teacher.key, several.prune_opd.teacher.models = "data_source", {}
    with open_dict(several):
        several.prune_opd.teacher.models = {"AIME24": path}
    assert check_inputs(several).reward_function == "pkg://recipe.prune_opd.grading"


def test_validation_rows_need_no_teacher(several, good):
    assert several.data.val_files == good["data"]
    check_inputs(several)


def test_the_teacher_that_has_other_tokens_is_named(several, tmp_path):
    words = [*VOCABULARY[:3], *reversed(VOCABULARY[3:])]
    several.prune_opd.teacher.models.math = save_model(tmp_path / "swapped", words)
    assert refusal(several).startswith("prune_opd.teacher.models.math: 20 of 23 token ids mean")


def test_the_teacher_whose_context_is_too_short_for_its_servers_is_named(several, tmp_path):
    several.prune_opd.gate.enable = True
    several.prune_opd.teacher.models.code = save_model(
        tmp_path / "short", max_position_embeddings=1024
    )
    assert refusal(several).startswith(f"prune_opd.teacher.models.code: {tmp_path / 'short'} has a")


def test_the_teacher_that_is_not_there_is_named(several):
    several.prune_opd.teacher.models.code = "/no/such/folder"
    assert refusal(several).startswith("prune_opd.teacher.models.code: /no/such/folder does not")


def test_k_is_within_the_smallest_vocabulary(several):
    several.prune_opd.topk = 24  # the student has 23 tokens
    assert refusal(several).startswith("prune_opd.topk: got 24, allowed: at most")


def test_an_end_that_differs_is_a_warning_that_says_whose(several, tmp_path, caplog):
    several.prune_opd.teacher.models.code = save_model(tmp_path / "ends", ends=[1, 2])
    check_inputs(several)
    (said,) = [text for text in caplog.messages if "ends a response" in text]
    assert said.startswith(
        "prune_opd.teacher.models.code: the student ends a response with token 1"
    )
