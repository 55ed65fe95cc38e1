"""A synthetic long-horizon task: how many additions until a number comes round to zero?

The question gives a start value, three digits that are added in turn modulo 32, and the name of the
first step (step names run round a circle, #0 to #47)::

    start 15 add 9 5 3 from #46

and the solution walks until it meets 0, seven words a step, and answers with the name of the last
step::

    #46 15 + 9 = 24 ; #47 24 + 5 = 29 ; #0 29 + 3 = 0 ; answer #0

Each step is easy: the next name, the last result, the digit three steps back, a sum. The answer
needs every one of up to 32 steps, so one slip early in a response of one or two hundred tokens
spoils the rest: the situation that long reasoning puts a model in. Every word is one token, so
lengths in words are lengths in tokens.

    python examples/pairs/walk.py --out DIR     # writes train.parquet and validation.parquet
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerFast

# verl loads this file by its path, in processes whose module path does not hold its folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import tiny
from tiny import EOS, PAD

DATA_SOURCE = "prune_opd/walk_to_zero"
MODULUS = 32
MAX_DIGIT = 9
CYCLE = 3
MIN_STEPS, MAX_STEPS = 8, 32
MAX_RESPONSE_TOKENS = 7 * MAX_STEPS + 3  # seven words a step, then "answer", the name, end of text

WORDS = ["start", "add", "from", "answer", "+", "=", ";"]
NUMBERS = [str(n) for n in range(MODULUS)]
STEPS = [f"#{n}" for n in range(48)]
VOCABULARY = tiny.SPECIALS + WORDS + NUMBERS + STEPS


@dataclass(frozen=True)
class Problem:
    """One question with its worked solution and its answer."""

    question: str
    solution: str
    answer: str


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the task's vocabulary; ids follow the order of ``VOCABULARY``."""
    return tiny.word_tokenizer(VOCABULARY)


def walk(digits: list[int], count: int) -> list[int]:
    """States before and after each of ``count`` additions, for the start value that makes the last
    one 0."""
    added = [digits[step % CYCLE] for step in range(count)]
    return [(sum(added[:step]) - sum(added)) % MODULUS for step in range(count + 1)]


def sample_digits(rng: random.Random) -> list[int]:
    """The digits that are added in turn."""
    return [rng.randint(1, MAX_DIGIT) for _ in range(CYCLE)]


def sample_problem(
    rng: random.Random, min_steps: int = MIN_STEPS, max_steps: int = MAX_STEPS
) -> Problem:
    """Draw one problem that takes ``min_steps`` to ``max_steps`` additions."""
    count, first, digits = (
        rng.randint(min_steps, max_steps),
        rng.randrange(len(STEPS)),
        sample_digits(rng),
    )
    while 0 in (states := walk(digits, count))[:-1]:  # it would be over earlier
        digits = sample_digits(rng)
    names = [STEPS[(first + step) % len(STEPS)] for step in range(count)]
    solution = [
        f"{name} {states[step]} + {digits[step % CYCLE]} = {states[step + 1]} ;"
        for step, name in enumerate(names)
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


def write_parquet(
    out: Path, train: int = 4096, validation: int = 256, seed: int = 0
) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``validation.parquet`` (no question in both) under ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    held_out = sample_problems(validation, seed + 1)
    training = sample_problems(train, seed + 2, exclude={problem.question for problem in held_out})
    paths = out / "train.parquet", out / "validation.parquet"
    for path, problems in zip(paths, (training, held_out), strict=True):
        pd.DataFrame(to_rows(problems, path.stem)).to_parquet(path)
    return paths


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **_
) -> float:
    """1.0 when the word after the last ``answer`` is the ground truth, else 0.0 (verl's custom
    reward function)."""
    _, found, tail = str(solution_str).rpartition("answer")
    words = tail.replace(EOS, " ").replace(PAD, " ").split()
    return float(bool(found) and words[:1] == [str(ground_truth)])


def main() -> None:
    """Command line: write the two data files."""
    tiny.data_command(write_parquet)


if __name__ == "__main__":
    main()
