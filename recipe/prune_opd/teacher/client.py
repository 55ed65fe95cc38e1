"""Answers of teacher servers about finished responses, on their way from the agent loop to the
workers.

A response is scored as soon as it is complete, while others are still being generated.
"""

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport
from recipe.prune_opd.teacher.answers import NOTHING, Known, served
from recipe.prune_opd.teacher.home import Home
from verl_ext.rollout.client import FollowingClient
from verl_ext.rollout.rows import MISSING_ID, At, TopKRows, missing_rows
from verl_ext.rollout.scoring import ResponseScorer, ScoreReport

if TYPE_CHECKING:  # verl's module imports ours, by way of the registered agent loop
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
    from verl.workers.rollout.llm_server import LLMServerClient

SCORE_REPORT = "prune_opd_score"
"""Key of a response's ``extra_fields``: its ``ScoreReport``."""


class TeachingClient(FollowingClient):
    """A client of the rollout servers, with which an agent loop reaches the teacher's, too.

    Args:
        client: of the rollout servers.
        prune_opd: the configuration.
        teacher: client of the teacher's servers, a ``ScoringClient``, or a ``UrlTeacher`` where
            there is no gate.
        vocab_size: of the teacher.
        teaches: finished responses are scored by ``teacher``; else a gate asks alone.
    """

    def __init__(
        self,
        client: "LLMServerClient",
        *,
        prune_opd: PruneOPDConfig,
        teacher: Any,
        vocab_size: int,
        teaches: bool = True,
    ):
        super().__init__(client)
        self.prune_opd, self.teacher, self.vocab_size = prune_opd, teacher, vocab_size
        self.teaches = teaches

    @property
    def wide(self) -> int:
        """Most likely tokens among which the teacher's servers look for the student's candidates; 0
        where they are not asked about these."""
        asks = self.teaches and "teacher_on_student" in self.prune_opd.rules.needs
        return self.prune_opd.teacher.server.wide_topk if asks else 0

    @property
    def student_tells(self) -> bool:
        """Tell whether the student's own log-probs are those that the rollout reports."""
        return self.prune_opd.student == "rollout"

    @property
    def keeps_student(self) -> bool:
        """Tell whether somebody needs the candidates that the rollout reports."""
        return bool(self.wide) or self.student_tells

    @functools.cached_property
    def _scorer(self) -> ResponseScorer:
        given, workers = (
            self.prune_opd.teacher,
            self.config.actor_rollout_ref.rollout.agent.num_workers,
        )
        return ResponseScorer(
            self.teacher,
            self.prune_opd.topk,
            self.vocab_size,
            -(-given.concurrency // workers),  # each rollout worker has a client of its own
            given.deadline,
            given.retries,
            "sampled" in self.prune_opd.rules.needs,
        )

    async def teach(self, output: "AgentLoopOutput", known: Known = NOTHING) -> dict[str, Tensor]:
        """Get the teacher's rows of a finished response, and put how they came about into its
        ``extra_fields``; with them the student's, where the rollout tells these.

        Args:
            output: of the agent loop.
            known: what was found out about the response while it grew.

        Returns:
            Fields by their names, see ``served``. They are as large as what a pass of the teacher
            gives: nothing for ``extra_fields``, which a reward function sees.

        Raises:
            ValueError: the response has images, video or audio.
        """
        tokens = output.response_ids
        student = known.student or missing_rows(len(tokens), self.prune_opd.topk)
        own = student if self.student_tells else None
        if not self.teaches:
            return served(tokens, None, student=own)
        given = [name for name, value in (output.multi_modal_data or {}).items() if value]
        if given:
            raise ValueError(
                f"prune_opd.teacher.home: a response has {given[0]}, which the teacher's servers"
                " would score as text alone; allowed: text, or worker_group without"
                " prune_opd.gate.enable"
            )
        sampled = "sampled" in self.prune_opd.rules.needs
        if known.teacher is not None and not sampled:
            gate = output.extra_fields[GATE_REPORT]
            rows, scored, report = known.teacher, None, _while_growing(gate)
        else:
            at = At(student.ids, self.wide) if self.wide else None
            rows, scored, report = await self._scorer.score(output.prompt_ids, tokens, at)
        if self.wide:
            rows = _on_student(rows, student, report)
        # Set and not changed: verl makes plain values of fields that are set, and of no other.
        output.extra_fields = output.extra_fields | {SCORE_REPORT: report}
        ids = student.ids if self.wide else None
        return served(tokens, rows, scored if sampled else None, ids, own)


def _on_student(rows: TopKRows, student: TopKRows, report: ScoreReport) -> TopKRows:
    """The teacher's rows of the tokens whose candidates are known, the others missing; the report
    counts."""
    assert rows.chosen is not None
    known = student.ids[:, 0] != MISSING_ID
    if not known.all():
        report.error = report.error or "the rollout reported no candidates of some tokens"
    scored = known & (rows.ids[:, 0] != MISSING_ID)
    outside = rows.chosen.outside[scored]
    report.candidates, report.outside = outside.size, int(outside.sum())
    report.outside_mass = float(np.exp(student.log_probs[scored][outside]).sum())
    return rows[scored].spread(np.flatnonzero(scored), len(rows))


class RoutingClient(FollowingClient):
    """A client of the rollout servers beside several teachers, of which a row names its own.

    Args:
        client: of the rollout servers.
        teachers: clients that reach one teacher each, in the order in which rows count them.
    """

    def __init__(self, client: "LLMServerClient", teachers: Sequence[TeachingClient]):
        super().__init__(client)
        self.teachers = teachers

    def of(self, teacher: int) -> TeachingClient:
        """The client that asks the teacher of a row.

        Args:
            teacher: its place among the teachers.
        """
        return self.teachers[teacher]


def with_teachers(
    client: "LLMServerClient", home: Home, teachers: Sequence[Any], vocab_sizes: Sequence[int]
) -> "LLMServerClient | TeachingClient | RoutingClient":
    """A client around that of the rollout servers, which reaches the teachers, too.

    Args:
        client: of the rollout servers.
        home: of the teachers.
        teachers: its ``clients``; without any the client stays as it is.
        vocab_sizes: of the teachers.
    """
    if not teachers:
        return client
    reaching = [
        TeachingClient(
            client,
            prune_opd=home.prune_opd,
            teacher=teacher,
            vocab_size=size,
            teaches=not home.reference_model,
        )
        for teacher, size in zip(teachers, vocab_sizes, strict=True)
    ]
    return RoutingClient(client, reaching) if home.prune_opd.teacher.models else reaching[0]


def _while_growing(gate: GateReport) -> ScoreReport:
    """The report about a response whose last row has just come."""
    now = time.time()
    early = max(0.0, gate.asked - gate.waited)
    return ScoreReport(
        computed=gate.teacher_tokens, early=early, began=now - gate.waited, ended=now
    )
