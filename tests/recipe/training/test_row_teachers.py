"""Several teachers: a training row carries the place of its own, its response is scored and counted
by that one, and a run goes on from a checkpoint of the same teachers alone."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from test_agent_loop import Engine, Inner, run
from test_worker import DRIFTING, batch, computed, worker_of
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from recipe.prune_opd.config import PruneOPDConfig, TeacherConfig
from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.records.metrics import summarise_teachers
from recipe.prune_opd.records.tally import COLUMNS, Tally
from recipe.prune_opd.teacher.answers import SERVED_IDS
from recipe.prune_opd.teacher.client import RoutingClient, TeachingClient, with_teachers
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training import teacher_workers
from recipe.prune_opd.training.checkpoint import State, load_state, save_state
from recipe.prune_opd.training.fields import (
    LIMIT,
    SUMS,
    TEACHER,
    advantage_fields,
    row_teachers,
    teacher_fields,
)
from recipe.prune_opd.training.trainer import PruneOPDTrainer
from verl_ext.rollout.rows import Score, TopKRows
from verl_ext.row_workers import RowWorkers

MODELS = {"math": "M", "code": "C"}


def several(home: str = "worker_group", gate: bool = False, **teacher: Any) -> PruneOPDConfig:
    given = {"models": MODELS, "key": "teacher", "home": home, **teacher}
    strategy = "only_stu" if home == "worker_group" else "intersection"
    return PruneOPDConfig.model_validate(
        {"teacher": given, "strategy": strategy, "gate": {"enable": gate}}
    )


def prompts(*names: Any, column: str = "teacher") -> TensorDict:
    """As verl's trainer makes them of a batch of the dataset."""
    return tu.get_tensordict({column: np.array(names, dtype=object), "n": torch.arange(len(names))})


# --------------------------------------------------------------------------------------- submission


def test_a_row_counts_its_teacher_in_the_order_of_the_names():
    assert row_teachers(prompts("math", "code", "math"), several().teacher).tolist() == [1, 0, 1]
    turned = TeacherConfig(models=dict(reversed(MODELS.items())), key="teacher")
    assert row_teachers(prompts("math", "code", "math"), turned).tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", ["maths", None, 1, ""])
def test_a_row_that_names_none_is_refused_when_it_is_sent_out(name):
    """Of a dataset that nobody could read before the start."""
    with pytest.raises(ValueError, match=r"^prune_opd\.teacher\.key: ") as refused:
        row_teachers(prompts("math", name), several().teacher)
    assert str(refused.value) == (
        f"prune_opd.teacher.key: row 1 of a training batch has {name!r} in its column 'teacher',"
        " allowed: code, math"
    )


def test_rows_without_the_column_are_refused():
    with pytest.raises(ValueError, match=r"row 0 of a training batch has None in its column 'te"):
        row_teachers(prompts("math", column="other"), several().teacher)


class OverSync(PruneOPDTrainer, PPOTrainerSync):
    """The trainer over verl's synchronous one."""


@pytest.mark.parametrize("config", [several(), PruneOPDConfig(teacher=TeacherConfig(path="T"))])
def test_prompts_are_sent_out_with_it_where_there_are_several(monkeypatch, config):
    sent: list[TensorDict] = []
    stock = lambda self, batch: sent.append(batch) or len(batch)  # noqa: E731
    monkeypatch.setattr(PPOTrainerSync, "_submit_batch_to_rollout", stock)
    trainer = object.__new__(OverSync)
    budget = SimpleNamespace(limits=lambda count: [7] * count)
    vars(trainer).update(prune_opd=config, budget=budget, phase=None)
    trainer._submit_batch_to_rollout(prompts("math", "code", "math"))
    if config.teacher.models:
        # As verl hands rows on: in a chunk for each rollout worker, one row at a time.
        rows = [int(chunk[TEACHER][i]) for chunk in sent[0].chunk(2) for i in range(len(chunk))]
        assert rows == [1, 0, 1]
        assert sent[0][TEACHER].dtype == torch.int64  # a tensor is kept with the prompt
    else:
        assert TEACHER not in sent[0]


# ------------------------------------------------------------------------------------------ rollout


class Noted:
    """Servers of a teacher that know what they were asked, and answer with its id."""

    def __init__(self, own: int):
        self.own, self.asked = own, list[list[int]]()

    async def score(self, token_ids: list[int], start: int, topk: int) -> Score:
        self.asked.append(token_ids)
        count = len(token_ids) - start
        ids = np.arange(self.own, self.own + topk, dtype=np.int32)
        log_probs = np.log(np.full(topk, 1 / (topk + 1), dtype=np.float32))
        rows = TopKRows(np.tile(ids, (count, 1)), np.tile(log_probs, (count, 1)))
        return Score(rows, np.full(count, -1.0, dtype=np.float32), computed=count)


@pytest.fixture
def inner(monkeypatch) -> None:
    target = {"_target_": "test_agent_loop.Inner"}
    monkeypatch.setitem(_agent_loop_registry, "inner", target)


def engine() -> Engine:
    found = Engine()
    found.config = OmegaConf.create(
        {"actor_rollout_ref": {"rollout": {"agent": {"num_workers": 1}}}}
    )
    return found


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_finished_response_is_scored_by_the_teacher_of_its_row(inner, outputs):
    """Each of an agent's outputs."""
    teachers = [Noted(100), Noted(200)]
    client = with_teachers(engine(), build_home(several("server")), teachers, [400, 300])
    assert isinstance(client, RoutingClient)
    assert [one.vocab_size for one in client.teachers] == [400, 300]
    prompts = [[900 + row] for row in range(outputs)]
    more = {"prompts": prompts} if outputs > 1 else {}
    for row, teacher in enumerate([1, 0, 1]):
        found = run(client, **{LIMIT: 30, TEACHER: torch.tensor(teacher)}, **more)
        for output in found if outputs > 1 else [found]:
            assert output.as_dict()[SERVED_IDS][0, 0] == [100, 200][teacher], row
    assert [len(one.asked) for one in teachers] == [outputs, 2 * outputs]


def test_the_loop_within_sees_nothing_of_it(inner):
    Inner.made.clear()
    run(engine(), n=3, **{LIMIT: 30, TEACHER: torch.tensor(1)})
    assert [loop.asked_for for loop in Inner.made] == [{"n": 3}]


def test_validation_asks_no_teacher(inner):
    teachers = [Noted(100), Noted(200)]
    client = with_teachers(engine(), build_home(several("server")), teachers, [400, 300])
    assert len(run(client).response_ids) == 3
    assert not teachers[0].asked
    assert not teachers[1].asked


def test_the_gate_asks_the_teacher_of_its_row():
    """The worker group scores finished responses, servers those that grow."""
    client = with_teachers(engine(), build_home(several(gate=True)), [Noted(1), Noted(2)], [9, 9])
    assert isinstance(client, RoutingClient)
    assert [client.of(row).teacher.own for row in (1, 0)] == [2, 1]
    assert not any(one.teaches for one in client.teachers)
    assert all(one.prune_opd.gate.enable for one in client.teachers)


def test_without_servers_verls_client_stays_as_it_is():
    own = engine()
    assert with_teachers(own, build_home(several()), [], [9, 9]) is own
    alone = build_home(PruneOPDConfig(teacher=TeacherConfig(path="T")))
    assert isinstance(with_teachers(own, alone, [Noted(1)], [9]), TeachingClient)


# ------------------------------------------------------------------------------------------- worker


def test_a_worker_holds_them_all_and_reads_the_column(monkeypatch):
    for config in (several(), PruneOPDConfig(teacher=TeacherConfig(path="T"))):
        worker = worker_of(teacher=config.teacher)
        monkeypatch.setattr(
            teacher_workers, "_build_teacher", lambda node, given, path, config: f"worker of {path}"
        )
        built = teacher_workers.build_teachers(None, config.teacher, None)
        if config.teacher.models:
            assert isinstance(built, RowWorkers)
            assert (built.workers, built.column) == (["worker of C", "worker of M"], TEACHER)
        else:
            assert built == "worker of T"
        fields = (teacher_fields(worker.home), advantage_fields(worker.home))
        assert [TEACHER in one for one in fields] == [bool(config.teacher.models)] * 2


def test_what_a_teacher_has_said_is_counted_for_it_alone():
    worker, data = worker_of(teacher=several().teacher), batch(DRIFTING)
    data[TEACHER] = torch.tensor([1, 0, 1])
    result = computed(worker, data)
    assert result[SUMS][:, COLUMNS.index("teacher")].tolist() == [1, 0, 1]
    tally = Tally(result[SUMS], result["prune_opd_positions"], worker.max_length)
    # 9 tokens with 6 events at the end, 12 with every second one from the first on, 5 without; a
    # response is reliable before its fourth event, and models that drift share no candidate.
    found = summarise_teachers(tally, ["code", "math", "law"])
    rewards = {key: found.pop(key) for key in list(found) if key.endswith("reward_mean")}
    assert rewards.keys() == {f"prune_opd/teacher/{name}/reward_mean" for name in ("code", "math")}
    assert found == pytest.approx(
        {
            "prune_opd/teacher/code/responses": 1,
            "prune_opd/teacher/code/generated_tokens": 12,
            "prune_opd/teacher/code/overlap_ratio": 6 / 12,
            "prune_opd/teacher/code/event_rate": 6 / 12,
            "prune_opd/teacher/code/effective_response_length_mean": 6,
            "prune_opd/teacher/math/responses": 2,
            "prune_opd/teacher/math/generated_tokens": 14,
            "prune_opd/teacher/math/overlap_ratio": 8 / 14,
            "prune_opd/teacher/math/event_rate": 6 / 14,
            "prune_opd/teacher/math/effective_response_length_mean": (6 + 5) / 2,
            "prune_opd/teacher/law/responses": 0,
            "prune_opd/teacher/law/generated_tokens": 0,
        }
    )


# ------------------------------------------------------------------------------------------- resume

PAPER = {"init": 2048, "min": 1024, "max": 12288}


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"models": MODELS | {"math": "other"}}, "prune_opd.teacher.models={'math': 'M', 'code'"),
        ({"models": MODELS | {"law": "L"}}, "prune_opd.teacher.models={'math': 'M', 'code'"),
        ({"models": {"maths": "M", "code": "C"}}, "prune_opd.teacher.models={'math': 'M', 'code'"),
        ({"path": "T"}, "prune_opd.teacher.models={'math': 'M', 'code'"),
    ],
)
def test_a_checkpoint_of_other_teachers_is_refused(tmp_path, teacher, said):
    moved, budget = ResponseBudget(**PAPER), ResponseBudget(**PAPER)
    moved.load_state_dict({"limit": 3048, "no_hit_steps": 2})
    save_state(tmp_path, State(several(), moved))
    other = PruneOPDConfig(teacher=TeacherConfig(**teacher))
    with pytest.raises(ValueError, match=re.escape(f"its run had {said}")):
        load_state(tmp_path, State(other, budget))
    load_state(tmp_path, State(other.changed(resume="any"), budget))
    assert budget.limit == 3048


def test_a_checkpoint_of_one_teacher_is_refused_by_several(tmp_path):
    save_state(
        tmp_path, State(PruneOPDConfig(teacher=TeacherConfig(path="T")), ResponseBudget(**PAPER))
    )
    with pytest.raises(ValueError, match=r"its run had prune_opd\.teacher\.models=\{\}, this one"):
        load_state(tmp_path, State(several(), ResponseBudget(**PAPER)))


def test_the_same_teachers_in_another_order_are_the_same(tmp_path):
    save_state(tmp_path, State(several(), ResponseBudget(**PAPER)))
    turned = several(models=dict(reversed(MODELS.items())))
    load_state(tmp_path, State(turned, budget := ResponseBudget(**PAPER)))
    assert budget.limit == 2048
