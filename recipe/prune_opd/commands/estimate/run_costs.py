"""Tokens, FLOPs and time of a training, by step and by part, out of collected values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from recipe.prune_opd.commands.estimate import costs
from recipe.prune_opd.commands.estimate.values import Values
from recipe.prune_opd.config import PruneOPDConfig


@dataclass
class Scenario:
    """Cost of one way to train: sums over the run, FLOPs and seconds by part of one step."""

    name: str
    limit: float
    gpus: int
    response_length: float
    tokens: float
    scored_tokens: float
    flops_per_step: dict[str, float]
    seconds_per_step: dict[str, float]
    exaflops: float
    hours: float
    gpu_hours: float
    decode_tokens_per_second: float


class Step:
    """Cost of one training step under a limit."""

    def __init__(
        self,
        config: DictConfig,
        prune_opd: PruneOPDConfig,
        student: costs.Shape,
        teacher: costs.Shape,
        values: Values,
        decode_rate: float | None,
    ):
        self.student, self.teacher = student, teacher
        self.values, self.decode_rate = values, decode_rate
        self.gpus: int = values["GPUs of the training"]
        self.responses: int = values["prompts per step"] * values["responses per prompt"]
        needs = prune_opd.rules.needs
        self.passes = (prune_opd.student == "trainer") + ("student_on_teacher" in needs)
        # The forward pass is made once more where activations are recomputed for the gradient.
        self.update = 4 if config.actor_rollout_ref.model.enable_gradient_checkpointing else 3
        self.parallel: int = config.actor_rollout_ref.rollout.tensor_model_parallel_size
        self.utilization: float = config.actor_rollout_ref.rollout.gpu_memory_utilization
        server = prune_opd.teacher.server
        self.servers = server.replicas * server.tensor_model_parallel_size
        self.gate = prune_opd.gate

    def scenario(self, name: str, limit: float, gate: bool = False) -> Scenario:
        """Work out tokens, FLOPs and time of a run at a constant limit."""
        lengths = costs.response_lengths(
            self.values["length"], self.values["spread"], limit, self.responses
        )
        kept = lengths * (1 - self.values["gate_saving"]) if gate else lengths
        beyond = self.gate.chunk_for(limit) if gate else 0  # generated until the abort arrives
        made = np.minimum(kept + beyond, lengths)
        flops = self._flops(kept, made, gate)
        rate, slots = self._decode_rate(made)
        seconds = self._seconds(flops, self._iterations(made, limit, slots) / rate)
        steps, gpus = self.values["steps"], self.gpus + (self.servers if gate else 0)
        hours = steps * sum(seconds.values()) / 3600
        return Scenario(
            name=name,
            limit=limit,
            gpus=gpus,
            response_length=float(made.mean()),
            tokens=steps * float(made.sum()),
            scored_tokens=steps * float(kept.sum()),
            flops_per_step=flops,
            seconds_per_step=seconds,
            exaflops=steps * sum(flops.values()) / 1e18,
            hours=hours,
            gpu_hours=gpus * hours,
            decode_tokens_per_second=rate,
        )

    def _flops(
        self, kept: NDArray[np.float64], made: NDArray[np.float64], gate: bool
    ) -> dict[str, float]:
        prompt = self.values["prompt_length"]
        student = costs.forward_flops(self.student, prompt + kept)
        return {
            "generate": costs.forward_flops(self.student, prompt + made),
            "score_student": self.passes * student,
            "score_teacher": costs.forward_flops(self.teacher, prompt + kept),
            "update": self.update * student,
            "gate": costs.forward_flops(self.teacher, prompt + made) if gate else 0.0,
        }

    def _seconds(self, flops: dict[str, float], generate: float) -> dict[str, float]:
        """Time the parts of a step; the gate's teacher works beside generation and adds nothing."""
        rate = self.gpus * self.values["peak_tflops"] * 1e12 * self.values["mfu"]
        seconds = {
            name: flops[name] / rate for name in ("score_student", "score_teacher", "update")
        }
        return {"generate": generate, **seconds, "fixed": self.values["step_overhead"]}

    def _iterations(self, made: NDArray[np.float64], limit: float, slots: float) -> float:
        """Count decoding steps: the longest response's, or more where the cache makes some wait.

        A gate leaves the longest as it is: some response stays reliable up to the limit nearly
        always.
        """
        replicas = max(self.gpus // self.parallel, 1)
        return max(min(limit, self._longest(len(made))), float(made.sum()) / replicas / slots)

    def _decode_rate(self, made: NDArray[np.float64]) -> tuple[float, float]:
        """Tokens a second of one response, and how many responses a replica decodes at once."""
        slots = self.slots(float(made.mean()))
        if self.decode_rate:
            return self.decode_rate, slots
        context = self.values["prompt_length"] + float(made.mean()) / 2
        read = costs.weight_bytes(self.student, "bf16") + slots * context * self.student.cache_bytes
        milliseconds = (
            read / self.parallel / (self.values["bandwidth"] * costs.GB) * 1e3
            + self.values["token_overhead"]
        )
        return 1e3 / milliseconds, slots

    def _longest(self, responses: int) -> float:
        """Tokens of the longest of a batch under the full limit."""
        values = self.values
        return float(
            costs.response_lengths(values["length"], values["spread"], values["limit"], responses)[
                -1
            ]
        )

    def room(self) -> float:
        """Bytes a replica has for the cache of keys and values."""
        memory = self.values["gpu_memory"] * costs.GB * self.utilization * self.parallel
        return memory - costs.weight_bytes(self.student, "bf16")

    def slots(self, length: float) -> float:
        """Responses that a replica decodes at once."""
        each = (self.values["prompt_length"] + length) * self.student.cache_bytes
        at_once = self.responses * self.parallel / self.gpus
        if self.room() < each:
            raise ValueError(
                "actor_rollout_ref.rollout.gpu_memory_utilization: the rollout's share of memory"
                f" does not hold the student and one response of {length:.0f} tokens, allowed: more"
                " memory (--gpu-memory), a larger share or a larger"
                " actor_rollout_ref.rollout.tensor_model_parallel_size"
            )
        return max(min(at_once, self.room() / each), 1.0)
