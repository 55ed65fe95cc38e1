"""Models of a pair, known by their files, and the weights of one of them in memory."""

from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from recipe.prune_opd.checks.files import reason_of
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.estimate import costs
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, Finding


@dataclass(frozen=True)
class Pair:
    """Student and the teacher it is to learn from."""

    student: Model
    teacher: Model
    trust_remote_code: bool
    """Run code that comes with them."""

    @classmethod
    def read(
        cls, student: str, teacher: str, trust_remote_code: bool = False, key: str = "TEACHER"
    ) -> "Pair":
        """Read configurations and tokenizers.

        Args:
            student: folder or hub name.
            teacher: folder or hub name.
            trust_remote_code: run code that comes with them.
            key: what the teacher was given as, for messages.

        Raises:
            ValueError: a path holds no model configuration with tokenizer.
        """
        ours, theirs = (
            Model(key, path, trust_remote_code, None, None)
            for key, path in (("STUDENT", student), (key, teacher))
        )
        return cls(ours, theirs, trust_remote_code)

    @property
    def vocabulary(self) -> int:
        """Number of ids that both have a row for: candidates are below it."""
        return min(self.student.vocab_size, self.teacher.vocab_size)


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: torch cannot put a tensor there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it is built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device: got {device}, allowed: cpu or a device of this machine ({reason})"
        ) from error


def load(
    model: Model, name: str, dtype: str, device: str, trust_remote_code: bool
) -> tuple[Any, Finding]:
    """Load weights, and see whether they are whole and finite.

    Args:
        model: whose.
        name: of the finding.
        dtype: that they are loaded in.
        device: that they are put on.
        trust_remote_code: run code that comes with the model.

    Returns:
        The model in evaluation mode, None where it was not loaded; the finding.
    """
    try:
        needed = 1.1 * costs.weight_bytes(costs.model_shape(model.config), dtype)
    except ValueError as error:
        return None, Finding(name, ERROR, str(error), "take a causal language model")
    free = free_memory(device)
    if needed > free:
        evidence = (
            f"not checked: {costs.readable(needed)} needed in {dtype}, {costs.readable(free)} free"
        )
        change = "run it where there is more memory, or give --device"
        return None, Finding(name, SKIPPED, evidence, change)
    loaded, fault = _read_weights(model.path, dtype, trust_remote_code)
    if fault is not None:
        return None, Finding(name, ERROR, *fault)
    loaded = loaded.to(device).eval()
    broken = _not_finite(loaded)
    if broken:
        evidence = f"{len(broken)} tensors hold NaN or infinity, the first: {broken[0]}"
        change = "the checkpoint is broken: take an earlier one"
        return loaded, Finding(name, ERROR, evidence, change)
    return loaded, Finding(name, OK, "finite")


def _read_weights(
    path: str, dtype: str, trust_remote_code: bool
) -> tuple[Any, tuple[str, str] | None]:
    """Read weights from a folder: the model, and evidence and change if there is a fault."""
    from transformers import AutoModelForCausalLM

    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    # Safetensors has an exception of its own, and a model's own code may raise anything.
    except Exception as error:
        return None, (reason_of(error), "the folder needs weights that transformers reads")
    loaded, info = answer
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        evidence = f"{len(absent)} tensors are not in the checkpoint, the first: {absent[0]}"
        return None, (evidence, "they would be random: save the model again, whole")
    return loaded, None


def _not_finite(model: Any) -> list[str]:
    """Name the parameters that are not finite."""
    named = list(model.named_parameters())
    bar = tqdm(named, desc="weights", unit=" tensors", disable=len(named) < 100)
    return [name for name, values in bar if not torch.isfinite(values).all()]


def free_memory(device: str) -> float:
    """Free memory of a device, in bytes."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)
