"""Runs by their numbers: what verl's logger has of a step, and what our records have.

A step of a ``Run`` is a training step, counted from 1; step 0 is what was validated before
training. ``reading`` makes them out of files.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.report.forms import LARGEST, Sample, fault
from recipe.prune_opd.records.files import (
    read_samples,
    sampled_steps,
    samples_file,
)

TRAINED = "training/global_step"
"""Metric that verl logs with a training step, and not with a validation alone."""


@dataclass(frozen=True)
class Run:
    """One run, maybe interrupted and resumed."""

    name: str
    logged: dict[int, dict[str, float]]
    """Step -> metrics of verl's logger."""
    recorded: dict[int, dict[str, Any]]
    """Step -> record. Empty for a run without records."""
    records: Path | None
    """Folder of the records."""
    faults: tuple[str, ...]
    """Sentences about what could not be read."""

    def metric(self, name: str) -> dict[int, float]:
        """Look up a logged metric by step, where it was logged."""
        return {step: metrics[name] for step, metrics in self.logged.items() if name in metrics}

    def record(self, *path: str) -> dict[int, float]:
        """Look up a value of the records under nested keys by step, where there is one."""
        found = {}
        for step, record in self.recorded.items():
            value: Any = record
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if is_number(value):
                found[step] = reckoned(value)
        return found

    @property
    def last(self) -> int:
        """Number of the last training step; 0 if there was none."""
        trained = [step for step, metrics in self.logged.items() if TRAINED in metrics]
        return max([*trained, *self.recorded], default=0)

    def accuracies(self) -> dict[str, dict[int, float]]:
        """Look up Avg@N of verl's validation, by benchmark and step."""
        names = sorted(
            {
                name
                for metrics in self.logged.values()
                for name in metrics
                if re.search(ACCURACY, name)
            }
        )
        found = {name: re.search(ACCURACY, name) for name in names}
        return {match[1]: self.metric(name) for name, match in found.items() if match}

    def generated(self) -> dict[int, float]:
        """Count tokens that the rollout generated for training, by step.

        Of a run without records: what its metrics say; for another recipe's the share of the
        responses in all tokens, which is exact but for padding rows.
        """
        found = {}
        for step, metrics in self.logged.items():
            if "prune_opd/semi/generated_tokens" in metrics:
                found[step] = metrics["prune_opd/semi/generated_tokens"]
            elif "prune_opd/generated_tokens" in metrics:
                overshoot = metrics.get("prune_opd/gate/overshoot_tokens", 0)
                found[step] = metrics["prune_opd/generated_tokens"] + overshoot
            elif TOKENS.keys() <= metrics.keys():
                total, response, prompt = (metrics[name] for name in TOKENS)
                found[step] = total * response / max(response + prompt, 1)
        return found | self.record("tokens", "generated")

    def along(self, axis: str) -> dict[int, float]:
        """Place steps on an axis of ``AXES``: by number, tokens generated or hours until their end.

        Empty where that cannot be known, because steps are missing at the beginning; up to the
        first one missing later.
        """
        steps = {0, *self.logged, *self.recorded}
        if axis == "step":
            return {step: float(step) for step in steps}
        each = self.generated() if axis == "tokens" else self.metric("timing_s/step")
        scale = 1e6 if axis == "tokens" else 3600.0
        course, total = {0: 0.0}, 0.0
        for step in range(1, self.last + 1):
            if not math.isfinite(each.get(step, math.nan)):
                break
            total += each[step]
            course[step] = total / scale
        return course if len(course) > 1 else {}

    def sampled(self) -> list[int]:
        """List steps whose tokens were kept, but not those that an earlier run left there."""
        return (
            [step for step in sampled_steps(self.records) if step in self.recorded]
            if self.records
            else []
        )

    def samples(self, step: int) -> list[dict[str, Any]]:
        """Read the responses of a step, token by token.

        Raises:
            ValueError: their file is damaged, or holds something else.
        """
        if not self.records or step not in self.sampled():
            return []
        file = samples_file(self.records, step)
        check_readable("", file, "samples of a run")
        samples = read_samples(self.records, step)
        for number, sample in enumerate(samples, 1):
            if wrong := fault(Sample, sample):
                raise ValueError(
                    f"{file}, line {number} is no sample of a run ({wrong}), allowed: lines that a"
                    " run wrote"
                )
        return samples


ACCURACY = r"^val-core/(.+)/[^/]+/mean@\d+$"
TOKENS = dict.fromkeys(("perf/total_num_tokens", "response_length/mean", "prompt_length/mean"))
AXES = {"step": "step", "tokens": "tokens generated, millions", "hours": "hours of training"}
"""Axes that runs can be aligned by -> label."""


def reckoned(value: float) -> float:
    """A number as it is, or as a floating-point one where it is too large to be a count: the
    product of two whole ones of 300 digits can be neither divided nor drawn."""
    return value if abs(value) <= LARGEST else float(value)


def is_number(value: Any) -> bool:
    """Tell whether a value can be reckoned with: NaN can, as a gap in a curve.

    A whole number of 400 digits cannot.
    """
    return isinstance(value, (int, float)) and not abs(value) > 1e300
