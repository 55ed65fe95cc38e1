"""A run that is killed again and again, whatever it does at that moment, loses no prompt, trains on
none twice, and goes on under the limit that was saved: ten kills over verl's three trainer modes.
"""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import launch
import pytest
from test_async_trainers import SEPARATE, SHARED, prompt_of, responses

from recipe.prune_opd.training.checkpoint import TRACKER

pytestmark = pytest.mark.e2e

STEPS, PROMPTS, SEED = 7, 8, 0
OFTEN = {
    "trainer.total_training_steps": STEPS,
    "trainer.save_freq": 1,
    "trainer.test_freq": -1,
    "actor_rollout_ref.actor.checkpoint.save_contents": None,
}
MODES: dict[str, dict[str, Any]] = {
    "sync": SHARED | OFTEN,
    "colocate_async": SHARED
    | OFTEN
    | {
        "prune_opd.trainer_mode": "colocate_async",
        "trainer.v1.colocate_async.num_warmup_batches": 2,
    },
    "separate_async": SEPARATE | OFTEN | {"actor_rollout_ref.hybrid_engine": False},
}
KILLS = {"sync": 4, "colocate_async": 3, "separate_async": 3}
"""One of each while a checkpoint is being written, the others at random moments of a step."""


@dataclass(frozen=True)
class Start:
    """What a start found, and what it did."""

    saved: int
    """Step of the newest complete checkpoint, 0: none."""
    limit: int | None
    """The limit in it."""
    steps: list[dict[str, float]]
    """Logged metrics of its steps."""


@dataclass(frozen=True)
class Course:
    """A run from its first start to its end."""

    run: harness.Run
    starts: list[Start]


def newest(folder: Path) -> int:
    """Step of the newest complete checkpoint, 0: none."""
    tracker = folder / "checkpoints" / TRACKER
    return int(tracker.read_text()) if tracker.exists() else 0


def in_a_step(folder: Path, share: float) -> Callable[[], bool]:
    """Moment in the second step of a start, as far into it as a share of the first says."""
    metrics = folder / "metrics.jsonl"

    def has_come() -> bool:
        steps = launch.training_steps(launch.read(metrics))
        return bool(steps) and (
            time.time() >= metrics.stat().st_mtime + share * steps[0]["timing_s/step"]
        )

    return has_come


def in_a_save(folder: Path) -> Callable[[], bool]:
    """Moment at which a checkpoint has begun that none before was, and is not complete."""
    checkpoints = folder / "checkpoints"
    known = set(checkpoints.glob("global_step_*"))

    def has_come() -> bool:
        begun = set(checkpoints.glob("global_step_*")) - known
        return any(int(one.name.rsplit("_", 1)[1]) > newest(folder) for one in begun)

    return has_come


def one_start(inputs: Path, folder: Path, settings: dict[str, Any], **given: Any) -> Any:
    """Start the run once.

    Returns:
        The run, and its ``Start``.
    """
    saved = newest(folder)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    settings = settings | {"prune_opd.teacher.path": inputs / "noisy"}
    run = harness.run(inputs, folder, settings, more={"VERL_LOGGING_LEVEL": "WARN"}, **given)
    limit = run.budget(saved)["limit"] if saved else None
    return run, Start(saved, limit, run.steps if (folder / "metrics.jsonl").exists() else [])


@pytest.fixture(scope="session", params=MODES)
def killed(request, inputs, tmp_path_factory) -> Course:
    """A run of each mode."""
    mode, folder = request.param, tmp_path_factory.mktemp(f"killed_{request.param}")
    chance, starts = random.Random(f"{SEED} {mode}"), []
    moments = [in_a_save, *[in_a_step] * (KILLS[mode] - 1)]
    for moment in moments:
        share = {} if moment is in_a_save else {"share": chance.random()}
        run, start = one_start(inputs, folder, MODES[mode], kill_when=moment(folder, **share))
        assert run.returncode == -signal.SIGKILL, run.output[-5000:]
        starts.append(start)
    run, start = one_start(inputs, folder, MODES[mode])
    return Course(harness.finished(run), [*starts, start])


def test_each_start_goes_on_behind_what_was_saved(killed):
    """And under its limit: nothing that a complete checkpoint holds is trained on again."""
    for start in killed.starts:
        if start.steps:
            assert start.steps[0]["training/global_step"] == start.saved + 1
            if start.limit:
                assert start.steps[0]["prune_opd/current_max_response_length"] == start.limit
    assert killed.starts[-1].steps[-1]["training/global_step"] == STEPS
    assert [start.saved for start in killed.starts] == sorted(
        start.saved for start in killed.starts
    )


def test_no_prompt_is_lost_and_none_is_trained_on_twice(killed):
    """Of one epoch."""
    done = [
        {prompt_of(dump, row) for dump, row in responses(killed.run, step)}
        for step in range(1, STEPS + 1)
    ]
    assert [len(prompts) for prompts in done] == [PROMPTS] * STEPS
    assert len(set.union(*done)) == PROMPTS * STEPS
