"""What an agent loop reports about a response, beside its tokens."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

REPORT = "prune_opd_gate"
"""Key of a response's ``extra_fields``: its ``GateReport``."""


@dataclass
class GateReport:
    """What the gate did with one response."""

    stopped: bool = False
    generated: int = 0
    """Tokens generated, those after the stop included."""
    events: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """(N,), the gate's drift events of the kept tokens that were scored."""
    teacher_tokens: int = 0
    """Tokens the teacher ran through its model, the prompt included."""
    asked: float = 0.0
    """Seconds in which a question to the teacher was open."""
    waited: float = 0.0
    """Seconds between the end of generation and the gate's last word."""
    late: int = 0
    """Times the deadline passed without an answer."""
    failed: int = 0
    """Questions that failed otherwise."""
    given_up: bool = False
    """The response lost its gate."""
    error: str = ""
    """The last one."""
