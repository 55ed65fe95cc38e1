"""What does the method add to a step as its batch grows: on the wire, and on the driver?

    python benchmarks/scale.py    # two minutes, 3 GB: real Ray and TransferQueue, no model

First table: bytes per token of a response that the workers' methods read from TransferQueue and
write back to it, beside what verl's own passes read. Second: what the driver does about a step of
so many responses of 2,048 tokens, its worker methods left out: it fetches, counts, moves the limit
and writes the step down. Synthetic scores of 16 candidates.
"""

import argparse
import inspect
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
import transfer_queue as tq
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from recipe.prune_opd.config import PruneOPDConfig, RecordsConfig, TeacherConfig
from recipe.prune_opd.records.recorder import Recorder
from recipe.prune_opd.records.tally import Tally
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training.faults import TopKMass
from recipe.prune_opd.training.fields import (
    LIMIT,
    MODEL_FIELDS,
    POSITIONS,
    STUDENT_IDS,
    STUDENT_LOG_PROBS,
    SUMS,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    TEACHER_ON_STUDENT,
    UPDATE_FIELDS,
    advantage_fields,
    teacher_fields,
)
from recipe.prune_opd.training.trainer import PruneOPD
from recipe.prune_opd.training.worker import PruneOPDWorker

K, TOKENS, LONGEST, CHUNK = 16, 2048, 12288, 32
SIZES = (256, 2048, 8192)
"""Responses of a step."""


def configuration(folder: Path) -> PruneOPDConfig:
    """The paper's defaults, with records."""
    records = RecordsConfig(dir=str(folder), every=0)
    budget = {"init": 3072, "min": 1024, "max": LONGEST}
    teacher = TeacherConfig(path="T")
    return PruneOPDConfig(teacher=teacher, topk=K, records=records, budget=budget)


def worker_of(prune_opd: PruneOPDConfig) -> PruneOPDWorker:
    """A worker without models."""
    worker = object.__new__(PruneOPDWorker)
    worker.actor = SimpleNamespace(engine=SimpleNamespace(is_mp_src_rank_with_outputs=lambda: True))
    worker.prune_opd, worker.home = prune_opd, build_home(prune_opd)
    worker.ends, worker.max_length = {1}, prune_opd.budget.longest
    return worker


def responses(count: int, tokens: int) -> TensorDict:
    """Fields of ``count`` responses of ``tokens`` tokens each before the advantages are made, of
    the dtypes that the passes give; prompts are left out."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, tokens, K)
    ids = torch.randint(1, 5, shape, generator=generator, dtype=torch.int32)
    ids = ids.cumsum(-1, dtype=torch.int32)
    shift = torch.randint(0, 4, (count, tokens, 1), generator=generator, dtype=torch.int32)
    log_probs = torch.rand(shape, generator=generator).neg().cumsum(-1).log_softmax(-1)
    offsets = torch.arange(count + 1) * tokens

    def jagged(values: torch.Tensor) -> torch.Tensor:
        return torch.nested.nested_tensor_from_jagged(values.flatten(0, 1), offsets)

    plain = torch.ones(count, tokens, dtype=torch.long)
    fields = {name: jagged(plain) for name in (*MODEL_FIELDS[:4], "response_mask")}
    fields |= {
        STUDENT_IDS: jagged(ids),
        TEACHER_IDS: jagged(ids + shift),
        **{
            name: jagged(log_probs)
            for name in (STUDENT_LOG_PROBS, TEACHER_LOG_PROBS, TEACHER_ON_STUDENT)
        },
    }
    return TensorDict({**fields, LIMIT: torch.full((count,), LONGEST)}, batch_size=count)


def size(data: TensorDict, names: tuple[str, ...] | None = None) -> int:
    """Bytes of some fields, or of all."""
    tensors = [value for name, value in data.items() if names is None or name in names]
    return sum((each.values() if each.is_nested else each).nbytes for each in tensors)


def on_the_wire(worker: PruneOPDWorker) -> Table:
    """Bytes per response token of each worker method, and of a response whatever its length."""
    data = responses(CHUNK, TOKENS)
    found = inspect.unwrap(PruneOPDWorker.compute_pruned_advantage)(worker, data)
    both = TensorDict({**data, **found}, batch_size=CHUNK)
    of_response = (SUMS, POSITIONS, LIMIT)
    own = tuple(name for name in found.keys() if name not in of_response)  # noqa: SIM118
    scored = (TEACHER_IDS, TEACHER_LOG_PROBS, TEACHER_ON_STUDENT)
    passes = {
        "student's pass": (MODEL_FIELDS, (STUDENT_IDS, STUDENT_LOG_PROBS)),
        "teacher's pass": (teacher_fields(worker.home), scored),
        "advantages": (advantage_fields(worker.home), own),
        "update": (UPDATE_FIELDS, ()),
    }
    table = Table("worker method", "reads, bytes a token", "of it verl's", "writes, bytes a token")
    every, scale = [0, 0, 0], CHUNK * TOKENS
    for name, (reads, writes) in passes.items():
        verls = tuple(set(reads) & {*MODEL_FIELDS, "response_mask"})
        row = [size(both, tuple(set(reads) - {LIMIT})), size(both, verls), size(both, writes)]
        every = [total + one for total, one in zip(every, row, strict=True)]
        table.add_row(name, *(f"{one / scale:.0f}" for one in row))
    table.add_row("all", *(f"{one / scale:.0f}" for one in every), style="bold")
    table.caption = f"and {size(found, of_response) / CHUNK:.0f} bytes a response for the driver"
    return table


class Driver(PruneOPD):
    """The trainer's part of a step on the driver alone; it counts what it fetches."""

    def __init__(self, prune_opd: PruneOPDConfig):
        self.prune_opd, self.home = prune_opd, build_home(prune_opd)
        self.budget = prune_opd.budget.build()
        self.recorder = Recorder(prune_opd, lambda: None)
        self.phase, self.fetched, self._mass = None, 0, TopKMass()
        self.global_steps, self.local_trigger_step, self.parameter_sync_step = 1, 0, 1
        self._tallies = []

    def _on_workers(self, method: str, batch: KVBatchMeta, fields: tuple[str, ...]) -> None:
        """Left out: it was done before."""

    def _fetch(self, *given: Any, **named: Any) -> TensorDict:
        found = super()._fetch(*given, **named)
        self.fetched += size(found)
        return found

    def work(self, batch: KVBatchMeta) -> None:
        """What it does about a step's responses."""
        self._compute_advantage(batch, {})
        self._end_step(batch, Tally.join(*self._tallies), {})


@dataclass(frozen=True)
class Cost:
    """Of the driver's work about one step."""

    seconds: float
    processor: float
    fetched: int
    """Bytes."""
    memory: int
    """Bytes that the process grew by at most."""


def peak(forget: bool = False) -> int:
    """Most bytes that this process has held since the last call that forgot (Linux)."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


def cost(worker: PruneOPDWorker, count: int, tokens: int) -> Cost:
    """Put the responses into TransferQueue as the workers do, and have the driver look at them."""
    data = responses(CHUNK, tokens)
    found = inspect.unwrap(PruneOPDWorker.compute_pruned_advantage)(worker, data)
    kept = TensorDict({**found.select(SUMS, POSITIONS), LIMIT: data[LIMIT]}, batch_size=CHUNK)
    keys = [f"{tokens}_{number}" for number in range(count)]
    tags = [{"response_len": tokens} for _ in keys]
    for first in range(0, count, CHUNK):
        part = slice(first, first + CHUNK)
        tq.kv_batch_put(keys[part], "train", kept, tags[part])
    batch = KVBatchMeta(keys=keys, tags=tags, partition_id="train", extra_info={})
    driver, before = Driver(worker.prune_opd), peak(forget=True)
    wall, processor = time.perf_counter(), time.process_time()
    driver.work(batch)
    spent = time.perf_counter() - wall, time.process_time() - processor
    tq.kv_clear(keys, "train")
    return Cost(*spent, driver.fetched, peak() - before)


def on_the_driver(worker: PruneOPDWorker) -> Table:
    """Its work by the number of responses, and by their length."""
    table = Table(
        "responses", "tokens each", "seconds", "of a processor", "exponent", "MB fetched", "MB more"
    )
    cost(worker, CHUNK, CHUNK)  # what is done once
    last: tuple[int, float] | None = None
    for count, tokens in [*((count, TOKENS) for count in SIZES), (SIZES[1], TOKENS // 8)]:
        found = cost(worker, count, tokens)
        grown = "-"
        if last and tokens == TOKENS:
            grown = f"{math.log(found.processor / last[1]) / math.log(count / last[0]):.2f}"
        last = count, found.processor
        values = f"{found.seconds:.2f}", f"{found.processor:.2f}", grown
        megabytes = f"{found.fetched / 1e6:.2f}", f"{found.memory / 1e6:.0f}"
        table.add_row(f"{count:,}", f"{tokens:,}", *values, *megabytes)
    return table


def main() -> None:
    """Command line: see the module's docstring."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        worker = worker_of(configuration(Path(folder)))
        Console().print(on_the_wire(worker))
        # TransferQueue asks for more logical slots than a small machine has cores.
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        tq.init()
        Console().print(on_the_driver(worker))
        tq.close()
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
