"""A synthetic long-horizon task: carry one number through a long list of named additions.

The question names a start value and a list of (name, digit) pairs::

    start 17 ba 3 zo 9 ... end

and the solution walks through them, one step of seven words per pair, modulo 32::

    ba 17 + 3 = 20 ; zo 20 + 9 = 29 ; ... answer 29

Each step is easy (find the next name, copy its digit, add). The answer needs every step, so one slip early
in a response of one or two hundred tokens spoils the rest: the situation that long reasoning puts a model in.
Every word is one token, so lengths in words are lengths in tokens.

    python examples/quickstart/task.py --out DIR        # writes train.parquet and validation.parquet
"""

import argparse
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DATA_SOURCE = "prune_opd/running_sum"
MODULUS = 32
MIN_STEPS, MAX_STEPS = 8, 32
TOKENS_PER_STEP = 7
MAX_DIGIT, CYCLE, CIRCLE = 9, 3, 48
MAX_RESPONSE_TOKENS = TOKENS_PER_STEP * MAX_STEPS + 3  # "answer", the number, end of text

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
SPECIALS = [PAD, EOS, UNK, "<system>", "<user>", "<assistant>"]
WORDS = ["start", "add", "from", "answer", "+", "=", ";"]
NUMBERS = [str(n) for n in range(MODULUS)]
STEPS = [f"#{n}" for n in range(CIRCLE)]
VOCABULARY = SPECIALS + WORDS + NUMBERS + STEPS

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' ~ message['role'] ~ '> ' ~ message['content'] ~ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True)
class Problem:
    """One question with its worked solution and its answer."""

    question: str
    solution: str
    answer: str


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the task's vocabulary; ids follow the order of ``VOCABULARY``."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNK))
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


def walk(digits: list[int], count: int) -> list[int]:
    """States before and after each of ``count`` additions, for the start value that makes the last one 0."""
    added = [digits[step % CYCLE] for step in range(count)]
    return [(sum(added[:step]) - sum(added)) % MODULUS for step in range(count + 1)]


def sample_problem(rng: random.Random, min_steps: int = MIN_STEPS, max_steps: int = MAX_STEPS) -> Problem:
    """Draw one problem that takes ``min_steps`` to ``max_steps`` additions."""
    count, first = rng.randint(min_steps, max_steps), rng.randrange(len(STEPS))
    digits = [rng.randint(1, MAX_DIGIT) for _ in range(CYCLE)]
    while 0 in (states := walk(digits, count))[:-1]:  # it would be over earlier
        digits = [rng.randint(1, MAX_DIGIT) for _ in range(CYCLE)]
    names = [STEPS[(first + step) % len(STEPS)] for step in range(count)]
    solution = [
        f"{name} {states[step]} + {digits[step % CYCLE]} = {states[step + 1]} ;" for step, name in enumerate(names)
    ]
    question = f"start {states[0]} add {' '.join(map(str, digits))} from {names[0]}"
    return Problem(question, " ".join([*solution, f"answer {names[-1]}"]), names[-1])


def sample_problems(count: int, seed: int, exclude: set[str] | None = None) -> list[Problem]:
    """``count`` different problems from a seed, none of them a question in ``exclude``."""
    rng, seen, problems = random.Random(seed), set(exclude or ()), []
    while len(problems) < count:
        problem = sample_problem(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            problems.append(problem)
    return problems


def to_rows(problems: list[Problem], split: str) -> list[dict]:
    """Problems as rows of verl's data format."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": problem.question}],
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split},
        }
        for index, problem in enumerate(problems)
    ]


def write_parquet(out: Path, train: int = 4096, validation: int = 256, seed: int = 0) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``validation.parquet`` (no question in both) under ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    held_out = sample_problems(validation, seed + 1)
    training = sample_problems(train, seed + 2, exclude={problem.question for problem in held_out})
    paths = out / "train.parquet", out / "validation.parquet"
    for path, problems in zip(paths, (training, held_out), strict=True):
        pd.DataFrame(to_rows(problems, path.stem)).to_parquet(path)
    return paths


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **_) -> float:
    """1.0 when the word after the last ``answer`` is the ground truth, else 0.0 (verl's custom reward function)."""
    _, found, tail = str(solution_str).rpartition("answer")
    words = tail.replace(EOS, " ").replace(PAD, " ").split()
    return float(bool(found) and words[:1] == [str(ground_truth)])


def main() -> None:
    """Command line: write the two data files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet files")
    parser.add_argument("--train", type=int, default=4096, help="training problems")
    parser.add_argument("--validation", type=int, default=256, help="validation problems")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in write_parquet(args.out, args.train, args.validation, args.seed):
        print(path)


if __name__ == "__main__":
    main()
