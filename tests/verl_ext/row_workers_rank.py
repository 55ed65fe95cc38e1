"""One of two ranks that put a batch through several of verl's training workers, a row to each its
own, and through each worker whole.

``python row_workers_rank.py FOLDER RANK`` meets the other rank in FOLDER and leaves there what it
found, ``answers_RANK.pt``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import ulysses_rank
from tensordict import TensorDict
from torch import Tensor, distributed
from transformers import AttentionInterface, AttentionMaskInterface
from ulysses_rank import ATTENTION, K, V
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine_workers import TrainingWorker

from verl_ext.row_workers import RowWorkers
from verl_ext.topk import Request, TopKPass, collect, join_columns, request_pass

COLUMN = "whose"
MODELS = 3
SEQUENCES = {0: [0], 1: [1, 2, 3]}
WHOSE = {0: [1], 1: [1, 0, 1]}
"""Rank -> model of each of its sequences: rank 0 has none for model 0, nobody has for model 2."""


def worker_of(folder: Path, number: int) -> TrainingWorker:
    """verl's worker in float32."""
    model = HFModelConfig(
        path=str(folder / str(number)),
        hf_config_path=str(folder / str(number)),
        load_tokenizer=False,
        override_config={"attn_implementation": ATTENTION},
    )
    engine = FSDPEngineConfig(
        strategy="fsdp2",
        mixed_precision={"param_dtype": "fp32"},
        use_torch_compile=False,
        use_dynamic_bsz=True,
        infer_max_token_len_per_gpu=32,
        infer_micro_batch_size_per_gpu=2,
    )
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=model,
        engine_config=engine,
        optimizer_config=FSDPOptimizerConfig(lr=0.1, total_training_steps=1),
        checkpoint_config=CheckpointConfig(),
    )
    return TrainingWorker(config=config)


def batch(rank: int) -> TensorDict:
    """The sequences of a rank, each with its model."""
    data = ulysses_rank.batch(SEQUENCES[rank])
    for name in ("use_dynamic_bsz", "max_token_len_per_gpu", "use_remove_padding"):
        tu.pop(data, name)
    data[COLUMN] = torch.tensor(WHOSE[rank])
    tu.assign_non_tensor(data, use_remove_padding=True)
    request_pass(data, Request(topk=K, vocab_size=V - 3, at="chosen"), sampled=True)
    return data


def answers(worker: Any, rank: int) -> dict[str, list[Tensor]]:
    """A pass over the whole batch of a rank: fields of the responses."""
    data = batch(rank)
    output = worker.infer_batch(data)
    fields = {
        name: collect(join_columns(output, name), data["input_ids"], data["responses"])
        for name in ("top_ids", "top_log_probs", "log_probs_at")
    }
    fields["log_probs"] = collect(
        output["log_probs"].values(), data["input_ids"], data["responses"]
    )
    return {name: list(field.unbind()) for name, field in fields.items()}


def main(folder: Path, rank: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="0")
    distributed.init_process_group(
        "cpu:gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    AttentionInterface.register(ATTENTION, ulysses_rank.attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    if rank == 0:
        for number in range(MODELS):
            ulysses_rank.save_model(folder / str(number), seed=number)
    distributed.barrier()
    workers = [worker_of(folder, number) for number in range(MODELS)]
    several = RowWorkers(workers, COLUMN)
    several.reset()
    for worker in workers:
        worker.set_loss_fn(TopKPass())
    calls = [0] * MODELS
    for number, worker in enumerate(workers):
        worker.engine.module.register_forward_hook(
            lambda *_, number=number: calls.__setitem__(number, calls[number] + 1)
        )
    found = {"several": answers(several, rank), "calls": list(calls)}
    found["each"] = [answers(worker, rank) for worker in workers]
    for worker in workers:
        worker.engine_config.use_dynamic_bsz = False
    found["fixed"] = answers(several, rank)
    found["dispatch"] = several.get_dispatch_collect()
    torch.save(found, folder / f"answers_{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
