"""What ``doctor`` answers with, and what it is asked about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, SKIPPED, WARNING, ERROR = "ok", "skipped", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """Answer to one question."""

    name: str
    status: str
    """``ok``, ``warning``, ``error``, or ``skipped`` for what was not looked at."""
    evidence: str
    change: str = ""
    """What to do about it; empty where there is nothing."""


@dataclass(frozen=True)
class Plan:
    """What the run is to be."""

    data: Path | None = None
    prompt_key: str = "prompt"
    template_kwargs: dict[str, Any] | None = None
    max_prompt_length: int = 1024
    max_response_length: int = 12288
    max_rows: int = 20000
    topk: int = 16
    dtype: str = "bfloat16"
    gpus: int = 8
    gpu_memory: float | None = None
    """GB, or None: not compared."""
    tokens: int = 32
    """Tokens that are sampled per prompt for the passes."""
    device: str = "cpu"
    trust_remote_code: bool = False
    weights: bool = True
    engine: bool = False
