"""Models whose next token depends on the last one alone, by a table written down by hand.

A task made for them: from ``<assistant>`` along c0, c1, ... to ``right`` and the end. A student
that slips to one of d0, d1, ... has left the chain. What a teacher says there is up to its table.
"""

import itertools
from pathlib import Path

import torch
from torch import Tensor

CHAIN, ASIDE = 12, 12
WORDS = [
    "<unk>",
    "<eos>",
    "<pad>",
    "<user>",
    "<assistant>",
    "right",
    *(f"c{i}" for i in range(CHAIN)),
    *(f"d{i}" for i in range(ASIDE)),
    *(f"w{i}" for i in range(64 - 6 - CHAIN - ASIDE)),
]
ID = {word: i for i, word in enumerate(WORDS)}
C, D = [ID[f"c{i}"] for i in range(CHAIN)], [ID[f"d{i}"] for i in range(ASIDE)]
BACK = [*C[1:], ID["right"]]
"""Where each of D leads back to."""
TEMPLATE = (
    "{% for m in messages %}{{ '<' ~ m['role'] ~ '> ' ~ m['content'] ~ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return float(solution_str.split()[-1:] == [ground_truth])
"""
SOLUTION = " ".join([*(f"c{i}" for i in range(CHAIN)), "right"])


def table(seed: int) -> Tensor:
    """Probabilities of a model that knows the chain, and nothing of what lies beside it, (V, V).

    What it never writes is ranked at random, as a model of this size ranks it.
    """
    generator = torch.Generator().manual_seed(seed)
    probs = 1e-5 * (1 + torch.rand(len(WORDS), len(WORDS), generator=generator))
    chain = [ID["<assistant>"], *C, ID["right"], ID["<eos>"]]
    for here, following in itertools.pairwise(chain):
        probs[here, following] = 1.0
    return probs


def student() -> Tensor:
    """Slips from the chain at one token in eight, and then wanders about beside it.

    It comes back now and then, so that the way back is among its candidates, where OPD can teach
    it.
    """
    probs = table(0)
    for here in C:
        probs[here] *= 0.875
        probs[here, D] = 0.125 / ASIDE
    for here, following in zip(D, BACK, strict=True):
        probs[here, D] = 0.85 / ASIDE
        probs[here, following] = 0.15
    return probs


def healing(seed: int = 1) -> Tensor:
    """Brings every slip back to the chain."""
    probs = table(seed)
    for here, following in zip(D, BACK, strict=True):
        probs[here, following] = 1.0
    return probs


def lost(seed: int = 1) -> Tensor:
    """Sure of one token beside the chain, whatever is right: another one by another seed."""
    probs = table(seed)
    order = torch.randperm(ASIDE, generator=torch.Generator().manual_seed(seed)).tolist()
    for here, following in zip(D, order, strict=True):
        probs[here, D[following]] = 1.0
    return probs


def save(folder: Path, probs: Tensor) -> str:
    """A Llama with these probabilities (V, V): attention and MLP add nothing.

    d_i is embedded as half itself and as c_i: what is learned on one is learned on the other.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    size = len(WORDS)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=ID["<eos>"],
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    embedding = torch.eye(size)
    embedding[D, D] = 0.5
    embedding[D, C] = 1.0
    normed = embedding / embedding.square().mean(-1, keepdim=True).sqrt()
    logits = (probs / probs.sum(-1, keepdim=True)).log()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(torch.linalg.solve(normed, logits).T)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return str(folder)


def save_data(folder: Path, rows: int = 32) -> tuple[str, str]:
    """Questions with answers and solutions, and the reward function that grades them."""
    import pandas

    data, reward = folder / "train.parquet", folder / "reward.py"
    pandas.DataFrame(
        {
            "data_source": "chain",
            "prompt": [{"role": "user", "content": f"w{i}"}],
            "reward_model": {"style": "rule", "ground_truth": "right"},
            "extra_info": {"solution": SOLUTION},
        }
        for i in range(rows)
    ).to_parquet(data)
    reward.write_text(REWARD)
    return str(data), str(reward)
