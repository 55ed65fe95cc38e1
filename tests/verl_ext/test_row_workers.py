"""Several models in one worker: every row gets the numbers of its own model, in its own place, on
ranks that have rows for it and ranks that have none.

Runs verl's training workers with FSDP2 on two gloo ranks.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import answers_of
from row_workers_rank import COLUMN, WHOSE
from tensordict import TensorDict

from verl_ext import cpu
from verl_ext.row_workers import RowWorkers

PROGRAM = Path(__file__).with_name("row_workers_rank.py")
on_cpu = pytest.mark.skipif(
    not cpu.no_accelerator(), reason="this PyTorch is built for an accelerator"
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank."""
    return answers_of(PROGRAM, tmp_path_factory.mktemp("row_workers"))


@on_cpu
@pytest.mark.parametrize("batches", ["several", "fixed"])
@pytest.mark.parametrize("name", ["top_ids", "top_log_probs", "log_probs_at", "log_probs"])
def test_a_row_is_scored_by_its_own_model(answers, name, batches):
    """Micro-batches of so many tokens, or of two rows."""
    for rank, found in enumerate(answers):
        rows = found[batches][name]
        assert len(rows) == len(WHOSE[rank])
        for row, whose in enumerate(WHOSE[rank]):
            theirs = [each[name][row] for each in found["each"]]
            torch.testing.assert_close(rows[row], theirs[whose], rtol=1e-4, atol=1e-4)
            others = [theirs[other] for other in range(3) if other != whose]
            assert not any(torch.allclose(rows[row].float(), one.float()) for one in others)


@on_cpu
def test_every_rank_makes_the_same_passes_and_none_through_a_model_without_rows(answers):
    assert [found["calls"] for found in answers] == [[1, 1, 0], [1, 1, 0]]


@on_cpu
def test_batches_are_handed_out_as_for_one_model(answers):
    for rank, found in enumerate(answers):
        assert found["dispatch"]["dispatch_dp_rank"] == {"train": rank}


# ----------------------------------------------------------------------------------------- no ranks


class Counting:
    """A worker that answers with its number, and notes what it was given."""

    device_name = "cpu"

    def __init__(self, number: int, size: int | None = None):
        self.number, self.asked = number, list[list[int]]()
        self.engine = SimpleNamespace(get_data_parallel_group=lambda: None)
        self.engine_config = SimpleNamespace(
            use_dynamic_bsz=size is None, infer_micro_batch_size_per_gpu=size
        )

    def infer_batch(self, data: TensorDict) -> TensorDict:
        self.asked.append(data["index"].tolist())
        ids = data["input_ids"]
        values = ids.values() * 10 + self.number
        value = torch.nested.nested_tensor_from_jagged(values, ids.offsets())
        return TensorDict({"score": value}, batch_size=len(data))


def batch(whose: list[int], lengths: list[int]) -> TensorDict:
    rows = [torch.full((length,), row) for row, length in enumerate(lengths)]
    fields = {
        "input_ids": torch.nested.nested_tensor(rows, layout=torch.jagged),
        "index": torch.arange(len(rows)),
        COLUMN: torch.tensor(whose),
    }
    return TensorDict(fields, batch_size=len(rows))


@pytest.fixture
def alone(monkeypatch):
    """The other rank has two rows for the first model and none for the others."""

    def all_reduce(counts: torch.Tensor, op: Any, group: Any) -> None:
        counts.copy_(torch.maximum(counts, torch.tensor([2, 0, 0])))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)


def test_rows_come_back_in_their_order(alone):
    workers = [Counting(number) for number in range(3)]
    data = batch([2, 0, 2, 0, 0], [3, 1, 2, 4, 2])
    found = RowWorkers(workers, COLUMN).infer_batch(data)
    assert [worker.asked for worker in workers] == [[[1, 3, 4]], [], [[0, 2]]]
    assert [row.tolist() for row in found["score"].unbind()] == [
        [2, 2, 2],
        [10],
        [22, 22],
        [30, 30, 30, 30],
        [40, 40],
    ]


def test_what_a_rank_lacks_is_its_shortest_row(alone):
    workers = [Counting(number) for number in range(3)]
    found = RowWorkers(workers, COLUMN).infer_batch(batch([1, 2, 1], [3, 1, 2]))
    assert [worker.asked for worker in workers] == [[[1, 1]], [[0, 2]], [[1]]]
    assert [row.tolist() for row in found["score"].unbind()] == [[1, 1, 1], [12], [21, 21]]


def test_micro_batches_of_a_fixed_size_are_full(alone):
    workers = [Counting(number, size=4) for number in range(3)]
    found = RowWorkers(workers, COLUMN).infer_batch(batch([1] * 5, [1, 2, 2, 2, 2]))
    assert [list(map(len, worker.asked)) for worker in workers] == [[4], [8], []]
    assert len(found) == 5


def test_a_row_of_no_model_ends_the_run(alone):
    with pytest.raises(RuntimeError, match=r"^whose: \[0, 3\], allowed: 0 to 2$"):
        RowWorkers([Counting(i) for i in range(3)], COLUMN).infer_batch(batch([0, 3], [1, 1]))
