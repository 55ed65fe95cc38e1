"""A checkpoint's state is read whole or refused in one sentence that names the file."""

import json
import re

import pytest

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.phase import RolloutPhase
from recipe.prune_opd.training.checkpoint import STATE_FILE, State, load_state, save_state

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
