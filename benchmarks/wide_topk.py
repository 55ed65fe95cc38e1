"""How wrong is the reward where a teacher's server looks for the student's candidates among its W
most likely tokens, instead of scoring each?

The student's own responses, one pass of both models in float32, strategy ``only_stu``. A candidate
outside of the W is given the smallest log-prob among them (``teacher.server.wide_topk``). In the
first row, to compare with: every candidate scored, but by the teacher in bfloat16, as it would be
in the worker group or in a server.

Outside: share of the student's candidates outside of the W, and the student's probability of them,
mean over tokens. Reward: sum over a token's candidates of the absolute error, mean and largest, and
the mean as a share of that of |reward|. Gradient: of the loss with respect to the student's logits,
its relative error and its cosine with the exact one. Bytes per token: of a question's ids and of an
answer, which has ids, log-probs and flags.

    python benchmarks/wide_topk.py STUDENT TEACHER --prompts train.parquet       # some minutes
    python benchmarks/wide_topk.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --prompts dapo.parquet

The second: the model of that file teaches a copy of itself without two of its layers.
"""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.prune_opd.method.reward import Scores, TopK, TopKReward, topk_reward
from verl_ext.logits import score
from verl_ext.rollout.rows import At, TopKRows

REMOVED = (14, 15)
"""Layers that the damaged copy lacks."""
COLUMNS = (
    "teacher",
    "outside",
    "mass outside",
    "|reward error|",
    "largest",
    "of |reward|",
    "gradient error",
    "cosine",
    "bytes",
)


@dataclass(frozen=True)
class Response:
    """One response under both models, R tokens, V ids."""

    student: Tensor
    """(R, V) log-probs."""
    candidates: TopK
    """Of the student, (R, K)."""
    teacher: Tensor
    """(R, V) log-probs."""
    rough: Tensor
    """(R, K), the teacher's at the candidates in bfloat16."""


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pair", nargs="*", type=Path, help="folders of student and teacher")
    parser.add_argument("--gguf", type=Path, help="a model in place of the pair")
    parser.add_argument("--prompts", type=Path, required=True, help="parquet in verl's format")
    parser.add_argument("--responses", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of a response, at most")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--wide", type=int, nargs="+", default=[64, 128, 256])
    args = parser.parse_args()
    if bool(args.gguf) == bool(args.pair) or len(args.pair) not in (0, 2):
        parser.error("either the folders of student and teacher, or --gguf")
    torch.manual_seed(0)
    student, teacher, tokenizer = damaged(args.gguf) if args.gguf else loaded(*args.pair)
    chats = pd.read_parquet(args.prompts)["prompt"].iloc[: args.responses]
    rough = copy.deepcopy(teacher).to(torch.bfloat16)
    found: dict[str, list[list[Tensor]]] = {}
    for chat in chats:
        prompt, response = generated(student, tokenizer, list(chat), args.tokens)
        one = scored(student, teacher, rough, prompt, response, args.k)
        for name, row in measured(one, args.wide).items():
            found.setdefault(name, []).append(row)
    show(found, args.k)


def loaded(*folders: Path) -> tuple[Any, Any, Any]:
    """Student, teacher and tokenizer of a pair."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in folders
    )
    return student, teacher, AutoTokenizer.from_pretrained(folders[0])


def damaged(file: Path) -> tuple[Any, Any, Any]:
    """The model of a GGUF file as the teacher of itself less ``REMOVED``."""
    given = {"gguf_file": file.name}
    teacher = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given).eval()
    student = copy.deepcopy(teacher)
    layers = student.model.layers
    kept = [layer for i, layer in enumerate(layers) if i not in REMOVED]
    student.model.layers = torch.nn.ModuleList(kept)
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    student.config.num_hidden_layers = len(kept)
    return student, teacher, AutoTokenizer.from_pretrained(file.parent, **given)


@torch.no_grad()
def generated(
    student: Any, tokenizer: Any, chat: list[dict[str, str]], tokens: int
) -> tuple[Tensor, Tensor]:
    """Ids (P,) of a prompt and (R,) of a response at temperature 1."""
    given = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(chat, **given)["input_ids"]
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    whole = student.generate(prompt, max_new_tokens=tokens, **sampling)
    return prompt[0], whole[0, prompt.shape[1] :]


@torch.no_grad()
def scored(
    student: Any, teacher: Any, rough: Any, prompt: Tensor, response: Tensor, k: int
) -> Response:
    """One pass of each model."""
    ids, rows = torch.cat([prompt, response]).unsqueeze(0), slice(len(prompt) - 1, -1)
    s, t, r = (model(ids).logits[0, rows].float() for model in (student, teacher, rough))
    top = score(s, k, s.shape[-1])
    candidates = TopK(top["top_ids"], top["top_log_probs"])
    rounded = r.log_softmax(-1).gather(-1, candidates.ids.long())
    return Response(s.log_softmax(-1), candidates, t.log_softmax(-1), rounded)


def measured(one: Response, wides: list[int]) -> dict[str, list[Tensor]]:
    """Row of the table -> per-token outside, mass, error and |reward|, and the sums of squares and
    products of gradients that the other columns are made of."""
    ids, k = one.candidates.ids, one.candidates.ids.shape[-1]
    exact = one.teacher.gather(-1, ids.long())
    right = rewarded(one, exact)
    tried = {"every candidate, bfloat16": (one.rough, torch.zeros_like(ids).bool())}
    for wide in wides:
        best = one.teacher.topk(wide)
        rows = TopKRows(best.indices.int().numpy(), best.values.numpy())
        chosen = rows.narrowed(k, At(ids.numpy(), wide)).chosen
        assert chosen is not None
        tried[f"W = {wide}"] = torch.from_numpy(chosen.log_probs), torch.from_numpy(chosen.outside)
    g = gradient(one, right)
    found = {}
    for name, (told, outside) in tried.items():
        reward = rewarded(one, told)
        h = gradient(one, reward)
        found[name] = [
            outside.float().mean(-1),
            (one.candidates.log_probs.exp() * outside).sum(-1),
            (reward.reward - right.reward).abs().sum(-1),
            right.reward.abs().sum(-1),
            torch.stack(
                [(h - g).square().sum(), g.square().sum(), h.square().sum(), (g * h).sum()]
            ),
        ]
    return found


def rewarded(one: Response, told: Tensor) -> TopKReward:
    """Reward of the candidates, given the teacher's log-probs of them."""
    # What the teacher ranks itself is not asked for by the strategy.
    scores = Scores(one.candidates.ids[:, 0], one.candidates, one.candidates, told)
    return topk_reward(scores, "only_stu")


def gradient(one: Response, reward: TopKReward) -> Tensor:
    """Gradient (R, V) of the loss, times the number of tokens, with respect to the logits."""
    at = -reward.reward
    spread = torch.zeros_like(one.student).scatter_add_(-1, reward.ids.long(), at)
    return spread - one.student.exp() * at.sum(-1, keepdim=True)


def show(found: dict[str, list[list[Tensor]]], k: int) -> None:
    """Print the table."""
    first = next(iter(found))
    tokens = sum(len(row[0]) for row in found[first])
    title = f"{len(found[first])} responses, {tokens:,} tokens, k = {k}"
    table = Table(*COLUMNS, title=title)
    for name, rows in found.items():
        outside, mass, error, size = (
            torch.cat([row[i] for row in rows]).double() for i in range(4)
        )
        off, exact, other, both = torch.stack([row[4] for row in rows]).double().sum(0).tolist()
        # Back: own ids and log-probs, the sampled token's, log-probs and flags at the candidates.
        wire = "" if name == first else f"{4 * k + 8 * k + 4 + 5 * k}"
        table.add_row(
            name,
            f"{outside.mean():.2%}",
            f"{mass.mean():.2e}",
            f"{error.mean():.2e}",
            f"{error.max():.2e}",
            f"{error.mean() / size.mean():.2%}",
            f"{(off / exact) ** 0.5:.2%}",
            f"{both / (exact * other) ** 0.5:.6f}",
            wire,
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
