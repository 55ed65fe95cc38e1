"""Sums of a batch's per-token values by response and by position, and what agent loops report.

Workers make a ``Tally`` of their responses, the driver reads one of the whole batch. Metrics and
records are made of nothing else, so nothing of shape (B, T) has to reach the driver.

Shapes: B responses, T positions, K candidates, C = len(COLUMNS) numbers of a response, P of its
sums by position.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe.prune_opd.method.pruning import Pruned
from recipe.prune_opd.method.reward import Scores

if TYPE_CHECKING:  # its package imports verl, this module only torch
    from verl_ext.rollout.scoring import ScoreReport

# ------------------------------------------------------------------------- reports of agent loops

GATE_REPORT = "prune_opd_gate"
"""Key of a response's ``extra_fields``: its ``GateReport``."""


@dataclass
class GateReport:
    """Report of the gate about one response. Plain values: it travels with the response."""

    stopped: bool = False
    generated: int = 0
    """Tokens generated, those after the stop included."""
    events: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """(N,), the gate's drift events of the student's kept tokens that were scored."""
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
    """Text of the last late or failed question."""


@dataclass(frozen=True)
class Reports:
    """Reports of the agent loop about one response."""

    gate: GateReport | None = None
    """None where there was no gate."""
    score: "ScoreReport | None" = None
    """None where no teacher server scored the finished response."""

    @property
    def errors(self) -> dict[str, str]:
        """Texts of the last late or failed questions, by ``gate`` and ``score``; often none."""
        return {
            name: report.error for name, report in vars(self).items() if report and report.error
        }


# ---------------------------------------------------------------------------------------- columns

SUMS = (
    "tokens",
    "overlap",
    "events",
    "weight",
    "loss_weight",
    "zero_weight",
    "reward",
    "pruned_reward",
    "distillation",
    "student_mass",
    "teacher_mass",
)
"""Per-token values that are summed over a response."""
OF_GATE = (
    "stopped",
    "generated",
    "teacher_tokens",
    "asked",
    "waited",
    "late",
    "failed",
    "given_up",
)
"""Fields of the ``GateReport``."""
GATE = tuple(f"gate_{name}" for name in (*OF_GATE, "tokens", "agreed"))
"""Columns of these, of the tokens that the gate looked at, and of those on which it and the trainer
say the same."""
OF_SCORE = (
    *("late", "failed", "computed", "early", "began", "ended"),
    *("candidates", "outside", "outside_mass"),
)
"""Fields of the ``ScoreReport``."""
SCORE = tuple(f"score_{name}" for name in OF_SCORE)
"""Columns of these."""
COLUMNS = (
    *(*SUMS, "effective_length", "reliable_to", "ended", "missing", "limit"),
    *("task", *GATE, *SCORE, "teacher"),
)
"""Numbers of a response."""

LOGGED = ("tokens", "overlap", "events", "loss_weight")
"""Per-token values that are logged by position."""
RECORDED = (
    "tokens",
    "overlap",
    "events",
    "weight",
    "trained",
    "reward",
    "student_entropy",
    "teacher_entropy",
)
"""Per-token values that the records keep by position: 1, O, D, R, 1[L > 0], the reward of all
candidates before weighting, and of each model the part of its entropy in its own K candidates, in
nats."""

# ------------------------------------------------------------------------------ position buckets

BUCKETS = 8
"""Most buckets of the logs."""
FINEST, DOUBLINGS = 4, 7
"""Buckets of the records between one doubling of the position and the next, and doublings there
are."""


def logged_edges(longest: int) -> list[int]:
    """Starts of the logs' buckets, equal parts of the largest limit, and the end of the last.

    Args:
        longest: the largest limit, in tokens, >= 1.
    """
    width = -(-longest // BUCKETS)
    return [*range(0, longest, width), longest]


def recorded_edges(longest: int) -> list[int]:
    """Starts of the records' buckets in ascending order, and the end of the last.

    The first ``2 * FINEST`` buckets are equally wide, then the width doubles after every
    ``FINEST``. With 32 equal ones drift that begins at token 200 of 12288 would lie in the first of
    them; like this a bucket is at most a quarter of the position at which it begins, but for the
    first ``FINEST``. The edges depend on the largest limit alone, so they keep their meaning while
    the limit moves.

    Args:
        longest: the largest limit, in tokens, >= 1.
    """
    width = -(-longest // (FINEST * 2**DOUBLINGS))
    edges = [width * i for i in range(FINEST)]
    for doubling in range(DOUBLINGS):
        edges += [width * 2**doubling * (FINEST + i) for i in range(FINEST)]
    return [edge for edge in edges if edge < longest] + [longest]


def _groups(longest: int) -> list[tuple[tuple[str, ...], list[int]]]:
    """Names of values, and the edges of the buckets they are summed over.

    What is logged is cut at the logs' edges, too, so that buckets of either kind are sums of these.
    """
    recorded = recorded_edges(longest)
    alone = tuple(name for name in RECORDED if name not in LOGGED)
    return [(LOGGED, sorted({*recorded, *logged_edges(longest)})), (alone, recorded)]


def _add_up(values: Tensor, positions: Tensor, edges: list[int]) -> Tensor:
    """Sums over buckets, (..., N); the last also takes what lies beyond.

    Args:
        values: (..., T).
        positions: (T,) int, where they are.
        edges: N + 1 positions.
    """
    buckets = torch.bucketize(positions, torch.tensor(edges[1:-1], dtype=torch.long), right=True)
    return values.new_zeros(*values.shape[:-1], len(edges) - 1).index_add(-1, buckets, values)


# ------------------------------------------------------------------------------------- the tally


@dataclass(frozen=True)
class Facts:
    """Facts about responses that are not in what both models say of them."""

    generated: Tensor
    """(B, T) bool, tokens of the student's, scored or not."""
    ended: Tensor
    """(B,) bool, the response ended by itself."""
    missing: Tensor
    """(B,) int, generated tokens that do not count because the teacher gave no score for them."""
    limits: Tensor
    """(B,) int, limit that each was generated under."""
    reports: list[Reports]
    """B, of its agent loop."""
    task: Tensor | None = None
    """(B,) float, sum of the absolute advantages that task rewards gave; None: they gave none."""
    teachers: Tensor | None = None
    """(B,) int, place of each response's teacher among several; None: there is one."""


@dataclass(frozen=True)
class Tally:
    """Numbers of responses: all that metrics and records know of a batch."""

    rows: Tensor
    """(B, C) float64, columns as in ``COLUMNS``."""
    positions: Tensor
    """(B, P) float32, sums by position."""
    longest: int
    """The largest limit, in tokens; it decides where position buckets begin."""

    @classmethod
    def of(cls, pruned: Pruned, scores: Scores, facts: Facts, longest: int) -> "Tally":
        """Count a batch. A padding row counts like any other; it is the caller who knows it.

        Args:
            pruned: the batch.
            scores: it was made of.
            facts: of the same responses.
            longest: the largest limit, in tokens.
        """
        table, where = _table(pruned, scores), torch.arange(pruned.mask.shape[-1])
        columns = [
            *(table[name].sum(-1) for name in SUMS),
            pruned.reliability.effective_length,
            pruned.reliability.reliable_to,
            facts.ended,
            facts.missing,
            facts.limits,
            torch.zeros(len(pruned.mask)) if facts.task is None else facts.task,
            *_gate_columns(facts, pruned.events).unbind(-1),
            *_score_columns(facts.reports).unbind(-1),
            torch.zeros(len(pruned.mask)) if facts.teachers is None else facts.teachers,
        ]
        sums = [
            _add_up(torch.stack([table[name] for name in names], 1), where, edges).flatten(1)
            for names, edges in _groups(longest)
        ]
        rows = torch.stack([column.double() for column in columns], -1)
        return cls(rows, torch.cat(sums, -1), longest)

    @classmethod
    def join(cls, *parts: "Tally") -> "Tally":
        """Tally of the responses of all parts, at least one, in their order."""
        rows, positions = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "positions")
        )
        return cls(rows, positions, parts[0].longest)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Tensor:
        """One of ``COLUMNS``, (B,) float64."""
        return self.rows[:, COLUMNS.index(name)]

    @cached_property
    def total(self) -> dict[str, float]:
        """Sums over responses of ``COLUMNS``."""
        return dict(zip(COLUMNS, self.rows.sum(0).tolist(), strict=True))

    @cached_property
    def _by_position(self) -> dict[str, tuple[Tensor, list[int]]]:
        """Name -> sums over responses, (N,) float64, and the N + 1 edges of their buckets."""
        groups = _groups(self.longest)
        sizes = [len(names) * (len(edges) - 1) for names, edges in groups]
        found: dict[str, tuple[Tensor, list[int]]] = {}
        for (names, edges), sums in zip(groups, self.positions.split(sizes, -1), strict=True):
            total = sums.double().sum(0).view(len(names), -1)
            found |= {name: (row, edges) for name, row in zip(names, total, strict=True)}
        return found

    def by_position(self, name: str, edges: list[int]) -> list[float]:
        """Sums over responses in each bucket.

        Args:
            name: one of ``LOGGED`` or ``RECORDED``.
            edges: ``logged_edges`` or ``recorded_edges`` of ``longest``, whichever the name is of.
        """
        sums, own = self._by_position[name]
        return _add_up(sums, torch.tensor(own[:-1]), edges).tolist()


def _table(pruned: Pruned, scores: Scores) -> dict[str, Tensor]:
    """Per-token values, (B, T) float32 each; 0 where a token does not count."""
    weights = pruned.reliability
    student, teacher = scores.student.log_probs.exp(), scores.teacher.log_probs.exp()
    values = {
        "tokens": torch.ones_like(pruned.overlap),
        "overlap": pruned.overlap,
        "events": pruned.events,
        "weight": weights.weight,
        "loss_weight": weights.loss_weight,
        "zero_weight": weights.weight == 0,
        "trained": weights.loss_weight > 0,
        "reward": pruned.reward.reward.sum(-1),
        "pruned_reward": pruned.advantages.sum(-1),
        "distillation": pruned.advantages.abs().sum(-1),
        "student_mass": student.sum(-1),
        "teacher_mass": teacher.sum(-1),
        "student_entropy": torch.special.entr(student).sum(-1),
        "teacher_entropy": torch.special.entr(teacher).sum(-1),
    }
    return {name: torch.where(pruned.mask, value.float(), 0.0) for name, value in values.items()}


def _gate_columns(facts: Facts, events: Tensor) -> Tensor:
    """Numbers of the gate and of its agreement with the trainer, (B, len(GATE)) float32.

    Args:
        facts: of the responses.
        events: (B, T) bool, the trainer's.
    """
    columns = torch.zeros(len(facts.reports), len(GATE))
    for row, report in enumerate(given.gate for given in facts.reports):
        if report is not None:
            # A padding row has the report of another response.
            own = events[row, facts.generated[row]]
            seen = torch.as_tensor(report.events)[: len(own)]
            agreed = int((seen == own[: len(seen)]).sum())
            values = [float(getattr(report, name)) for name in OF_GATE]
            columns[row] = torch.tensor([*values, len(seen), agreed])
    return columns


def _score_columns(reports: list[Reports]) -> Tensor:
    """Numbers of the teacher's answers, (B, len(SCORE)) float64, as float32 knows the time to two
    minutes."""
    columns = torch.zeros(len(reports), len(SCORE), dtype=torch.float64)
    for row, report in enumerate(given.score for given in reports):
        if report is not None:
            values = [float(getattr(report, name)) for name in OF_SCORE]
            columns[row] = torch.tensor(values, dtype=torch.float64)
    return columns
