"""A step is recorded, and records that cannot be written stop no training.

Workers and queue are stood in for.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipe.prune_opd.config import BudgetConfig, RecordsConfig
from recipe.prune_opd.records.files import Records, read_samples, read_steps
from recipe.prune_opd.records.metrics import COLUMNS
from recipe.prune_opd.records.positions import BY_POSITION, bucket_edges
from recipe.prune_opd.training.trainer import PruneOPDTrainer

LIMIT = 64


def record(records: Records, samples=lambda *_: [{"weight": 1.0}]) -> None:
    """Step 1 with one response of which everything is 1."""
    buckets = len(bucket_edges(LIMIT)) - 1
    trainer = SimpleNamespace(
        global_steps=1,
        budget=BudgetConfig(init=LIMIT, min=1, max=LIMIT).build(),
        prune_opd=SimpleNamespace(records=RecordsConfig()),
        _rows=lambda *_: torch.ones(1, len(BY_POSITION) * buckets),
        _samples=samples,
    )
    trainer._write = lambda *given: PruneOPDTrainer._write(trainer, *given)
    PruneOPDTrainer._record(
        trainer, records, SimpleNamespace(), [True], torch.ones(1, len(COLUMNS)), LIMIT
    )


def test_a_step_and_its_samples_are_written(tmp_path, caplog):
    record(Records(tmp_path))
    assert [line["step"] for line in read_steps(tmp_path)[0]] == [1]
    assert read_samples(tmp_path, 1) == [{"weight": 1.0}]
    assert caplog.messages == []


def full(*_) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("samples", "reason"),
    [(full, "OSError"), (lambda *_: [{"weight": float("nan")}], "ValueError")],
)
def test_samples_that_cannot_be_written_are_a_warning_and_the_step_is_kept(
    tmp_path, caplog, samples, reason
):
    record(Records(tmp_path), samples)
    (message,) = caplog.messages
    assert message.startswith(f"step 1: its records are not in {tmp_path} ({reason}: ")
    assert [line["step"] for line in read_steps(tmp_path)[0]] == [1]


def test_a_full_disk_is_a_warning(tmp_path: Path, caplog):
    records = Records(tmp_path)
    records.step = full
    record(records)
    (message,) = caplog.messages
    assert (
        f"not in {tmp_path} (OSError: [Errno 28] No space left on device); the training goes on"
        in message
    )
