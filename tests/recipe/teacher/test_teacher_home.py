"""A step with a teacher on servers trains as with one at home, and says how the servers did.

Workers, queue and rollout are stood in for.
"""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.single_controller.ray.base import ResourcePoolManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from recipe.prune_opd.config import (
    BudgetConfig,
    DriftConfig,
    GateConfig,
    PruneOPDConfig,
    TeacherConfig,
    TeacherUrlConfig,
)
from recipe.prune_opd.method.drift import DriftMetric
from recipe.prune_opd.records.tally import Tally
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training import trainer as trainer_module
from recipe.prune_opd.training.checkpoint import STATE_FILE
from recipe.prune_opd.training.faults import TopKMass, refuse_missing
from recipe.prune_opd.training.fields import (
    ERRORS,
    MODEL_FIELDS,
    POSITIONS,
    SUMS,
    TEACHER_SAMPLED,
    advantage_fields,
    check_lengths,
    served_fields,
    teacher_fields,
)
from recipe.prune_opd.training.fields import LIMIT as ROW_LIMIT
from recipe.prune_opd.training.preflight import check_values
from recipe.prune_opd.training.trainer import PruneOPDTrainer
from recipe.prune_opd.training.worker import PruneOPDWorker
from verl_ext.rollout.teacher_pool import TeacherPool
from verl_ext.rollout.url_teacher import UrlTeacher

LIMIT = 100


def prune_opd_of(
    home: str = "server", strategy: str = "intersection", gate: bool = False, **url: Any
) -> PruneOPDConfig:
    given = TeacherUrlConfig(**{"urls": ["http://10.0.0.1:8000"]} | url)
    teacher = TeacherConfig(path="T", home=home, max_missing=0.25, url=given)
    return PruneOPDConfig(teacher=teacher, strategy=strategy, gate=GateConfig(enable=gate))


class OverSync(PruneOPDTrainer, PPOTrainerSync):
    """The trainer over verl's synchronous one."""


def trainer_of(prune_opd: PruneOPDConfig, step: int = 5, **values: Any) -> PruneOPDTrainer:
    trainer = object.__new__(OverSync)
    given = BudgetConfig(init=LIMIT, min=1, max=LIMIT, margin=10, patience=1)
    prune_opd, budget = prune_opd.changed(budget=given), given.build()
    vars(trainer).update(prune_opd=prune_opd, global_steps=step, budget=budget)
    trainer.home = build_home(prune_opd)
    updates = {"local_trigger_step": 0, "parameter_sync_step": 1, "_tallies": []}
    vars(trainer).update({"recorder": None, "phase": None} | updates | values)
    return trainer


# -------------------------------------------------------------------------------------------- roles


@pytest.fixture(scope="module")
def composed(compose) -> DictConfig:
    return compose("+recipe=prune_opd", "prune_opd.teacher.path=T")


def roles_of(composed: DictConfig, **settings: Any) -> tuple[dict[Role, Any], Any]:
    """Worker classes of the roles, and verl's manager of their devices."""
    config = copy.deepcopy(composed)
    config.trainer.n_gpus_per_node = 4
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    trainer = trainer_of(check_values(config)[0], config=config)
    trainer._init_resource_pool_mgr()
    classes = {role: one.__ray_actor_class__ for role, one in trainer.role_worker_mapping.items()}
    return classes, trainer.resource_pool_manager


SERVER = {
    "prune_opd__teacher__home": "server",
    "prune_opd__strategy": "sampled",
    "prune_opd__teacher__server__replicas": 3,
}
GATE = {"prune_opd__gate__enable": True, "prune_opd__teacher__server__replicas": 3}
URL = {
    "prune_opd__teacher__home": "url",
    "prune_opd__teacher__url__urls": ["http://10.0.0.1:8000"],
    "prune_opd__strategy": "sampled",
}


@pytest.mark.parametrize("lora", [0, 8])
@pytest.mark.parametrize(
    "settings",
    [{}, GATE, SERVER, SERVER | GATE, URL],
    ids=["worker_group", "gate", "server", "both", "url"],
)
def test_the_student_keeps_the_role_that_verl_gives_it(composed, settings, lora):
    """Wherever the teacher is: verl is told of no reference model."""
    classes, pools = roles_of(composed, actor_rollout_ref__model__lora_rank=lora, **settings)
    assert classes == {Role.ActorRollout: PruneOPDWorker}
    assert pools.mapping[Role.ActorRollout] == "global_pool"
    assert not {Role.ActorRolloutRef, Role.RefPolicy} & pools.mapping.keys()
    started = settings not in ({}, URL)
    assert pools.mapping.get(Role.TeacherModel) == ("teacher_pool" if started else None)
    expected = {"global_pool": [4]} | ({"teacher_pool": [3]} if started else {})
    assert pools.resource_pool_spec == expected


class Devices:
    """verl's pool of devices, which notes when they are taken."""

    def __init__(self, name: str, happened: list[str]):
        self.name, self.happened = name, happened

    def get_placement_groups(self, device_name: str) -> None:
        self.happened.append(f"takes {self.name}")


def started_run(composed: DictConfig, monkeypatch, starting: Future[str]) -> tuple[Any, list[str]]:
    """A trainer before its workers are made, and what has happened up to there."""
    config, happened = copy.deepcopy(composed), list[str]()
    OmegaConf.update(config, "prune_opd.gate.enable", True)
    trainer = trainer_of(check_values(config)[0], config=config, actor_rollout_wg="workers")
    monkeypatch.setattr(PPOTrainerSync, "on_init_end", lambda self: happened.append("student"))

    def create(pools: ResourcePoolManager) -> None:
        pools.resource_pool_dict |= {
            one: Devices(one, happened) for one in pools.resource_pool_spec
        }
        happened.append("creates")

    def start(
        pool: TeacherPool, config: DictConfig, devices: Devices, per_node: int
    ) -> Future[str]:
        happened.append(f"starts on {devices.name}")
        return starting

    monkeypatch.setattr(ResourcePoolManager, "create_resource_pool", create)
    monkeypatch.setattr(TeacherPool, "start", start)
    trainer._init_resource_pool_mgr()
    trainer.resource_pool_manager.create_resource_pool()
    return trainer, happened


def test_the_teachers_servers_start_beside_the_student(composed, monkeypatch):
    """Once the trainer has its devices; who asks them waits for them."""
    starting = Future[str]()
    trainer, happened = started_run(composed, monkeypatch, starting)
    devices = ["takes global_pool", "takes teacher_pool"]
    assert happened == ["creates", *devices, "starts on teacher_pool"]
    starting.set_result("servers")
    trainer.on_init_end()
    assert happened[-1] == "student"
    assert trainer.teacher_servers == "servers"


def test_what_the_teachers_servers_could_not_start_for_ends_the_run(composed, monkeypatch):
    starting = Future[str]()
    trainer, _ = started_run(composed, monkeypatch, starting)
    starting.set_exception(RuntimeError("no such model"))
    with pytest.raises(RuntimeError, match="no such model"):
        trainer.on_init_end()


@pytest.mark.parametrize(
    ("home", "gate"), [("server", False), ("server", True), ("worker_group", True)]
)
def test_the_rollout_reaches_the_teachers_servers(monkeypatch, home: str, gate: bool):
    monkeypatch.setattr(PPOTrainerSync, "get_llm_client", lambda self: "verl's own")
    trainer = trainer_of(
        prune_opd_of(home, gate=gate),
        config="config",
        teacher_vocab_sizes=[77],
        teacher_servers="servers",
    )
    pool = SimpleNamespace(clients=lambda config, servers: [f"client of {servers} under {config}"])
    trainer.home.pool = lambda config: pool
    client = trainer.get_llm_client()
    assert isinstance(client, TeachingClient)
    assert client.client == "verl's own"
    assert client.teacher == "client of servers under config"
    assert (client.prune_opd, client.vocab_size) == (trainer.prune_opd, 77)
    assert client.teaches == (home == "server")


def test_the_rollout_reaches_servers_that_somebody_else_runs(monkeypatch):
    """None of the run's own has been started."""
    monkeypatch.setenv("TEST_TEACHER_KEY", "secret")
    prune_opd = prune_opd_of("url", model="M", api="sglang", api_key_env="TEST_TEACHER_KEY")
    monkeypatch.setattr(PPOTrainerSync, "get_llm_client", lambda self: "verl's own")
    trainer = trainer_of(prune_opd, config="config", teacher_vocab_sizes=[77], teacher_servers=None)
    client = trainer.get_llm_client()
    assert client.teacher == UrlTeacher(["http://10.0.0.1:8000"], "M", "sglang", "TEST_TEACHER_KEY")
    assert client.teaches


def test_a_teacher_in_the_worker_group_needs_no_client(monkeypatch):
    monkeypatch.setattr(PPOTrainerSync, "get_llm_client", lambda self: "verl's own")
    given = {"teacher_vocab_sizes": [77], "teacher_servers": None}
    trainer = trainer_of(prune_opd_of("worker_group"), config="config", **given)
    assert trainer.get_llm_client() == "verl's own"


# ------------------------------------------------------------------------------------------- passes


def passes_of(
    prune_opd: PruneOPDConfig,
) -> tuple[list[tuple[str, tuple[str, ...]]], SimpleNamespace]:
    calls: list[tuple[str, tuple[str, ...]]] = []
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"temperature": 0.7}}})
    trainer = trainer_of(prune_opd, config=config)
    trainer._on_workers = lambda method, batch, fields: calls.append((method, fields))
    batch = SimpleNamespace(extra_info={})
    assert trainer._compute_ref_log_prob(batch, {}) is batch
    return calls, batch


@pytest.mark.parametrize("home", ["server", "url"])
@pytest.mark.parametrize("strategy", ["only_tch", "intersection", "sampled"])
def test_the_servers_answers_take_the_place_of_the_teachers_pass(strategy: str, home: str):
    served, batch = passes_of(config := prune_opd_of(home, strategy))
    scored, _ = passes_of(prune_opd_of("worker_group", strategy))
    assert served[0] == ("read_served_scores", served_fields(build_home(config)))
    assert scored[0] == ("compute_ref_log_prob", teacher_fields(build_home(config)))
    assert served[1:] == scored[1:]
    assert [method for method, _ in served[1:]] == ["compute_student_on_teacher"] * (
        strategy == "only_tch"
    )
    assert batch.extra_info == ({"temperature": 0.7} if strategy == "only_tch" else {})


@pytest.mark.parametrize("home", ["worker_group", "server"])
def test_the_students_pass_fetches_what_a_pass_needs_and_nothing_of_the_teacher(
    monkeypatch, home: str
):
    asked = []

    def stock(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        asked.append(batch.fields)
        return batch

    monkeypatch.setattr(PPOTrainerSync, "_compute_old_log_prob", stock)
    batch = SimpleNamespace(fields=None)
    assert trainer_of(prune_opd_of(home))._compute_old_log_prob(batch, {}) is batch
    assert asked == [list(MODEL_FIELDS)]


# ----------------------------------------------------------------------------------- missing scores


class Queue:
    """Stands for TransferQueue with what workers have written of a batch, some rows of it padding.

    What is asked for is remembered: fields, and how many responses of them.
    """

    def __init__(self, tally: Tally, errors: list[dict[str, str]], padding: int = 0):
        limits = torch.tensor([LIMIT] * len(tally))
        self.fields = {
            SUMS: tally.rows,
            POSITIONS: tally.positions,
            ERRORS: errors,
            ROW_LIMIT: limits,
        }
        self.keys = [f"key {row}" for row in range(len(tally))]
        self.tags = [
            {"response_len": 10, "is_padding": row >= len(tally) - padding}
            for row in range(len(tally))
        ]
        self.asked: list[tuple[list[str], int]] = []

    def kv_batch_get(
        self, keys: list[str], partition_id: str, select_fields: list[str]
    ) -> TensorDict:
        self.asked.append((select_fields, len(keys)))
        rows = [self.keys.index(key) for key in keys]
        found = TensorDict({}, batch_size=len(rows))
        for name in select_fields:
            if name == ERRORS:
                values = [self.fields[name][row] for row in rows]
                tu.assign_non_tensor_stack(found, name, values)
            else:
                found[name] = self.fields[name][rows]
        return found


@pytest.fixture
def step(monkeypatch, tally_of) -> Callable[..., tuple[dict[str, Any], Queue]]:
    """Metrics of a batch, and the queue they were made from."""

    def stepped(
        trainer: PruneOPDTrainer,
        *responses: dict[str, float],
        errors: list[dict[str, str]] | None = None,
        padding: int = 0,
    ) -> tuple[dict[str, Any], Queue]:
        tally = tally_of(*responses, longest=LIMIT)
        queue = Queue(tally, errors or [{}] * len(tally), padding)
        monkeypatch.setattr(trainer_module.tq, "kv_batch_get", queue.kv_batch_get)
        calls: list[tuple[str, tuple[str, ...]]] = []
        trainer._on_workers = lambda method, batch, names: calls.append((method, names))
        batch = SimpleNamespace(
            keys=queue.keys, tags=queue.tags, partition_id="train", extra_info={}
        )
        metrics: dict[str, Any] = {}
        try:
            trainer._tallies, trainer._mass = [], TopKMass()
            trainer._compute_advantage(batch, metrics)
        finally:
            assert calls == [("compute_pruned_advantage", advantage_fields(trainer.home))]
        trainer._end_step(batch, *trainer._tallies, metrics)
        return metrics, queue

    return stepped


def kept(tokens: int, missing: int = 0, **score: float) -> dict[str, float]:
    """Numbers of a response that keeps so many tokens, and of its score."""
    given = {"tokens": tokens, "missing": missing, "effective_length": tokens}
    return given | {f"score_{name}": value for name, value in score.items()}


@pytest.mark.parametrize("gate", [False, True])
def test_a_step_tells_how_the_servers_did(step, gate: bool):
    responses = [
        kept(10, late=1, computed=20, began=1, ended=3),
        kept(8, 2, failed=2, computed=10, began=2, ended=4),
        # Verl copies a response's.
        kept(1, 90, late=9, failed=9, computed=99, began=1, ended=99),
    ]
    errors = [{"score": "slow"}, {"score": "gone", "gate": "other"}, {"score": "padding"}]
    metrics, _ = step(trainer_of(prune_opd_of(gate=gate)), *responses, errors=errors, padding=1)
    found = {
        name.rpartition("/")[2]: value for name, value in metrics.items() if "/teacher/" in name
    }
    assert found["missing_ratio"] == pytest.approx(0.1)
    assert (found["late_answers"], found["failed_answers"], found["computed_tokens"]) == (1, 2, 30)
    assert found["waited"] == 2
    assert ("prune_opd/gate/stopped_ratio" in metrics) == gate


def test_with_a_worker_group_a_step_tells_nothing_of_servers(step):
    metrics, _ = step(trainer_of(prune_opd_of("worker_group", gate=True)), kept(10))
    assert not [name for name in metrics if "/teacher/" in name]


@pytest.mark.parametrize("home", ["worker_group", "server"])
@pytest.mark.parametrize("gate", [False, True])
def test_the_driver_gets_a_row_per_response_and_one_error_text(step, gate: bool, home: str):
    """No report of an agent loop, and nothing of shape (responses, tokens)."""
    responses = [kept(10), kept(9, late=1), kept(8), kept(7)]
    for response in responses[:3]:
        response["gate_failed"] = 1
    errors = [{"gate": "a"}, {"gate": "b", "score": "c"}, {"gate": "d"}, {}]
    trainer = trainer_of(prune_opd_of(home, gate=gate))
    _, queue = step(trainer, *responses, errors=errors, padding=1)
    texts = [([ERRORS], 1)] * (gate + (home == "server"))
    assert queue.asked == [([SUMS, POSITIONS], 3), *texts]


def test_without_faults_no_error_text_is_fetched(step):
    _, queue = step(trainer_of(prune_opd_of(gate=True)), kept(10), kept(9))
    assert queue.asked == [([SUMS, POSITIONS], 2)]


def test_warnings_name_the_last_error_of_those_who_asked(step, caplog):
    """The gate's and the scores' are not mixed up, and padding has none."""
    responses = [kept(10, late=1), kept(9, failed=2) | {"gate_late": 3}, kept(8, late=9)]
    errors = [{"score": "slow"}, {"score": "gone", "gate": "no answer"}, {"score": "padding"}]
    step(trainer_of(prune_opd_of(gate=True)), *responses, errors=errors, padding=1)
    assert caplog.messages == [
        "step 5: the teacher was late 1 times and failed 2 times, 0.00% of the tokens have no"
        " score; gone",
        "step 5: the teacher was late 3 times and failed 0 times, 0 responses went on without a"
        " gate; no answer",
    ]


def test_a_step_with_too_many_missing_ends_before_it_changes_anything(monkeypatch, step):
    trainer = trainer_of(prune_opd_of())
    monkeypatch.setattr(trainer, "_save_before_step", lambda: "saved", raising=False)
    before = trainer.budget.state_dict()
    failed = kept(5, 6, failed=3, began=1, ended=2)
    with pytest.raises(
        RuntimeError,
        match=r"^step 5: 28\.6% of the tokens lack the teacher's score.*last error: gone; saved$",
    ):
        step(trainer, kept(10), failed, errors=[{}, {"score": "gone"}])
    assert trainer.budget.state_dict() == before
    step(trainer, kept(10), kept(10, 6))
    assert trainer.budget.state_dict() != before


def test_a_response_of_which_nothing_was_scored_does_not_move_the_limit(step):
    """Its effective length is 0 for no fault of its own."""
    trainer = trainer_of(prune_opd_of())
    metrics, _ = step(trainer, kept(LIMIT), kept(LIMIT), kept(0, 5), kept(3, 1))
    without = trainer_of(prune_opd_of())
    expected = without.budget.update([LIMIT, LIMIT, 3])
    assert {name: metrics[name] for name in expected} == expected
    assert trainer.budget.state_dict() == without.budget.state_dict()


def test_every_prompt_is_tagged_with_its_own_limit(monkeypatch):
    submitted: list[TensorDict] = []
    stock = lambda self, batch: submitted.append(batch) or len(batch)  # noqa: E731
    monkeypatch.setattr(PPOTrainerSync, "_submit_batch_to_rollout", stock)
    trainer = trainer_of(prune_opd_of())
    for limits in ([LIMIT] * 3, [7, 7, 9]):
        trainer.budget.limits = lambda count, own=limits: own[:count]
        assert trainer._submit_batch_to_rollout(TensorDict({}, batch_size=3)) == 3
        # As verl hands rows on: in a chunk for each rollout worker, one row at a time.
        chunks = submitted.pop().chunk(2)
        rows = [int(chunk[ROW_LIMIT][i]) for chunk in chunks for i in range(len(chunk))]
        assert rows == limits


@pytest.mark.parametrize(
    ("limits", "largest", "refused"),
    [
        ([10, 7, 3], 10, None),
        ([9, 7, 3], 10, r"has 10 tokens under a limit of 9:"),
        ([10, 6, 3], 10, r"has 7 tokens under a limit of 6:"),
        # A rollout that was recorded under other limits.
        ([10, 7, 3], 9, r"has 10 tokens under a limit of 9:"),
    ],
)
def test_no_response_may_be_longer_than_its_own_limit(limits, largest, refused):
    """Padding is a copy of some response and has no limit of its own."""
    tags = [{"response_len": length} for length in (10, 7, 3)]
    tags.insert(1, {"response_len": 99, "is_padding": True})
    if refused is None:
        check_lengths(tags, limits, largest)
        check_lengths(tags, torch.tensor(limits), largest)
    else:
        with pytest.raises(RuntimeError, match=refused):
            check_lengths(tags, limits, largest)


def test_a_step_is_recorded_with_its_limits_and_samples_of_real_responses(step):
    written: list[tuple[Any, ...]] = []
    recorder = SimpleNamespace(write=lambda *given: written.append(given))
    trainer = trainer_of(prune_opd_of())
    trainer.recorder = recorder
    trainer._samples = lambda batch, rows: (batch.partition_id, rows)
    step(trainer, kept(9), kept(8), kept(7), padding=1)
    ((number, tally, limits, fetch, generated),) = written
    assert generated is None, "every response of a step was generated in it"
    assert (number, tally.column("tokens").tolist()) == (5, [9, 8])
    assert limits == (LIMIT, trainer.budget.limit)
    assert fetch([1]) == ("train", [1])


def missing(ratio: float, late: float = 0.0, failed: float = 0.0) -> dict[str, float]:
    given = {"late_answers": late, "failed_answers": failed, "missing_ratio": ratio}
    return {f"prune_opd/teacher/{name}": value for name, value in given.items()}


@pytest.mark.parametrize(
    ("error", "named"),
    [
        ("RuntimeError: out of memory", "RuntimeError: out of memory"),
        ("", "rows that are not finite"),
    ],
)
def test_too_many_missing_scores_end_the_run(error: str, named: str):
    with pytest.raises(RuntimeError) as ended:
        refuse_missing(5, missing(0.26, late=2, failed=7), error, 0.25, lambda: "it is in FOLDER")
    assert (
        str(ended.value) == "step 5: 26.0% of the tokens lack the teacher's score, allowed:"
        " prune_opd.teacher.max_missing=25.0%; 2 answers were late, 7 failed, the last error:"
        f" {named}; it is in FOLDER"
    )


def not_saved() -> str:
    pytest.fail("nothing is to be saved")


@pytest.mark.parametrize(
    "given", [missing(0.25), missing(0.001, late=1), missing(0, late=1), missing(0, failed=1)]
)
def test_up_to_the_bound_missing_scores_are_a_warning(caplog, given: dict[str, float]):
    with caplog.at_level(logging.WARNING):
        refuse_missing(5, given, "RuntimeError: out of memory", 0.25, not_saved)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("step 5: the teacher was late ")
    assert (
        f"{100 * given['prune_opd/teacher/missing_ratio']:.2f}% of the tokens have no score" in said
    )
    assert said.endswith("RuntimeError: out of memory")


def test_where_nothing_is_missing_nothing_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        refuse_missing(5, missing(0), "", 0.25, not_saved)
    assert not caplog.records


# ------------------------------------------------------------------------------ state before a step


PROMPTS, BATCH = 10, 2


def collate(rows: list[int]) -> dict[str, Any]:
    return {
        "raw_prompt": np.array([f"p{row}" for row in rows], dtype=object),
        "number": torch.tensor(rows),
    }


@pytest.fixture
def start(tmp_path) -> Callable[..., PruneOPDTrainer]:
    """A trainer that has been started, with verl's own dataloader and checkpoints."""

    def started(resume_mode: str = "auto", resume_from_path: str | None = None) -> PruneOPDTrainer:
        config = {
            "data": {"train_batch_size": BATCH},
            "trainer": {
                "default_local_dir": str(tmp_path),
                "default_hdfs_dir": None,
                "max_actor_ckpt_to_keep": None,
                "resume_mode": resume_mode,
                "resume_from_path": resume_from_path,
                "del_local_ckpt_after_load": False,
            },
            "actor_rollout_ref": {"actor": {"checkpoint": {"async_save": False}}},
        }
        saved: list[tuple[str, int]] = []
        trainer = trainer_of(
            prune_opd_of(),
            step=0,
            config=OmegaConf.create(config),
            train_dataloader=StatefulDataLoader(
                list(range(PROMPTS)), batch_size=BATCH, collate_fn=collate
            ),
            train_dataloader_it=None,
            use_critic=False,
            trainer_mode="sync",
            saved=saved,
            actor_rollout_wg=SimpleNamespace(
                save_checkpoint=lambda local, remote, step, max_ckpt_to_keep: saved.append(
                    (local, step)
                ),
                load_checkpoint=lambda local_path, del_local_after_load: None,
            ),
            checkpoint_callback=SimpleNamespace(on_save=lambda **given: None),
        )
        trainer._load_checkpoint()
        return trainer

    return started


def numbers(trainer: PruneOPDTrainer) -> list[int]:
    return trainer._next_train_batch()["number"].tolist()


def advance(trainer: PruneOPDTrainer, to: int) -> list[int]:
    """Begin the steps up to one, whose prompts are returned."""
    assert trainer.global_steps < to
    while trainer.global_steps < to:
        trainer.global_steps += 1
        taken = numbers(trainer)
    return taken


@pytest.mark.parametrize("step", [2, 3, 5, 6, 7, 11])
def test_the_state_before_a_step_has_its_prompts_still_to_come(start, tmp_path, step: int):
    """Epochs end after steps 5 and 10."""
    trainer = start()
    taken = advance(trainer, step)
    folder = tmp_path / f"global_step_{step - 1}"
    trainer.budget.update([3])
    before = trainer.budget.state_dict()
    said = trainer._save_before_step()
    assert said.startswith(f"the state before this step is in {folder}, where the run goes on")
    assert trainer.saved == [(str(folder / "actor"), step - 1)]
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == str(step - 1)
    assert OmegaConf.load(folder / STATE_FILE).budget == before
    resumed = start()
    assert resumed.global_steps == step - 1
    assert resumed.budget.state_dict() == before
    assert advance(resumed, step) == taken
    assert advance(resumed, step + 1) == advance(start("disable"), step + 1)


def test_a_step_that_takes_prompts_twice_goes_back_to_the_first(start):
    trainer = start()
    advance(trainer, 2)
    trainer.global_steps = 3
    taken = numbers(trainer), numbers(trainer)
    trainer._save_before_step()
    resumed = start()
    assert resumed.global_steps == 2
    assert (numbers(resumed), numbers(resumed)) == taken


def test_a_checkpoint_that_is_there_is_not_written_again(start, tmp_path):
    trainer = start()
    advance(trainer, 2)
    trainer._save_checkpoint()
    (written,) = trainer.saved
    data = (tmp_path / "global_step_2" / "data.pt").read_bytes()
    advance(trainer, 3)
    assert str(tmp_path / "global_step_2") in trainer._save_before_step()
    assert trainer.saved == [written]
    assert (tmp_path / "global_step_2" / "data.pt").read_bytes() == data


def test_a_checkpoint_of_an_earlier_step_does_not_do(start, tmp_path):
    trainer = start()
    advance(trainer, 2)
    trainer._save_checkpoint()
    advance(trainer, 4)
    assert str(tmp_path / "global_step_3") in trainer._save_before_step()
    assert [step for _, step in trainer.saved] == [2, 3]


def test_what_an_older_run_left_in_the_folder_is_not_this_runs_state(start, tmp_path):
    """A checkpoint of the same step that is whole, but of other weights, other data and another
    limit."""
    older = start()
    advance(older, 2)
    numbers(older)
    older.budget.update([3])
    older._save_checkpoint()
    trainer = start("disable")
    taken = advance(trainer, 3)
    before = trainer.budget.state_dict()
    assert before != older.budget.state_dict()
    assert str(tmp_path / "global_step_2") in trainer._save_before_step()
    assert [step for _, step in trainer.saved] == [2]
    resumed = start()
    assert resumed.budget.state_dict() == before
    assert advance(resumed, 3) == taken


def test_a_checkpoint_that_was_cut_off_is_written_again(start, tmp_path):
    trainer = start()
    advance(trainer, 3)
    (tmp_path / "global_step_2" / "actor").mkdir(parents=True)
    trainer._save_before_step()
    assert (tmp_path / "global_step_2" / "data.pt").is_file()


def test_before_the_first_step_there_is_nothing_to_save(start, tmp_path):
    trainer = start()
    advance(trainer, 1)
    assert trainer._save_before_step() == "no step has been trained yet, start again"
    assert not trainer.saved
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [False, True])
def test_the_first_step_after_a_resume_goes_back_to_where_it_came_from(
    start, tmp_path, named: bool
):
    """A checkpoint that was loaded counts as one that was saved."""
    first, folder = start(), tmp_path / "global_step_4"
    advance(first, 4)
    first._save_checkpoint()
    trainer = start("resume_path", str(folder)) if named else start()
    advance(trainer, 5)
    assert f"is in {folder}, " in trainer._save_before_step()
    assert not trainer.saved


def test_later_steps_after_a_resume_are_saved(start, tmp_path):
    first = start()
    advance(first, 4)
    first._save_checkpoint()
    trainer = start()
    taken = advance(trainer, 6)
    assert str(tmp_path / "global_step_5") in trainer._save_before_step()
    assert [step for _, step in trainer.saved] == [5]
    assert advance(start(), 6) == taken


# ------------------------------------------------------------------------------------------ samples


class OfSampled(DriftMetric):
    """A metric of a user's own that reads more than both top k."""

    needs = ("sampled",)

    def events(self, scores, mask):
        return (scores.sampled.teacher < -3) & mask


@pytest.mark.parametrize("drift", [{"metric": f"{__name__}:OfSampled"}, {"weights": "importance"}])
def test_samples_come_with_what_metric_and_weights_need(drift):
    drift = DriftConfig(**drift)
    trainer = trainer_of(prune_opd_of("worker_group", "only_tch").changed(drift=drift))
    fields: list[list[str]] = []
    trainer._fetch = lambda batch, names, rows: fields.append(names) or TensorDict({}, batch_size=0)
    assert trainer._samples(SimpleNamespace(), []) == []
    assert {"old_log_probs", TEACHER_SAMPLED} <= set(fields[0])
