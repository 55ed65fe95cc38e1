"""One of two ranks that put a batch through verl's FSDP2 engine, without and with sequence
parallelism.

``python ulysses_rank.py FOLDER RANK`` meets the other rank in FOLDER and leaves there what it
found, ``answers_RANK.pt``. The model is made on the spot: Qwen2, 2 layers of width 32, random
weights.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2Config, Qwen2ForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils import ulysses
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

from verl_ext.topk import Request, TopKPass, collect, join_columns, request_pass, scoring_rows

RANKS, V, K = 2, 97, 4
PROMPTS, RESPONSES = (3, 5, 2, 6), (6, 4, 8, 3)  # 37 tokens: the last rank's rows end in padding
ATTENTION = "sdpa_over_ulysses"


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any
) -> Any:
    """torch's attention over packed sequences between verl's all-to-alls, as verl does with
    flash-attention.

    Shapes: query, key and value (1, heads, rows of this rank, width).
    """
    position_ids = kwargs["position_ids"]
    parallel = ulysses.get_ulysses_sequence_parallel_world_size() > 1
    if parallel:
        gathered = (
            ulysses.gather_seq_scatter_heads(x, seq_dim=2, head_dim=1) for x in (query, key, value)
        )
        query, key, value = gathered
        position_ids = ulysses.all_gather_tensor(position_ids[0])[None]
    sequence = (position_ids[0] == 0).cumsum(0)
    seen = (sequence[:, None] == sequence).tril()
    out = F.scaled_dot_product_attention(
        query, key, value, seen, scale=kwargs["scaling"], enable_gqa=True
    )
    if parallel:
        out = ulysses.gather_heads_scatter_seq(out, head_dim=1, seq_dim=2)
    return out.transpose(1, 2).contiguous(), None


def as_nccl(all_gather: Any) -> Any:
    """Gloo takes any tensor, NCCL contiguous ones only."""

    def gather(output: Tensor, given: Tensor, **kwargs: Any) -> Any:
        if not given.is_contiguous():
            raise ValueError("Tensors must be contiguous")
        return all_gather(output, given, **kwargs)

    return gather


def save_model(folder: Path, seed: int = 0) -> None:
    config = Qwen2Config(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def engine_of(folder: Path, parallel: int) -> Any:
    """verl's engine in float32."""
    model = HFModelConfig(
        path=str(folder),
        hf_config_path=str(folder),
        load_tokenizer=False,
        override_config={"attn_implementation": ATTENTION},
    )
    config = FSDPEngineConfig(
        strategy="fsdp2",
        ulysses_sequence_parallel_size=parallel,
        mixed_precision={"param_dtype": "fp32"},
        use_torch_compile=False,
        use_dynamic_bsz=True,
    )
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=model,
        engine_config=config,
        optimizer_config=FSDPOptimizerConfig(lr=0.1, total_training_steps=1),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def batch(sequences: list[int]) -> TensorDict:
    """The sequences of a rank, as the trainer hands them over."""
    generator = torch.Generator().manual_seed(1)
    fields: dict[str, list[Tensor]] = {
        name: [] for name in ("input_ids", "position_ids", "loss_mask", "responses")
    }
    fields |= {"chosen": [], "upstream": []}
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        ids = torch.randint(0, V, (prompt + response,), generator=generator)
        chosen = torch.randint(0, V, (response, K), generator=generator, dtype=torch.int32)
        upstream = torch.randn(response, K, generator=generator)
        if i in sequences:
            row = (
                ids,
                torch.arange(len(ids)),
                torch.ones(response, dtype=torch.long),
                ids[prompt:],
                chosen,
                upstream,
            )
            for values, value in zip(fields.values(), row, strict=True):
                values.append(value)
    nested = {
        name: torch.nested.nested_tensor(rows, layout=torch.jagged) for name, rows in fields.items()
    }
    data = TensorDict(nested, batch_size=len(sequences))
    tu.assign_non_tensor(
        data,
        use_remove_padding=True,
        max_token_len_per_gpu=32,
        use_dynamic_bsz=True,
        temperature=1.0,
    )
    return data


def objective(log_probs: Tensor, data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
    """A fixed linear function, averaged as the recipe does."""
    rows = scoring_rows(data["input_ids"].offsets(), data["responses"].offsets())
    total = (log_probs[rows] * data["upstream"].values()).sum()
    return total / (data["batch_num_tokens"] / data["dp_size"]), {}


def answers(engine: Any, sequences: list[int]) -> dict[str, Any]:
    """A scoring pass and the gradient of an update."""
    loss_fn = TopKPass(objective)
    data = batch(sequences)
    request_pass(data, Request(topk=K, vocab_size=V - 3, at="chosen"), sampled=True, entropy=True)
    with engine.eval_mode():
        output = engine.infer_batch(data, loss_function=loss_fn)["model_output"]
    names = ("top_ids", "top_log_probs", "log_probs_at")
    fields = {
        name: collect(join_columns(output, name), data["input_ids"], data["responses"])
        for name in names
    }
    fields["entropy"] = output["entropy"]
    # verl's row of a last token is about the first of the sequence packed behind it.
    fields["log_probs"] = torch.nested.nested_tensor(
        [row[:-1] for row in output["log_probs"].unbind()]
    )

    data = batch(sequences)
    request_pass(data, Request(at="chosen"), sampled=False)
    with engine.train_mode():
        engine.optimizer_zero_grad()
        engine.forward_backward_batch(data, loss_fn)
        grads = {
            name: full(parameter.grad).clone()
            for name, parameter in engine.module.named_parameters()
        }
    return {name: list(field.unbind()) for name, field in fields.items()} | {"gradient": grads}


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(folder: Path, rank: int) -> None:
    distributed.init_process_group(
        "cpu:gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    distributed.all_gather_into_tensor = as_nccl(distributed.all_gather_into_tensor)
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    if rank == 0:
        save_model(folder / "model")
    distributed.barrier()
    every = list(range(len(PROMPTS)))
    found = {
        "data parallel": answers(engine_of(folder / "model", 1), every[2 * rank : 2 * rank + 2]),
        "sequence parallel": answers(engine_of(folder / "model", RANKS), every),
    }
    torch.save(found, folder / f"answers_{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
