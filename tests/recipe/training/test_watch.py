"""A run that has lost a process and stands still is ended with a sentence; any other goes on.

Real actors of a small Ray.
"""

import logging
import math
import os
import time
from typing import Any

import pytest
import ray

from recipe.prune_opd.training import watch
from recipe.prune_opd.training.watch import Watch


@ray.remote(num_cpus=0)
class Process:
    def pid(self) -> int:
        return os.getpid()

    def wait(self, path: str) -> None:
        while not os.path.exists(path):
            pass


def start(**config: Any) -> None:
    quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(num_cpus=1, _system_config=config, **quiet)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    start()
    yield
    ray.shutdown()


@pytest.fixture
def starved(cluster):
    """A Ray that takes any process for one too many."""
    ray.shutdown()
    start(memory_usage_threshold=0.001, memory_monitor_refresh_ms=100)
    yield
    ray.shutdown()
    start()


class Clock:
    def __init__(self, monkeypatch):
        self.now, self.steps, self.ended = 0.0, 0, []
        monkeypatch.setattr(watch.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def watching(clock, deadline=60.0, **actors):
    return Watch(actors, lambda: clock.steps, deadline, clock.ended.append)


def look_until_dead(found: Watch, count: int) -> None:
    for _ in range(3000):
        found.look()
        if len(found.dead) == count:
            return
        time.sleep(0.01)
    pytest.fail(f"dead: {found.dead}")


def test_processes_that_live_are_waited_for(clock, tmp_path):
    """One that is busy does not answer, and is not dead."""
    actors = [Process.remote() for _ in range(2)]
    ray.get([actor.pid.remote() for actor in actors])
    busy = actors[0].wait.remote(str(tmp_path / "done"))
    found = watching(clock, one=actors[0], other=actors[1])
    for _ in range(20):
        clock.now += 100
        found.look()
    (tmp_path / "done").touch()
    ray.get(busy)
    assert (found.dead, clock.ended) == ({}, [])


def test_a_run_that_stands_still_without_a_process_is_ended(clock, caplog):
    actors = [Process.remote() for _ in range(2)]
    ray.get([actor.pid.remote() for actor in actors])
    found = watching(clock, **{"rollout server a:1": actors[0], "worker 0": actors[1]})
    ray.kill(actors[0])
    clock.now = 1000.0
    with caplog.at_level(logging.WARNING, "recipe"):
        look_until_dead(found, 1)
    assert [record.getMessage()[:26] for record in caplog.records] == ["rollout server a:1 died: T"]
    clock.now += 59
    found.look()
    assert clock.ended == []
    clock.now += 1
    found.look()
    (said,) = clock.ended
    assert said.startswith("the run is ended: no step has ended for 60 s (prune_opd.deadline)")
    assert "since rollout server a:1 died; start it again" in said


def test_a_process_that_ray_killed_for_memory_has_died(starved, clock, caplog):
    found = watching(clock, **{"agent-loop worker 0": Process.remote()})
    with caplog.at_level(logging.WARNING, "recipe"):
        look_until_dead(found, 1)
    (record,) = caplog.records
    assert "agent-loop worker 0 died: 1 worker(s) were killed due to" in record.getMessage()
    assert "\n" not in record.getMessage()
    clock.now += 60
    found.look()
    assert len(clock.ended) == 1


@pytest.mark.parametrize("deadline", [60.0, math.inf])
def test_a_run_that_goes_on_without_a_process_is_let_go_on(clock, deadline):
    actor = Process.remote()
    ray.get(actor.pid.remote())
    found = watching(clock, deadline, one=actor)
    ray.kill(actor)
    look_until_dead(found, 1)
    for _ in range(20):
        clock.now += 50
        clock.steps += 1
        found.look()
    assert clock.ended == []


def test_the_thread_ends_the_process(monkeypatch, capfd):
    """Whatever its main thread waits for."""
    codes = []
    monkeypatch.setattr(watch, "LAST_WORDS", 0.0)
    monkeypatch.setattr(watch.os, "_exit", lambda code: (codes.append(code), found.close()))
    actor = Process.remote()
    ray.get(actor.pid.remote())
    found = Watch({"one": actor}, lambda: 0, 0.2)
    found.start()
    ray.kill(actor)
    assert found._over.wait(60)
    assert codes[:1] == [1]
    assert "the run is ended: no step has ended for" in capfd.readouterr().err
