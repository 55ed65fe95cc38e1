"""Model folders without weights and data files for the tests of the start check, and the sentence
that refuses them."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from recipe.prune_opd.checks.inputs import Inputs
from recipe.prune_opd.config import read_config
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training import preflight

VOCABULARY = ["<unk>", "<eos>", "<end>", *(f"w{i}" for i in range(20))]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5678\n"


def save_model(
    folder: Path,
    words: list[str] = VOCABULARY,
    rows: int = 0,
    ends: list[int] | None = None,
    template: str | None = CHATML,
    **settings: Any,
) -> str:
    """A model folder without weights: configuration and word-level tokenizer. ``settings`` are the
    configuration's."""
    from tokenizers import Tokenizer, models
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    given = {"max_position_embeddings": 2048, "eos_token_id": 1, "vocab_size": rows or len(words)}
    LlamaConfig(**(sizes | given | settings)).save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    if ends is not None:
        GenerationConfig(eos_token_id=ends).save_pretrained(folder)
    return str(folder)


def save_data(file: Path, rows: list[Any]) -> str:
    """Rows as the file's ending says."""
    if file.suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def row(*turns: Any, **columns: Any) -> dict[str, Any]:
    """A row in verl's format, by default with a question of the user's."""
    prompt = [
        turn if isinstance(turn, dict) else dict(zip(("role", "content"), turn, strict=True))
        for turn in turns
    ]
    given = {"prompt": prompt or [{"role": "user", "content": "w1 w2"}], "data_source": "AIME24"}
    return given | {"reward_model": {"ground_truth": "1", "style": "rule"}} | columns


def check_inputs(config: DictConfig) -> Inputs:
    """The start check's look at files, without its look at the attention and at verl's keys."""
    prune_opd = read_config(config)
    home = build_home(prune_opd)
    inputs = preflight.check_inputs(
        config, prune_opd, weights=home.has_files, text_only=home.is_asked
    )
    for teacher in inputs.teachers:
        home.check_models(config, inputs.student, teacher)
    return inputs


def refusal(config: DictConfig) -> str:
    """The sentence that ends the start: it begins with a key and is one line."""
    with pytest.raises(ValueError, match=r"^[a-z_.]+: ") as refused:
        check_inputs(config)
    message = str(refused.value)
    assert "\n" not in message
    return message
