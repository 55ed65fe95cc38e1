"""Train the student and the teacher of ``walk.py``: a teacher that can do the task and a student
that loses its way.

Both come out of one training run on right solutions. It starts with short solutions;
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

    python examples/pairs/walk_pair.py --out DIR        # writes DIR/student and DIR/teacher
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tiny
import torch
import torch.nn.functional as F
import walk as task
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

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


def losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings, name: str
) -> Iterator[Tensor]:
    """Loss of each update of the stages that make ``name``."""
    student = name == "student"
    stages = settings.student if student else settings.teacher
    tail_weight = settings.student_tail_weight if student else settings.teacher_tail_weight
    rng = random.Random(f"{settings.seed} {name}")
    for stage in (each for each in stages for _ in range(each.updates)):
        # Problems of nearly one length make a batch: padding would be wasted work.
        steps = rng.randint(stage.min_steps, stage.max_steps)
        problems = [
            task.sample_problem(rng, steps, min(steps + 1, stage.max_steps))
            for _ in range(settings.batch)
        ]
        yield loss_of(model, *training_batch(tokenizer, problems), tail_weight)


def build_pair(out: Path, settings: Settings) -> bool:
    """Train and save ``out/student`` and ``out/teacher``; False where a pair of these settings is
    already there."""
    plan = {"student": settings.student, "teacher": settings.teacher}

    def build() -> None:
        tokenizer = task.build_tokenizer()
        torch.manual_seed(settings.seed)
        model = tiny.build_model(tokenizer, settings.width, settings.layers, settings.heads)
        for name, stages in plan.items():  # the teacher goes on from the student's weights
            updates = sum(stage.updates for stage in stages)
            drawn = losses(model, tokenizer, settings, name)
            tiny.fit(model, drawn, updates, settings.lr, f"training the {name}")
            tiny.save(model, tokenizer, out / name)

    key = [LlamaForCausalLM.__name__, asdict(settings), task.VOCABULARY]
    return tiny.build_once(out, tuple(plan), key, build)


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
        sampled[name] = tiny.respond(model, prompts, task.MAX_RESPONSE_TOKENS, sample=True)
        greedy = tiny.respond(model, prompts, task.MAX_RESPONSE_TOKENS, sample=False)
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
