"""A run that is killed again and again, whatever it does at that moment, loses no prompt, trains on
none twice, and goes on under the limit that was saved: ten kills over verl's three trainer modes.
"""

import math
import os
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

STEPS, PROMPTS, SEED = 8, 8, 0
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
HELD = "held"
"""File beside the checkpoints: the newest complete one while the tracker is a pipe."""
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
    """Moment in the third step of a start, as far into it as a share of the second says: the first
    warms up."""
    came = math.inf

    def has_come() -> bool:
        nonlocal came
        steps = launch.training_steps(launch.read(folder / "metrics.jsonl"))
        if came == math.inf and len(steps) > 1:
            came = time.monotonic() + share * steps[1]["timing_s/step"]
        return time.monotonic() >= came

    return has_come


def in_a_save(folder: Path) -> Callable[[], bool]:
    """Moment at which a checkpoint has begun and is not complete.

    A save of these models takes 15 ms, too little to be hit. verl completes it by writing the
    tracker, so once a step is done that becomes a pipe, on which the writer waits for a reader.
    """
    checkpoints, complete = folder / "checkpoints", 0

    def has_come() -> bool:
        nonlocal complete
        if not launch.training_steps(launch.read(folder / "metrics.jsonl")):
            return False
        if not is_held(folder):
            complete = newest(folder)
            (checkpoints / HELD).write_text(str(complete))
            os.mkfifo(checkpoints / "pipe")
            os.replace(checkpoints / "pipe", checkpoints / TRACKER)
        begun = (int(one.name.rsplit("_", 1)[1]) for one in checkpoints.glob("global_step_*"))
        return any(step > complete for step in begun)

    return has_come


def is_held(folder: Path) -> bool:
    """Tell whether the tracker is a pipe."""
    return (folder / "checkpoints" / TRACKER).is_fifo()


def let_go(folder: Path) -> None:
    """Put the tracker back that was there before the save which was killed."""
    (folder / "checkpoints" / TRACKER).unlink()
    complete = (folder / "checkpoints" / HELD).read_text()
    if int(complete):
        (folder / "checkpoints" / TRACKER).write_text(complete)


def one_start(inputs: Path, folder: Path, settings: dict[str, Any], **given: Any) -> Any:
    """Start the run once.

    Returns:
        The run, and its ``Start``.
    """
    saved = newest(folder)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    data = folder.parent / "data_to_lose" / "train.parquet"
    settings |= {"prune_opd.teacher.path": inputs / "noisy", "data.train_files": data}
    run = harness.run(inputs, folder, settings, more={"VERL_LOGGING_LEVEL": "WARN"}, **given)
    limit = run.budget(saved)["limit"] if saved else None
    return run, Start(saved, limit, run.steps if (folder / "metrics.jsonl").exists() else [])


@pytest.fixture(scope="session", params=MODES)
def killed(request, inputs, tmp_path_factory) -> Course:
    """A run of each mode."""
    mode, folder = request.param, tmp_path_factory.mktemp(f"killed_{request.param}")
    chance, starts = random.Random(f"{SEED} {mode}"), []
    harness.walk.write_parquet(folder.parent / "data_to_lose", train=96, validation=8)
    moments = [in_a_save, *[in_a_step] * (KILLS[mode] - 1)]
    for moment in moments:
        share = {} if moment is in_a_save else {"share": chance.random()}
        run, start = one_start(inputs, folder, MODES[mode], kill_when=moment(folder, **share))
        assert run.returncode == -signal.SIGKILL, run.output[-5000:]
        assert is_held(folder) == (moment is in_a_save)
        if moment is in_a_save:
            let_go(folder)
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
