"""One of two ranks that put a batch through verl's Megatron engine, in every way two can share it.

``python megatron_rank.py FOLDER RANK`` meets the other rank in FOLDER and leaves there what it
found, ``answers_RANK.pt``. Of verl's engine all is real but what builds a model, which needs
Megatron-Bridge and Transformer Engine: a table of logits by token id takes its place, and a
``GPTModel`` of megatron-core. megatron-core's own calls of CUDA are answered by the CPU.
"""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer import TransformerConfig
from tensordict import TensorDict
from torch import Tensor, distributed
from torch.overrides import TorchFunctionMode
from ulysses_rank import PROMPTS, K, V, batch, objective
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import McoreEngineConfig
from verl.workers.engine.megatron import MegatronEngineWithLMHead

from verl_ext.topk import Request, TopKPass, collect, join_columns, request_pass

RANKS = 2
PADDED = 112
"""Rows of the embedding: each of two tensor-parallel ranks has 56, the second 15 without token."""
COMMON = 59
"""Bound of the candidates: the second rank has 3 of them, fewer than K."""
FEW = 40
"""Tokens of a model whose second rank holds padding alone."""
OUTSIDE = (V, V + 3, PADDED + 5)
"""Ids that a teacher may know, without a row in this model."""
TEMPERATURE = 1.7
WAYS = {
    f"{name} {layout}": (tensor, context, layout == "thd")
    for layout in ("thd", "bshd")
    for name, (tensor, context) in {"data": (1, 1), "tensor": (2, 1), "context": (1, 2)}.items()
}
GPTS = {"gpt data": (1, 1), "gpt tensor": (2, 1), "gpt pipeline": (1, 2)}


class OnCPU(TorchFunctionMode):
    """Makes tensors on the CPU where megatron-core asks for ``device="cuda"``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "cpu"} if "device" in kwargs else kwargs))


class Table(torch.nn.Module):
    """Logits by the token's id: this rank's columns of one table (V, ``PADDED``)."""

    pre_process = post_process = True
    model_type = ModelType.encoder_or_decoder

    def __init__(self, config: TransformerConfig, table: Tensor):
        super().__init__()
        self.config = config
        self.table = torch.nn.Parameter(
            table.chunk(config.tensor_model_parallel_size, -1)[mpu.get_tensor_model_parallel_rank()]
        )

    def set_input_tensor(self, given: Any) -> None: ...

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        return F.embedding(input_ids, self.table)


class Causal(GPTModel):
    """Looks back alone: padding, behind each sequence, needs no mask, and megatron-core's own
    attention takes another than Transformer Engine's."""

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, **kwargs: Any
    ) -> Tensor:
        return super().forward(input_ids, position_ids, None)


def table() -> Tensor:
    """Padding behind the tokens is larger than any token's logit."""
    logits = 3 * torch.randn(V, PADDED, generator=torch.Generator().manual_seed(2))
    logits[:, V:] += 30
    return logits


def data() -> TensorDict:
    """The sequences of the other engines' test, with ids to score that the model does not have."""
    given = batch(list(range(len(PROMPTS))))
    given["chosen"].values()[2, : len(OUTSIDE)] = torch.tensor(OUTSIDE, dtype=torch.int32)
    tu.assign_non_tensor(given, temperature=TEMPERATURE)
    return given


def engine_of(build: Any, tensor: int, context: int, pipeline: int, packed: bool) -> Any:
    """verl's engine around a module, on freshly grouped ranks."""
    mpu.destroy_model_parallel()
    config = McoreEngineConfig(
        tensor_model_parallel_size=tensor,
        context_parallel_size=context,
        pipeline_model_parallel_size=pipeline,
        use_remove_padding=packed,
        use_dynamic_bsz=True,
    )
    model = SimpleNamespace(
        model_type="language_model",
        hf_config=SimpleNamespace(architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
        mtp=SimpleNamespace(enable=False, enable_train=False),
        tokenizer=SimpleNamespace(pad_token_id=0),
    )
    engine = MegatronEngineWithLMHead(model, config, None, CheckpointConfig())
    engine.tf_config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=48,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        normalization="RMSNorm",
        init_method_std=0.3,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        pipeline_dtype=torch.float32,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        batch_p2p_comm=False,
        deallocate_pipeline_outputs=True,
        tensor_model_parallel_size=tensor,
        context_parallel_size=context,
        pipeline_model_parallel_size=pipeline,
    )
    engine.module = [build(engine.tf_config)]
    return engine


def whole_name(name: str) -> str:
    """Name that a parameter of a stage has in the whole model, whose stages have a layer each."""
    layer = mpu.get_pipeline_model_parallel_rank()
    stages = mpu.get_pipeline_model_parallel_world_size()
    return name.replace(".layers.0.", f".layers.{layer}.") if stages > 1 else name


def gpt(config: TransformerConfig) -> Causal:
    """A model whose weights are the same however many ranks share it."""
    torch.manual_seed(0)
    model = Causal(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        PADDED,
        64,
        pre_process=mpu.is_pipeline_first_stage(),
        post_process=mpu.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    generator = torch.Generator()
    ranks, rank = config.tensor_model_parallel_size, mpu.get_tensor_model_parallel_rank()
    for name, parameter in model.named_parameters():
        generator.manual_seed(sum(ord(letter) * i for i, letter in enumerate(whole_name(name))))
        split = getattr(parameter, "partition_dim", -1)
        shape = list(parameter.shape)
        if split >= 0:
            shape[split] *= ranks
        values = 0.3 * torch.randn(shape, generator=generator)
        parameter.data.copy_(values.chunk(ranks, split)[rank] if split >= 0 else values + 1)
    return model


def scoring(vocab_size: int) -> TensorDict:
    """A batch with all that a scoring pass may be asked."""
    given = data()
    request_pass(given, Request(K, min(COMMON, vocab_size), "chosen"), sampled=True, entropy=True)
    return given


def update() -> TensorDict:
    """A batch to train on."""
    given = data()
    request_pass(given, Request(at="chosen"), sampled=False)
    return given


def scores(output: dict[str, Tensor], given: TensorDict) -> dict[str, Tensor]:
    """What the worker makes of a pass."""
    found = {
        name: collect(join_columns(output, name), given["input_ids"], given["responses"]).values()
        for name in ("top_ids", "top_log_probs", "log_probs_at")
    }
    found["entropy"] = output["entropy"].values()
    # verl's row of a last token is about the first of the sequence packed behind it.
    found["log_probs"] = torch.cat([row[:-1] for row in output["log_probs"].unbind()])
    return found


def answers(engine: Any, vocab_size: int) -> dict[str, Any]:
    """A scoring pass, where this rank has its results, and the gradient of an update."""
    loss_fn = TopKPass(objective, vocab_size)
    given = scoring(vocab_size)
    output = engine.infer_batch(given, loss_function=loss_fn).get("model_output")
    engine.forward_backward_batch(update(), loss_fn)
    return {
        "answers": engine.is_mp_src_rank_with_outputs(),
        "scores": None if output is None else scores(output, given),
        "gradient": {
            whole_name(name): each.grad for name, each in engine.module[0].named_parameters()
        },
    }


def packed(vocab_size: int) -> dict[str, Any]:
    """The same of one rank with FSDP's engine, which shows whole rows."""
    loss_fn = TopKPass(objective)
    weight = table()[:, :vocab_size].requires_grad_()

    def run(given: TensorDict) -> dict[str, Tensor]:
        tokens = given["input_ids"]
        logits = F.embedding(tokens.values(), weight) / TEMPERATURE
        columns = loss_fn(student_logits=logits.unsqueeze(0), data=given)
        return {
            name: torch.nested.nested_tensor_from_jagged(column.squeeze(0), tokens.offsets())
            for name, column in columns.items()
        }

    given, trained = scoring(vocab_size), update()
    with torch.no_grad():
        found = scores(run(given), given)
    tokens = trained["loss_mask"].values().sum().item()
    tu.assign_non_tensor(trained, batch_num_tokens=tokens, dp_size=1)
    loss_fn(model_output=run(trained), data=trained)[0].backward()
    padding = torch.zeros(V, PADDED - vocab_size)
    return {"scores": found, "gradient": {"table": torch.cat([weight.grad, padding], -1)}}


def main(folder: Path, rank: int) -> None:
    distributed.init_process_group(
        "cpu:gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda: None
    initialize_rng_tracker(inference_rng_tracker=True)  # others keep states of CUDA
    found = {"packed": packed(V), "packed few": packed(FEW)}
    build = partial(Table, table=table())
    with OnCPU():
        for name, (tensor, context, thd) in WAYS.items():
            found[name] = answers(engine_of(build, tensor, context, 1, thd), V)
        found["tensor few"] = answers(engine_of(build, 2, 1, 1, True), FEW)
        for name, (tensor, pipeline) in GPTS.items():
            found[name] = answers(engine_of(gpt, tensor, 1, pipeline, False), V)
    torch.save(found, folder / f"answers_{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
