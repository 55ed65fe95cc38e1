"""Arguments of ``doctor``: the pair, the run that is planned, and what to look at."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from recipe.prune_opd.commands.pair.arguments import COUNT, POSITIVE, Dtype, PairArguments


@dataclass(frozen=True)
class Arguments(PairArguments):
    """Arguments of the command."""

    max_rows: Annotated[int, COUNT] = 20000
    """prompts to read"""
    max_prompt_length: Annotated[int, COUNT] = 1024
    """data.max_prompt_length of the run you plan"""
    max_response_length: Annotated[int, COUNT] = 12288
    """longest response, data.max_response_length or prune_opd.budget.max"""
    gpus: Annotated[int, COUNT] = 8
    """GPUs of the training"""
    gpu_memory: Annotated[
        float | None, POSITIVE, arg(metavar="GB", help_behavior_hint="(default: not compared)")
    ] = None
    """memory of a GPU"""
    dtype: Dtype = "bfloat16"
    """what training computes in"""
    no_weights: bool = False
    """read files only, load no weights"""
    tokens: Annotated[int, COUNT] = 32
    """tokens sampled for each of 3 prompts"""
    device: str = "cpu"
    """where the models run: cpu, cuda, cuda:1"""
    engine: bool = False
    """also start vLLM or SGLang and compare its log-probs with the trainer's; a minute"""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response together."""
        return self.max_prompt_length + self.max_response_length
