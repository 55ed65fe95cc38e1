"""Arguments of ``diagnose``: the pair, its responses, the planned run, and what to compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.arguments import NATURAL, several
from recipe.prune_opd.commands.files import check_model, check_pair
from recipe.prune_opd.commands.pair.arguments import (
    COUNT,
    POSITIVE,
    SHARE,
    Dtype,
    PairArguments,
    count,
    share,
)

MOST_BATCH = 65_536
"""Responses of a step, of which a run is played for each of the settings that are compared."""
AUTO: Literal["auto"] = "auto"
GATES = ("off", "cumulative", "windowed", "consecutive", "relative")
"""Kinds of the gate that are compared: prune_opd.gate.kind, and none. Named here, since torch comes
with the config."""


def gate(text: str) -> str:
    """Read the name of a gate.

    Raises:
        ValueError: it is none of ``GATES``.
    """
    if text not in GATES:
        raise ValueError(text)
    return text


@dataclass(frozen=True)
class Arguments(PairArguments):
    """Arguments of the command."""

    rollouts: Annotated[Path | None, arg(metavar="FILE")] = None
    """responses of the student, .jsonl, in the place of --data"""
    prompts: Annotated[int, COUNT] = 16
    """prompts, chosen by --seed"""
    samples: Annotated[int, COUNT] = 2
    """responses to each prompt"""
    max_response_length: Annotated[int, COUNT] = 12288
    """longest training response, prune_opd.budget.max"""
    max_prompt_length: Annotated[int, COUNT] = 1024
    """data.max_prompt_length; longer prompts are passed over"""
    metric: Literal["overlap_ratio", "teacher_top_p_accept"] = "overlap_ratio"
    """prune_opd.drift.metric"""
    threshold: Annotated[float, SHARE, arg(metavar="GAMMA")] = 0.7
    """prune_opd.drift.threshold, of overlap_ratio"""
    top_p: Annotated[float, SHARE, arg(metavar="P")] = 0.95
    """prune_opd.drift.top_p: nucleus of teacher_top_p_accept; the first token outside it parts a
    response, whatever the metric"""
    steps: Annotated[int, COUNT] = 203
    """training steps"""
    batch: Annotated[int, COUNT] = 256
    """responses of a step, data.train_batch_size x rollout.n"""
    temperature: Annotated[float, POSITIVE, arg(metavar="T")] = 1.0
    """actor_rollout_ref.rollout.temperature"""
    teacher_temperature: Annotated[float, POSITIVE, arg(metavar="T")] = 1.0
    """prune_opd.teacher.temperature"""
    topks: Annotated[
        tuple[int, ...],
        several(count, "whole numbers >= 1", "K"),
        arg(help_behavior_hint="(default: half of --topk, it, twice it)"),
    ] = ()
    """prune_opd.topk to compare"""
    thresholds: Annotated[tuple[float, ...], several(share, "numbers in (0, 1]", "GAMMA")] = (
        0.6,
        0.7,
        0.8,
        0.9,
    )
    """prune_opd.drift.threshold to compare, of overlap_ratio"""
    top_ps: Annotated[tuple[float, ...], several(share, "numbers in (0, 1]", "P")] = (
        0.9,
        0.95,
        0.99,
    )
    """prune_opd.drift.top_p to compare, of teacher_top_p_accept"""
    w_drops: Annotated[
        tuple[float, ...],
        several(share, "numbers in (0, 1]", "W"),
        arg(help_behavior_hint="(default: half of the recommended one, it, twice it)"),
    ] = ()
    """prune_opd.drift.w_drop to compare"""
    gates: Annotated[
        tuple[str, ...],
        several(gate, ", ".join(GATES), "KIND"),
        arg(help_behavior_hint="(default: all)"),
    ] = GATES
    """prune_opd.gate.kind to compare, of off, cumulative, windowed, consecutive, relative"""
    other_teacher: Annotated[str | None, arg(metavar="MODEL")] = None
    """another teacher or checkpoint of it, whose advice is compared; folder or hub name"""
    recoveries: Annotated[int, NATURAL] = 32
    """responses that the teacher goes on from, before and after its first rejected token, where
    answers are known; 0: none"""
    recovery_gap: Annotated[
        int | None, COUNT, arg(help_behavior_hint="(default: a sixteenth of the limit, at most 64)")
    ] = None
    """tokens after the rejected one that are kept"""
    reward_function: Annotated[str | None, arg(metavar="PATH")] = None
    """reward.custom_reward_function.path, which grades answers"""
    reward_name: Annotated[str, arg(metavar="NAME")] = "compute_score"
    """reward.custom_reward_function.name"""
    solutions: Annotated[str | None, arg(metavar="COLUMN")] = None
    """column of --data with right solutions, or column.name: compares gradients, which takes the
    memory of two"""
    gradients: Annotated[int, COUNT] = 64
    """responses whose gradients are compared; each of them says little"""
    engine: Literal["transformers", "vllm"] = "transformers"
    """samples"""
    batch_size: Annotated[int, COUNT] = 8
    """responses that transformers samples at once"""
    chunk: Annotated[int, COUNT] = 256
    """tokens that are scored at once"""
    dtype: Literal["auto"] | Dtype = AUTO
    """of the weights; auto: bfloat16 on a GPU, else float32"""
    device: str = AUTO
    """cpu, cuda, cuda:1; auto: cuda where there is one"""
    seed: Annotated[int, NATURAL] = 0
    """of prompts, samples and resampling"""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """folder for diagnosis.html, .json and .rollouts.jsonl (to give to --rollouts), or the .html
    file"""

    def check(self) -> None:
        """Refuse batches too large to be played, and files that cannot be read, before a model is.

        Raises:
            ValueError: names the option.
        """
        if self.batch > MOST_BATCH:
            raise ValueError(f"--batch: got {self.batch:,}, allowed: at most {MOST_BATCH:,}")
        if (self.data is None) == (self.rollouts is None):
            given = "neither" if self.data is None else "both"
            raise ValueError(f"--data, --rollouts: got {given}, allowed: one of them")
        if self.rollouts is not None:
            check_readable("--rollouts: ", self.rollouts, "a file with one JSON object a line")
        if self.rollouts is not None and self.solutions is not None:
            raise ValueError("--solutions: got --rollouts with it, allowed: with --data")
        check_pair(self.student, self.teacher, self.data)
        if self.other_teacher is not None:
            check_model("--other-teacher", self.other_teacher)

    @property
    def bound(self) -> float:
        """Bound of the drift metric: γ or top_p."""
        return self.threshold if self.metric == "overlap_ratio" else self.top_p

    @property
    def bounds(self) -> tuple[float, ...]:
        """Bounds to compare, the planned one among them."""
        given = self.thresholds if self.metric == "overlap_ratio" else self.top_ps
        return tuple(sorted({*given, self.bound}))
