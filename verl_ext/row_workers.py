"""Several frozen models in the place of one of verl's training workers: a row of a batch names the
one that scores it.

All ranks of a data-parallel group must make the same passes through the same model, because FSDP
gathers its weights as it goes. So for each model every rank puts in as many rows as the rank that
has most for it; what it lacks is its own shortest row, whose answer is dropped.

Shapes: B rows of a rank, S tokens of all of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor


class RowWorkers:
    """The methods of verl's ``TrainingWorker`` that its ``ActorRolloutRefWorker`` calls of the
    reference model.

    Args:
        workers: ``TrainingWorker`` of each model, all of them on the same ranks.
        column: field of a batch, (B,) int: which of them scores a row.
    """

    def __init__(self, workers: Sequence[Any], column: str):
        self.workers, self.column = list(workers), column

    def reset(self) -> None:
        """Load every model. See ``TrainingWorker.reset``."""
        for worker in self.workers:
            worker.reset()

    def get_dispatch_collect(self) -> dict[str, Any]:
        """Ranks that get and give batches. See ``Worker.get_dispatch_collect``."""
        found: dict[str, Any] = self.workers[0].get_dispatch_collect()
        return found

    def infer_batch(self, data: TensorDict) -> TensorDict | None:
        """Score every row by its model.

        Args:
            data: with ``input_ids`` jagged (B, tokens), and the column.

        Returns:
            What a worker gives of each row, jagged (B, tokens) fields in the order of the rows,
            without metrics; None on ranks that return nothing.

        Raises:
            RuntimeError: a row names none of the models.
        """
        from verl.utils import tensordict_utils as tu

        own, lengths = torch.as_tensor(data[self.column]).reshape(-1), _lengths(data)
        rows = [(own == number).nonzero().flatten() for number in range(len(self.workers))]
        if sum(map(len, rows)) != len(data):
            raise RuntimeError(
                f"{self.column}: {own.unique().tolist()}, allowed: 0 to {len(self.workers) - 1}"
            )
        asked, answers = [], []
        for worker, given, count in zip(self.workers, rows, self._counts(rows), strict=True):
            if count:
                spare = lengths.argmin().expand(count - len(given))
                part = tu.index_select_tensor_dict(data, torch.cat([given, spare]))
                asked.append(given)
                answers.append(worker.infer_batch(part))
        found = [answer for answer in answers if answer is not None]
        return _in_order(found, asked, data) if found else None

    def _counts(self, rows: list[Tensor]) -> list[int]:
        """Rows that every rank puts into each model: of the rank that has most, and so many that
        micro-batches of a fixed size are full."""
        first = self.workers[0]
        counts = torch.tensor([len(one) for one in rows], device=first.device_name)
        group = first.engine.get_data_parallel_group()
        torch.distributed.all_reduce(counts, torch.distributed.ReduceOp.MAX, group)
        config = first.engine_config
        size = 1 if config.use_dynamic_bsz else config.infer_micro_batch_size_per_gpu
        return [-(-count // size) * size for count in counts.tolist()]


def _lengths(data: TensorDict) -> Tensor:
    offsets: Tensor = data["input_ids"].offsets()
    return offsets.diff()


def _in_order(answers: list[TensorDict], asked: list[Tensor], data: TensorDict) -> TensorDict:
    """Answers put together, row by row as in ``data``.

    Args:
        answers: of some models, jagged fields whose first rows are those of ``asked``.
        asked: rows that each was asked about.
        data: the whole batch.
    """
    lengths, order = _lengths(data), torch.cat(asked)
    ends = lengths[order].cumsum(0)
    starts = (ends - lengths[order])[order.argsort()]  # of each row, in the answers' tokens
    offsets = data["input_ids"].offsets()
    back = torch.repeat_interleave(starts - offsets[:-1], lengths) + torch.arange(offsets[-1])
    sizes = [int(lengths[rows].sum()) for rows in asked]
    fields = {}
    for name, value in answers[0].items():
        if isinstance(value, Tensor) and value.is_nested:
            parts = [one[name].values()[:size] for one, size in zip(answers, sizes, strict=True)]
            values = torch.cat(parts)[back]
            fields[name] = torch.nested.nested_tensor_from_jagged(values, offsets)
    return TensorDict(fields, batch_size=len(data))
