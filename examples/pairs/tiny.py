"""What the tasks and pairs of this folder share: tiny Llamas over word-level vocabularies, made,
trained and saved the way a hub folder holds them, and the command that writes a task's data."""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
HEAD_DIM = 32
"""Width of an attention head, the smallest that vLLM's attention on a CPU has."""
SPECIALS = [PAD, EOS, UNK, "<system>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' ~ message['role'] ~ '> ' ~ message['content'] ~ ' ' }}{%"
    " endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def word_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer; ids follow the order of ``vocabulary``, which begins with
    ``SPECIALS``."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[token for token in SPECIALS if token not in (PAD, EOS, UNK)],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    rope_theta: float = 1e4,
) -> LlamaForCausalLM:
    """A tiny Llama with fresh weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        # The usual 0.02 is for wide models; a narrow one starts slowly from it.
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer and generation settings the way a hub folder holds them."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fit(
    model: LlamaForCausalLM, losses: Iterator[Tensor], updates: int, lr: float, title: str
) -> None:
    """Train a model: warm-up, constant rate, linear decay over the last third.

    Args:
        model: trained in place.
        losses: the loss of each update, computed when it is asked for.
        updates: how many.
        lr: largest learning rate of AdamW.
        title: of the progress bar.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20, 0.05 + 3 * (1 - step / updates))
    )
    model.train()
    for _ in (bar := tqdm(range(updates), desc=title)):
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def build_once(out: Path, names: tuple[str, ...], settings: Any, build: Callable[[], None]) -> bool:
    """Build models into folders, unless some of the same settings are there already.

    On one thread: tensors are so small that more threads gain little, and lose much where cores are
    shared.

    Args:
        out: folder of the models.
        names: of the folders that ``build`` writes in it.
        settings: everything that decides what the models are, in values that JSON has.
        build: trains and saves them.

    Returns:
        False where they were there.
    """
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    stamp = out / "pair.json"
    if stamp.is_file() and json.loads(stamp.read_text()).get("key") == key:
        return False
    stamp.unlink(missing_ok=True)  # it says that the models are whole
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
    torch.set_num_threads(1)
    started = time.time()
    build()
    stamp.write_text(json.dumps({"key": key, "seconds": round(time.time() - started)}))
    return True


@torch.no_grad()
def respond(model: LlamaForCausalLM, prompts: Tensor, longest: int, sample: bool) -> Tensor:
    """Responses to prompts, (B, T).

    Args:
        model: one that ``build_model`` made.
        prompts: token ids, (B, P), all of one length.
        longest: tokens of a response at most; after its end it is padded.
        sample: at temperature 1; False: greedy.
    """
    how = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
    ids = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=longest, **how
    )
    return ids[:, prompts.shape[1] :]


def data_command(write_parquet: Callable[[Path, int, int, int], tuple[Path, Path]]) -> None:
    """Command line of a task: write its two data files.

    Args:
        write_parquet: takes folder, training problems, validation problems and seed.
    """
    parser = argparse.ArgumentParser(description="Write the two data files of the task.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet files")
    parser.add_argument("--train", type=int, default=4096, help="training problems")
    parser.add_argument("--validation", type=int, default=256, help="validation problems")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in write_parquet(args.out, args.train, args.validation, args.seed):
        print(path)
