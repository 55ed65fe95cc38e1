"""The method goes over verl's trainers and a user's own, in their modes and with their workers.

What is real: verl's trainers and workers, which are put together and not started.
"""

from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import ray
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.engine_workers import ActorRolloutRefWorker

from recipe.prune_opd.records.tally import Tally
from recipe.prune_opd.training import trainer as trainer_module
from recipe.prune_opd.training.modes import find_trainer, mode_of, with_method
from recipe.prune_opd.training.trainer import PruneOPD, PruneOPDTrainer
from recipe.prune_opd.training.worker import PruneOPDWorker

STOCK = {
    "sync": PPOTrainerSync,
    "colocate_async": PPOTrainerColocateAsync,
    "separate_async": PPOTrainerSeparateAsync,
}


class Theirs(PPOTrainerColocateAsync):
    """A trainer of a user's own."""


class Apart(PPOTrainer):
    """One that stands on none of verl's."""

    def on_step_end(self) -> None:
        """See ``PPOTrainer``."""

    def on_sample_end(self) -> None:
        """See ``PPOTrainer``."""


@pytest.fixture
def registered() -> Any:
    """Registers trainers with verl while a test runs."""
    names: list[str] = []

    def register(name: str, trainer: type) -> None:
        register_trainer(name)(trainer)
        names.append(name)

    yield register
    for name in names:
        del TRAINER_REGISTRY[name]


@pytest.fixture
def made(monkeypatch) -> Any:
    """An instance that a configuration's trainer mode gives, of which nothing is started."""
    monkeypatch.setattr(PruneOPD, "__init__", lambda self, config: None)

    def make(mode: str, front: type = PruneOPDTrainer) -> Any:
        return front(config=OmegaConf.create({"prune_opd": {"trainer_mode": mode}}))

    return make


@pytest.mark.parametrize("mode", STOCK)
def test_the_method_goes_over_each_of_verls_trainers(made, mode):
    trainer = made(mode)
    assert isinstance(trainer, PruneOPDTrainer)
    assert isinstance(trainer, STOCK[mode])
    assert mode_of(type(trainer)) == mode


def test_the_method_goes_over_a_trainer_of_ones_own(made, registered):
    """By the name of its class, or by that it is registered under; verl sees the mode that it
    stands on."""
    registered("theirs", Theirs)
    for name in (f"{__name__}:Theirs", "theirs"):
        trainer = made(name)
        assert isinstance(trainer, Theirs)
        assert mode_of(type(trainer)) == "colocate_async"


def test_a_trainer_that_stands_on_none_of_verls_needs_a_name(made, registered):
    with pytest.raises(ValueError, match=r"got test_modes:Apart, allowed: a subclass of one of"):
        find_trainer(f"{__name__}:Apart")
    registered("apart", Apart)
    assert mode_of(type(made("apart"))) == "apart"


def test_subclasses_of_the_front_and_of_the_mixin_are_what_they_say(made):
    class Mine(PruneOPDTrainer):
        pass

    class Mixed(PruneOPD, Theirs):
        def __new__(cls, config: Any) -> Any:
            return object.__new__(cls)

    assert isinstance(made("separate_async", Mine), Mine)
    assert mode_of(type(made("separate_async", Mine))) == "separate_async"
    assert type(made("sync", Mixed)) is Mixed
    assert mode_of(Mixed) == "colocate_async"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such", "got 'no_such', allowed: .*sync, .*or package.module:Name of your own"),
        ("no.such:Trainer", "no.such:Trainer cannot be imported"),
        ("collections:Counter", "got 'collections:Counter', allowed: a subclass of verl"),
        ("recipe.prune_opd.training.trainer:PruneOPDTrainer", "has the method already"),
    ],
)
def test_what_is_no_trainer_is_refused(name, reason):
    with pytest.raises(ValueError, match=rf"^prune_opd.trainer_mode: .*{reason}"):
        find_trainer(name)


# ------------------------------------------------------------------------------------------ workers


@pytest.mark.parametrize("base", [ActorRolloutRefWorker, DetachActorWorker])
def test_a_worker_keeps_what_it_can(base):
    worker = with_method(ray.remote(base)).__ray_actor_class__
    assert issubclass(worker, PruneOPDWorker)
    assert issubclass(worker, base)
    assert worker.init_model is PruneOPDWorker.init_model
    sent = cloudpickle.loads(cloudpickle.dumps(worker))  # as Ray sends it
    assert [one.__name__ for one in sent.__mro__] == [one.__name__ for one in worker.__mro__]


@pytest.mark.parametrize(
    ("mode", "hybrid", "role", "base"),
    [
        ("colocate_async", True, Role.ActorRollout, ActorRolloutRefWorker),
        ("separate_async", True, Role.ActorRollout, DetachActorWorker),
        ("separate_async", False, Role.Actor, DetachActorWorker),
    ],
)
def test_the_student_keeps_the_role_and_the_worker_of_its_mode(
    compose, made, mode, hybrid, role, base
):
    trainer = made(mode)
    trainer.config = compose("+recipe=prune_opd", "prune_opd.teacher.path=T")
    trainer._enable_hybrid_replicas = hybrid
    trainer.home = SimpleNamespace(pool=lambda config: None)
    trainer._init_resource_pool_mgr()
    ((found, worker),) = trainer.role_worker_mapping.items()
    assert found == role
    assert issubclass(worker.__ray_actor_class__, base)
    assert issubclass(worker.__ray_actor_class__, PruneOPDWorker)


# -------------------------------------------------------------------------------------------- steps


class Workers:
    """Stands for the workers of ``separate_async``; notes what they are asked to do."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda number: self.did.append((name, number))


def test_one_more_pass_of_the_student_sees_the_weights_of_the_step(made):
    """As verl does it for old log-probs, and the current ones are there again afterwards."""
    trainer, workers = made("separate_async"), Workers()
    trainer.actor_rollout_wg, trainer.local_trigger_step = workers, 0
    with trainer._old_weights():
        workers.did.append("pass")
    assert workers.did == ["pass"]
    trainer.local_trigger_step, workers.did = 2, []
    with trainer._old_weights():
        workers.did.append("pass")
    before = [("save_model_to_cpu", 2), ("restore_model_from_cpu", 0)]
    after = [("restore_model_from_cpu", 2), ("clear_cpu_model", 2)]
    assert workers.did == [*before, "pass", *after]
    trainer.actor_rollout_wg = object()  # of a trainer of one's own, which puts no weights by
    with trainer._old_weights():
        pass


def test_a_step_of_several_updates_is_one_to_the_limit(made, monkeypatch, tally_of):
    """And one to logs and records: they are told of all its responses together."""
    updates = [tally_of({"tokens": 4}, {"tokens": 2}), tally_of({"tokens": 6})]

    def stock(self: Any, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> KVBatchMeta:
        self._tallies += updates
        return "batch"

    monkeypatch.setattr(PPOTrainerSeparateAsync, "step", stock)
    ended: list[tuple[Any, Tally, Any]] = []
    monkeypatch.setattr(
        trainer_module.PruneOPD, "_end_step", lambda self, *given: ended.append(given)
    )
    trainer, metrics = made("separate_async"), {}
    for _ in range(2):  # nothing is left of the step before
        assert trainer.step(metrics, {}) == "batch"
        batch, tally, given = ended.pop()
        assert (batch, tally.column("tokens").tolist()) == ("batch", [4, 2, 6])
        assert tally.total["tokens"] == sum(one.total["tokens"] for one in updates)
        assert given is metrics
