"""Datasets of ``prepare``: where they are, their columns, how their prompts instruct a model."""

from collections.abc import Callable
from dataclasses import dataclass, field

SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."
"""End of every validation prompt of the paper."""
DAPO_HEAD = (
    "Solve the following math problem step by step. The last line of your response should be of the"
    " form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_TAIL = '\n\nRemember to put your answer on its own line after "Answer:".'
"""DAPO-Math-17K comes with prompts of its own, on which the paper trains."""
INSTRUCTIONS = (
    SUFFIX,
    "Let's think step by step and output the final answer within \\boxed{}.",
    'Let\'s think step by step and output the final answer after "####".',
)
"""Ends of prompts that ask for a form of the answer: the paper's, and those of verl's own
preprocessing."""


@dataclass(frozen=True)
class Dataset:
    """Source of a dataset, names of its columns, and what its rows become."""

    hub: str
    split: str
    source: str
    """``data_source`` of its rows."""
    rows: int
    """Rows without repeats, to tell another version."""
    config: str | None = None
    question: str = "problem"
    answer: str = "answer"
    id: str | None = "id"
    head: str = ""
    tail: str = SUFFIX
    final: Callable[[str], str] = field(default=str.strip)
    """Ground truth out of the answer column."""


def _after_hashes(solution: str) -> str:
    """Take the answer out of a solution of GSM8K, which ends in ``#### 1,234``.

    Raises:
        ValueError: there is no ``####``; the whole solution would be the ground truth.
    """
    _, hashes, answer = solution.rpartition("####")
    if not hashes:
        raise ValueError("without ####, allowed: a solution that ends in #### and the answer")
    return answer.strip().replace(",", "")


DATASETS = {
    "dapo_math_17k": Dataset(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        "train",
        "math_dapo",
        17917,
        head=DAPO_HEAD,
        tail=DAPO_TAIL,
    ),
    "math_500": Dataset("HuggingFaceH4/MATH-500", "test", "MATH-500", 500, id="unique_id"),
    "aime24": Dataset("HuggingFaceH4/aime_2024", "train", "AIME24", 30),
    "aime25": Dataset("math-ai/aime25", "test", "AIME25", 30),
    "amc23": Dataset("AI-MO/aimo-validation-amc", "train", "AMC23", 83),
    "hmmt24": Dataset("MathArena/hmmt_feb_2024", "train", "HMMT24", 30, id="problem_idx"),
    "hmmt25": Dataset("MathArena/hmmt_feb_2025", "train", "HMMT25", 30, id="problem_idx"),
    "gsm8k": Dataset(
        "openai/gsm8k",
        "test",
        "GSM8K",
        1319,
        config="main",
        question="question",
        id=None,
        final=_after_hashes,
    ),
}
"""Datasets by name, which is also that of the file."""


def bare_question(prompt: str) -> str:
    """Strip the instructions of DAPO, the paper or verl off a prompt: they would be there twice."""
    prompt = prompt.removeprefix(DAPO_HEAD).removesuffix(DAPO_TAIL)
    # As the paper's files have it: white space before it is the question's.
    if prompt.endswith(SUFFIX):
        return prompt.removesuffix(SUFFIX)
    for instruction in INSTRUCTIONS:
        shorter = prompt.rstrip().removesuffix(instruction.strip())
        if len(shorter) < len(prompt.rstrip()):
            return shorter.rstrip()
    return prompt
