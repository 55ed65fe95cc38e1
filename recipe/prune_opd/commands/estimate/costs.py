"""Parameters, FLOPs and bytes of a model and a batch, out of configurations, without weights.

Symbols: L layers, h hidden size, H and G query and key-value heads of d, V rows of the embedding.
The formulas with words: docs/estimate.md.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe.prune_opd.checks.files import local_path
from recipe.prune_opd.commands.files import check_model

GB = 1e9
MOST_REASON = 200
"""Characters of another library's message that are shown."""
SIZES = ("num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size")
"""Sizes that every configuration must have, under transformers' names."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only model."""

    layers: int
    hidden: int
    attention: int
    """H * d, the width that attention works on."""
    key_value: int
    """G * d, the width of the keys and of the values that are cached."""
    vocabulary: int
    parameters: int
    embedding: int
    """Parameters of the input embedding, V * h. A tied head is the same ones."""
    tied: bool
    experts: int = 0
    """Experts per layer, 0 in a dense model."""

    @property
    def layer(self) -> int:
        """Parameters of one layer, rounded."""
        return round((self.parameters - self.root) / self.layers)

    @property
    def root(self) -> int:
        """Parameters of embedding and head."""
        return self.embedding if self.tied else 2 * self.embedding

    @property
    def matmul(self) -> int:
        """Parameters a token is multiplied with: all but the input embedding, with a tied head."""
        return self.parameters if self.tied else self.parameters - self.embedding

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache per token, 16 bits each."""
        return 2 * 2 * self.layers * self.key_value


def read_config(key: str, path: str, trust_remote_code: bool = False) -> Any:
    """Read the model configuration in a local folder or under a hub name.

    Raises:
        ValueError: there is none; names the key and the path.
    """
    from transformers import AutoConfig

    check_model(key, path, ("config.json",))
    try:
        return AutoConfig.from_pretrained(
            local_path(path), trust_remote_code=trust_remote_code
        ).get_text_config()
    # A file of another shape is a TypeError or whatever its reader stumbles over.
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= MOST_REASON else f"{reason[:MOST_REASON]}..."
        raise ValueError(f"{key}: {path} holds no model configuration ({reason})") from error


def model_shape(config: Any) -> Shape:
    """Work out the sizes of the model that a configuration describes.

    Counted by formula for Llama, Qwen2 and Qwen3, by building the model without storage for all
    others.

    Args:
        config: ``transformers`` text configuration.

    Raises:
        ValueError: the configuration is of no causal language model, or of one without attention.
    """
    _check_sizes(config)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    embedding = config.vocab_size * config.hidden_size
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        attention=heads * size,
        key_value=groups * size,
        vocabulary=config.vocab_size,
        parameters=_count(config, heads * size, groups * size, size),
        embedding=embedding,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        experts=max(
            getattr(config, name, 0) or 0
            for name in ("num_experts", "num_local_experts", "n_routed_experts")
        ),
    )


def _check_sizes(config: Any) -> None:
    absent = [name for name in SIZES if not isinstance(getattr(config, name, None), int)]
    if absent:
        raise ValueError(
            f"model_type {config.model_type!r} has no {', '.join(absent)}, allowed: a causal"
            " language model with attention"
        )
    below = [f"{name} = {getattr(config, name)}" for name in SIZES if getattr(config, name) < 1]
    if below:
        raise ValueError(
            f"model_type {config.model_type!r} has {', '.join(below)}, allowed: whole numbers >= 1"
        )


def _count(config: Any, attention: int, key_value: int, head: int) -> int:
    """Count parameters, each tensor once."""
    if config.model_type not in ("llama", "qwen2", "qwen3"):
        return _count_built(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 2 * hidden * attention + 2 * hidden * key_value + 3 * hidden * inner + 2 * hidden
    if config.model_type == "qwen2":
        layer += attention + 2 * key_value  # biases of q, k, v whatever the configuration says
    elif config.attention_bias:
        layer += attention + 2 * key_value + hidden
    if config.model_type == "qwen3":
        layer += 2 * head  # norms of q and k
    if getattr(config, "mlp_bias", False):
        layer += 2 * inner + hidden
    tables = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * layer + tables * config.vocab_size * hidden + hidden


def _count_built(config: Any) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"model_type {config.model_type!r} is no causal language model of transformers"
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


# -------------------------------------------------------------------------------------------- FLOPs


def forward_flops(shape: Shape, sequences: NDArray[np.float64]) -> float:
    """Count the FLOPs of a forward pass over whole sequences: prefill, decoding and scoring alike.

    2 per parameter and token, and 4 * L * H * d for each pair of a token and one before it.

    Args:
        shape: the model.
        sequences: tokens of each sequence.

    Raises:
        ValueError: a mixture of experts, whose tokens meet only some of the parameters.
    """
    if shape.experts > 1:
        raise ValueError(f"a model with {shape.experts} experts per layer, allowed: dense models")
    pairs = float((sequences**2).sum()) / 2
    return (
        2.0 * shape.matmul * float(sequences.sum()) + 4.0 * shape.layers * shape.attention * pairs
    )


# ------------------------------------------------------------------------------------------ lengths


def response_lengths(
    mean: float, spread: float, limit: float, responses: int
) -> NDArray[np.float64]:
    """Spread lengths of responses as quantiles of a log-normal distribution, cut at a limit.

    Args:
        mean: tokens of a response that nothing cuts.
        spread: standard deviation of the logarithm; 0 makes all responses alike.
        limit: most tokens.
        responses: number of quantiles.

    Returns:
        (responses,) ascending.
    """
    middle = np.log(mean) - spread**2 / 2
    normal = NormalDist()
    ranks = np.array([normal.inv_cdf((i + 0.5) / responses) for i in range(responses)])
    return np.minimum(np.exp(middle + spread * ranks), limit)


def ramp(first: int, most: int, step: int, steps: int, batches_per_move: float = 4.0) -> float:
    """Average the limit, in tokens, over a run in which it grows by ``step`` every few batches."""
    return float(np.minimum(first + step * np.arange(steps) / batches_per_move, most).mean())


# -------------------------------------------------------------------------------------------- bytes


BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


def readable(size: float) -> str:
    """Write a number of bytes for a reader, in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"


def weight_bytes(shape: Shape, dtype: str, shards: int = 1) -> float:
    """Bytes of the weights on each of ``shards`` devices.

    Raises:
        ValueError: unknown dtype.
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype: got {dtype!r}, allowed: {', '.join(BYTES)}")
    return shape.parameters * BYTES[dtype] / shards
