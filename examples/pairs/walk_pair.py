"""Train the quickstart's two models: a teacher that can do the task and a student that loses its
way.

Both come out of one training run on right solutions of ``task.py``. It starts with short solutions;
the model at the end of that part is the **student**. It is sound at the start of a response and
drifts off where responses get longer than those it has seen. The run goes on with full-length
solutions, and its end is the **teacher**. So the two agree where the student knows what it does and
part where it does not, which is what pruning has to find.

Top-k overlap compares the k = 16 most likely tokens, of which all but one are improbable. Tiny
models trained the usual way rank improbable tokens at random, and the overlap would be noise. So
the ranking is taught: beside the cross-entropy of the right token, the *rest* of the distribution
(everything but the right token, renormalised) is trained towards the 15 tokens that follow or
precede the right one in the vocabulary, the closer the likelier. A model that believes in another
next token then has another top 16. The total probability of these tokens is left to the
cross-entropy, so it goes to zero and sampling at temperature 1 stays safe over hundreds of tokens.
The student gets little of this second loss: its ranking is rough everywhere, and rougher the
further it strays.

    python examples/quickstart/pair.py --out DIR        # writes DIR/student and DIR/teacher
"""

import argparse
import hashlib
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import task
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from recipe.prune_opd.method.drift import overlap_events, overlap_ratio

TOP_K = 16
DRIFT_BELOW = 0.7
IGNORE = -100


@dataclass(frozen=True)
class Stage:
    """A part of the training run: how many updates, on solutions of how many steps."""

    updates: int
    min_steps: int
    max_steps: int


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the two models are; the cache is keyed by it."""

    seed: int = 0
    width: int = 64
    layers: int = 2
    heads: int = 2
    batch: int = 64
    lr: float = 5e-3
    student: tuple[Stage, ...] = (Stage(460, 3, 8), Stage(50, 3, 11))
    teacher: tuple[Stage, ...] = (Stage(250, task.MIN_STEPS, task.MAX_STEPS),)
    student_tail_weight: float = 0.001
    teacher_tail_weight: float = 0.3

    def key(self) -> str:
        """Hash of the settings and of the vocabulary."""
        parts = [LlamaForCausalLM.__name__, asdict(self), task.VOCABULARY]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """a tiny Llama with fresh weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=1024,
        # The usual 0.02 is for wide models; a narrow one starts slowly from it.
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode_prompts(tokenizer: PreTrainedTokenizerFast, problems: list[task.Problem]) -> Tensor:
    """Chat prompts of the problems, (B, P); all have one length."""
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    encoded = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return encoded["input_ids"]


def training_batch(
    tokenizer: PreTrainedTokenizerFast, problems: list[task.Problem]
) -> tuple[Tensor, Tensor]:
    """Prompts with solutions, and the labels: solution tokens only."""
    prompts = encode_prompts(tokenizer, problems)
    solutions = tokenizer(
        [f"{problem.solution} {task.EOS}" for problem in problems],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    labels = solutions["input_ids"].masked_fill(solutions["attention_mask"] == 0, IGNORE)
    ids = torch.cat([prompts, solutions["input_ids"]], 1)
    return ids, torch.cat([torch.full_like(prompts, IGNORE), labels], 1)


def loss_of(model: LlamaForCausalLM, ids: Tensor, labels: Tensor, tail_weight: float) -> Tensor:
    """Cross-entropy of the right token, and of the rest of the distribution against the right
    token's neighbours."""
    hidden, labels = model.model(ids).last_hidden_state[:, :-1], labels[:, 1:]
    known = labels != IGNORE
    logits, right = model.lm_head(hidden[known]), labels[known].unsqueeze(1)
    offsets = torch.tensor([d for d in range(1 - TOP_K // 2, TOP_K // 2 + 1) if d])
    neighbours = (right + offsets) % logits.shape[1]
    weights = 1 + TOP_K // 2 - offsets.abs().float()
    rest = logits.scatter(1, right, float("-inf")).log_softmax(1).gather(1, neighbours)
    tail = -(rest * (weights / weights.sum())).sum(1).mean()
    return F.cross_entropy(logits, right.squeeze(1)) + tail_weight * tail


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings, name: str
) -> None:
    """Run the stages that make ``name``: warm-up, constant rate, linear decay over the last
    third."""
    stages = settings.student if name == "student" else settings.teacher
    tail_weight = (
        settings.student_tail_weight if name == "student" else settings.teacher_tail_weight
    )
    rng, total = random.Random(f"{settings.seed} {name}"), sum(stage.updates for stage in stages)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20, 0.05 + 3 * (1 - step / total))
    )
    plan = [stage for stage in stages for _ in range(stage.updates)]
    model.train()
    for stage in (bar := tqdm(plan, desc=f"training the {name}")):
        # Problems of nearly one length make a batch: padding would be wasted work.
        steps = rng.randint(stage.min_steps, stage.max_steps)
        problems = [
            task.sample_problem(rng, steps, min(steps + 1, stage.max_steps))
            for _ in range(settings.batch)
        ]
        loss = loss_of(model, *training_batch(tokenizer, problems), tail_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer and generation settings the way a hub folder holds them."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_pair(out: Path, settings: Settings) -> bool:
    """Train and save ``out/student`` and ``out/teacher``; False where a pair of these settings is
    already there.

    On one thread: tensors are so small that more threads gain little, and lose much where cores are
    shared.
    """
    stamp = out / "pair.json"
    if stamp.is_file() and json.loads(stamp.read_text()).get("key") == settings.key():
        return False
    for folder in ("student", "teacher"):
        shutil.rmtree(out / folder, ignore_errors=True)
    torch.set_num_threads(1)
    started, tokenizer = time.time(), task.build_tokenizer()
    torch.manual_seed(settings.seed)
    model = build_model(settings, tokenizer)
    for name in ("student", "teacher"):  # the teacher goes on from the student's weights
        train(model, tokenizer, settings, name)
        save(model, tokenizer, out / name)
    stamp.write_text(json.dumps({"key": settings.key(), "seconds": round(time.time() - started)}))
    return True


@torch.no_grad()
def respond(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Tensor, sample: bool
) -> Tensor:
    """Responses to the prompts, greedy or sampled at temperature 1, (B, T), padded after the end of
    text."""
    how = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=task.MAX_RESPONSE_TOKENS,
        **how,
    )
    return ids[:, prompts.shape[1] :]


def accuracy(
    tokenizer: PreTrainedTokenizerFast, responses: Tensor, problems: list[task.Problem]
) -> float:
    """Share of responses that get the task's score."""
    texts = tokenizer.batch_decode(responses)
    scores = [
        task.compute_score(task.DATA_SOURCE, text, problem.answer)
        for text, problem in zip(texts, problems, strict=True)
    ]
    return sum(scores) / len(scores)


@torch.no_grad()
def overlap(
    student: LlamaForCausalLM,
    teacher: LlamaForCausalLM,
    prompts: Tensor,
    responses: Tensor,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """Shared part of the two top-k sets at each response token, (B, T), and which tokens were
    generated."""
    ids, start = torch.cat([prompts, responses], 1), prompts.shape[1] - 1
    student_top, teacher_top = (
        model(ids).logits[:, start:-1].topk(TOP_K).indices for model in (student, teacher)
    )
    return overlap_ratio(student_top, teacher_top), responses != pad


def print_overlap(shared: Tensor, mask: Tensor, bucket: int = 32) -> None:
    """Overlap and drift events over all generated tokens, then by position in the response."""
    events = overlap_events(shared, mask, DRIFT_BELOW).float()
    print(f"top-{TOP_K} overlap on the student's responses, and drift events per token:")
    print(f"  all tokens: {shared[mask].mean():.2f}, {events[mask].mean():.3f}")
    for begin in range(0, mask.shape[1], bucket):
        part = slice(begin, begin + bucket)
        if (here := mask[:, part]).any():
            mean, rate = shared[:, part][here].mean(), events[:, part][here].mean()
            print(f"  tokens {begin:3} to {begin + bucket - 1:3}: {mean:.2f}, {rate:.3f}")


def report(out: Path, count: int, seed: int) -> None:
    """Print the accuracy of both models, and where along the student's own sampled responses the
    two part."""
    torch.manual_seed(seed)  # the same samples whether the pair was trained just now or found
    tokenizer = task.build_tokenizer()
    models = {
        name: AutoModelForCausalLM.from_pretrained(out / name) for name in ("student", "teacher")
    }
    problems = task.sample_problems(count, seed)
    prompts, sampled = encode_prompts(tokenizer, problems), {}
    for name, model in models.items():
        sampled[name] = respond(model, tokenizer, prompts, sample=True)
        greedy = respond(model, tokenizer, prompts, sample=False)
        print(
            f"{name}: {accuracy(tokenizer, greedy, problems):.1%} right greedy,"
            f" {accuracy(tokenizer, sampled[name], problems):.1%} at temperature 1"
            f" ({count} held-out problems)"
        )
    print_overlap(
        *overlap(
            models["student"],
            models["teacher"],
            prompts,
            sampled["student"],
            tokenizer.pad_token_id,
        )
    )


def main() -> None:
    """Command line: train the pair unless it is there, then measure it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for student/ and teacher/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--problems", type=int, default=256, help="held-out problems to measure on; 0 skips it"
    )
    args = parser.parse_args()
    print(
        "trained" if build_pair(args.out, Settings(seed=args.seed)) else "found a trained pair",
        "in",
        args.out,
    )
    if args.problems:
        report(args.out, args.problems, args.seed + 1)


if __name__ == "__main__":
    main()
