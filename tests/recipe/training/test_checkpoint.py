"""A checkpoint's state is read whole or refused in one sentence that names the file, before a run
starts; one that cannot be written leaves the earlier ones as they are."""

import json
import re

import pytest

from recipe.prune_opd.config import PruneOPDConfig, read_config
from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.phase import RolloutPhase
from recipe.prune_opd.training.checkpoint import (
    STATE_FILE,
    TRACKER,
    State,
    check_checkpoint,
    load_state,
    save_state,
)

CONFIG = PruneOPDConfig.model_validate({"teacher": {"path": "T"}})
PAPER = {"init": 2048, "min": 1024, "max": 12288}

GOOD = {"limit": 2048, "no_hit_steps": 1}


def test_a_state_is_read_as_it_was_saved(tmp_path):
    budget, resumed = ResponseBudget(**PAPER), ResponseBudget(**PAPER)
    budget.load_state_dict({"limit": 3048, "no_hit_steps": 2})
    save_state(tmp_path / "global_step_7", State(CONFIG, budget))
    load_state(tmp_path / "global_step_7", State(CONFIG, resumed))
    assert resumed.state_dict() == {"limit": 3048, "no_hit_steps": 2}
    assert [file.name for file in (tmp_path / "global_step_7").iterdir()] == [STATE_FILE]


def test_a_checkpoint_of_plain_verl_is_gone_on_with_under_the_first_limit(tmp_path, caplog):
    load_state(tmp_path, State(CONFIG, budget := ResponseBudget(**PAPER)))
    assert budget.limit == 2048
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / STATE_FILE} does not exist: the checkpoint was written by")
    assert said.endswith("under the first limit, 2048")


OTHERS = {
    "teacher.path": {"teacher": {"path": "other"}},
    "topk": {"topk": 32},
    "drift.metric": {"drift": {"metric": "teacher_top_p_accept"}},
    "drift.threshold": {"drift": {"threshold": 0.9}},
    "strategy": {"strategy": "union"},
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_checkpoint_of_another_method_is_refused_unless_it_is_asked_for(tmp_path, key):
    given = {"teacher": {"path": "T"}} | OTHERS[key]
    budget, moved = ResponseBudget(**PAPER), ResponseBudget(**PAPER)
    moved.load_state_dict({"limit": 3048, "no_hit_steps": 2})
    save_state(tmp_path, State(CONFIG, moved))
    other = PruneOPDConfig.model_validate(given)
    with pytest.raises(ValueError, match=rf"its run had prune_opd\.{key}=.*prune_opd\.resume=any"):
        load_state(tmp_path, State(other, budget))
    assert budget.limit == 2048
    load_state(tmp_path, State(other.changed(resume="any"), budget))
    assert budget.limit == 3048


def test_a_checkpoint_that_does_not_say_its_method_is_taken(tmp_path):
    """Those of earlier releases."""
    (tmp_path / STATE_FILE).write_text(json.dumps({"budget": GOOD | {"limit": 4048}}))
    load_state(tmp_path, State(CONFIG, budget := ResponseBudget(**PAPER)))
    assert budget.limit == 4048


def deep(levels: int) -> list:
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


BROKEN = {
    "empty": ("", "is no JSON"),
    "cut off": (json.dumps({"budget": GOOD})[:-5], "is no JSON"),
    "bytes": (b"\xff\xfe", "is no JSON"),
    "too deep": ("[" * 100_000, "is no JSON"),
    "a list": ([GOOD], "has no budget, it was changed or is of another version"),
    "no budget": ({"limit": 2048}, "has no budget"),
    "method of another kind": ({"budget": GOOD, "method": 5}, "method: got 5, allowed: an object"),
    "budget of another kind": ({"budget": 5}, "budget: got 5, allowed: an object"),
    "no limit": ({"budget": {"no_hit_steps": 1}}, "budget.limit is missing, found: no_hit_steps"),
    "no counter": ({"budget": {"limit": 2048}}, "budget.no_hit_steps is missing, found: limit"),
    "nothing": ({"budget": {}}, "budget.limit is missing, found: nothing"),
    "text": (
        {"budget": GOOD | {"limit": "2048"}},
        "budget.limit: got '2048', allowed: a whole number >= 0",
    ),
    "null": ({"budget": GOOD | {"limit": None}}, "budget.limit: got None"),
    "fraction": ({"budget": GOOD | {"limit": 2048.5}}, "budget.limit: got 2048.5"),
    "truth": ({"budget": GOOD | {"no_hit_steps": True}}, "budget.no_hit_steps: got True"),
    "not a number": ({"budget": GOOD | {"limit": float("nan")}}, "budget.limit: got nan"),
    "negative": ({"budget": GOOD | {"no_hit_steps": -1}}, "budget.no_hit_steps: got -1"),
    "minus five": ({"budget": GOOD | {"no_hit_steps": -5}}, "budget.no_hit_steps: got -5"),
    "50.7": ({"budget": GOOD | {"limit": 50.7}}, "budget.limit: got 50.7"),
    "deep": ({"budget": GOOD | {"limit": deep(500)}}, "is no JSON that can be read"),
    "of another rule": (
        {"budget": {"limit": 2048, "recent": []}},
        "budget.no_hit_steps is missing",
    ),
    "out of bounds": (
        {"budget": GOOD | {"limit": 99999}},
        "limit is 99999, outside min = 1024 and max = 12288",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_state_file_that_cannot_be_used_is_named(case, tmp_path):
    content, message = BROKEN[case]
    file = tmp_path / "prune_opd.json"
    content = content if isinstance(content, (str, bytes)) else json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    budget = ResponseBudget(**PAPER)
    before = budget.state_dict()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_state(tmp_path, State(CONFIG, budget))
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    assert budget.state_dict() == before


def test_the_phase_of_semi_opd_is_read_as_it_was_saved(tmp_path):
    budget, phase, resumed = ResponseBudget(**PAPER), RolloutPhase("r", 0.5), RolloutPhase("r")
    phase.update(0.1)
    save_state(tmp_path, State(CONFIG, budget, phase))
    load_state(tmp_path, State(CONFIG, budget, resumed))
    assert not resumed.frozen
    load_state(tmp_path, State(CONFIG, budget))  # a run without Semi-OPD goes on from it, too
    save_state(tmp_path, State(CONFIG, budget, RolloutPhase("r")))
    with pytest.raises(ValueError, match=r"prune_opd\.json: semi\.rollouts: got r"):
        load_state(tmp_path, State(CONFIG, budget, RolloutPhase("another")))


def test_a_checkpoint_without_rollouts_is_not_gone_on_with_frozen(tmp_path):
    save_state(tmp_path, State(CONFIG, ResponseBudget(**PAPER)))
    with pytest.raises(ValueError, match="has no phase of Semi-OPD"):
        load_state(tmp_path, State(CONFIG, ResponseBudget(**PAPER), RolloutPhase("r")))


class Mine(ResponseBudget):
    """A budget of a user's own, which expects what the file may lack."""

    def load_state_dict(self, state):
        self.mine = state["mine"]


def test_an_error_of_a_budget_of_ones_own_names_the_file_too(tmp_path):
    save_state(tmp_path, State(CONFIG, ResponseBudget(**PAPER)))
    with pytest.raises(ValueError, match=r"prune_opd\.json: 'mine' is missing"):
        load_state(tmp_path, State(CONFIG, Mine(**PAPER)))


# ------------------------------------------------------------------------------------------- saving


def test_a_full_disk_leaves_the_last_good_state(tmp_path, full_disk):
    good, budget = tmp_path / "global_step_7", ResponseBudget(**PAPER)
    save_state(good, State(CONFIG, budget))
    big = RolloutPhase("r" * 200)
    for folder in (tmp_path / "global_step_8", good):
        with (
            full_disk(),
            pytest.raises(
                RuntimeError, match="this checkpoint is not saved, earlier ones"
            ) as error,
        ):
            save_state(folder, State(CONFIG, budget, big))
        assert str(error.value).startswith(f"{folder / STATE_FILE} cannot be written (File too")
        assert "\n" not in str(error.value)
    load_state(good, State(CONFIG, ResponseBudget(**PAPER)))
    assert [file.name for file in good.iterdir()] == [STATE_FILE]
    assert list((tmp_path / "global_step_8").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"file/global_step_1/prune_opd\.json cannot be written"):
        save_state(tmp_path / "file" / "global_step_1", State(CONFIG, ResponseBudget(**PAPER)))


# --------------------------------------------------------------------------------- before the start


@pytest.fixture
def trained(compose, tmp_path):
    """A configuration whose folder holds two checkpoints, and what the start check says of it."""
    folder = tmp_path / "run"
    config = compose(
        "+recipe=prune_opd",
        "prune_opd.teacher.path=T",
        f"trainer.default_local_dir={folder}",
        "trainer.save_freq=1",
    )
    prune_opd = read_config(config)
    for step in (1, 2):
        save_state(folder / f"global_step_{step}", State(CONFIG, prune_opd.budget.build()))
    (folder / TRACKER).write_text("2")
    return config, folder, lambda: check_checkpoint(config, prune_opd)


def test_good_checkpoints_start(trained):
    config, folder, check = trained
    check()
    config.trainer.resume_mode = "resume_path"
    config.trainer.resume_from_path = str(folder / "global_step_1")
    check()
    (folder / "global_step_1" / STATE_FILE).write_text("{")
    config.trainer.resume_mode = "disable"
    check()


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"budget": 5}', "\ufeff"])
def test_a_damaged_state_ends_the_start(trained, content):
    """verl would have loaded the models first."""
    config, folder, check = trained
    file = folder / "global_step_2" / STATE_FILE
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(file))) as error:
        check()
    assert "\n" not in str(error.value)
    config.trainer.resume_mode = "resume_path"
    config.trainer.resume_from_path = str(folder / "global_step_1")
    check()  # the one before it stays usable


@pytest.mark.parametrize("content", [b"", b"two", b"\xff"])
def test_a_damaged_number_of_the_newest_checkpoint_ends_the_start(trained, content):
    _, folder, check = trained
    (folder / TRACKER).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{folder / TRACKER} cannot be read (")):
        check()


def test_checkpoints_that_are_not_there(trained):
    config, folder, check = trained
    (folder / TRACKER).write_text("7")
    check()  # verl begins anew
    config.trainer.resume_mode = "resume_path"
    config.trainer.resume_from_path = str(folder / "global_step_7")
    with pytest.raises(ValueError, match=r"trainer\.resume_from_path: .* does not exist, allowed"):
        check()


@pytest.mark.parametrize("name", ["file/run", "n" * 300])
def test_a_folder_that_no_checkpoint_can_go_into_ends_the_start(trained, tmp_path, name):
    config, _, check = trained
    (tmp_path / "file").write_text("")
    config.trainer.default_local_dir = str(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"trainer\.default_local_dir: .* allowed: a folder to write"
    ):
        check()
    config.trainer.save_freq = -1
    check()


def test_the_phase_of_semi_opd_is_looked_at_too(trained, tmp_path):
    config, folder, _ = trained
    config.prune_opd.semi.enable = True
    config.prune_opd.semi.dir = str(tmp_path / "rollouts")
    prune_opd = read_config(config)
    with pytest.raises(ValueError, match="has no phase of Semi-OPD"):
        check_checkpoint(config, prune_opd)
    save_state(folder / "global_step_2", State(CONFIG, prune_opd.budget.build(), RolloutPhase("r")))
    with pytest.raises(ValueError, match=r"semi\.rollouts: got r, but prune_opd\.semi\.dir"):
        check_checkpoint(config, prune_opd)
