"""A training response under the gate: the teacher scores it while it grows, and it is stopped where
the gate says so.

Generation never waits for the teacher. While a chunk is scored the next is generated; what lies
beyond the stop is dropped. A teacher that is late, gone or talks nonsense costs the response its
gate, nothing else.

Shapes: T tokens of a response, N of them scored: the student's, in order; K candidates.
"""

import asyncio
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.method.drift import DriftMetric
from recipe.prune_opd.method.gates import Gate
from recipe.prune_opd.method.reward import Scores, TopK
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport
from recipe.prune_opd.teacher.answers import Known
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.training.followed_response import (
    FollowedTurn,
    PlacedRows,
    ReportedResponse,
)
from recipe.prune_opd.training.response import Request
from verl_ext.rollout.client import GrowingSequence
from verl_ext.rollout.rows import Chunk, TopKRows

DRIFT = "drift"
"""Stop reason of a stopped response; not one of those that verl resumes, ``ABORTED``."""
MEDIA = ("image_data", "video_data", "audio_data")


class GatedResponse(ReportedResponse):
    """A response under the gate: one gate and one sequence of the teacher's for all its turns.

    Args:
        client: reaches the rollout's servers and the teacher's.
        prompt_ids: of the first turn.
        limit: most tokens behind the prompt.
        sequence: the teacher's scores of it.
    """

    def __init__(
        self,
        client: TeachingClient,
        prompt_ids: list[int],
        limit: int,
        sequence: GrowingSequence,
    ):
        super().__init__(client, prompt_ids, limit)
        self.sequence, self.report = sequence, GateReport()
        self.teacher = PlacedRows()
        self.events = np.zeros(0, dtype=bool)
        """(N,), of the places that the teacher has rows of."""

    def _forget(self, kept: int) -> None:
        super()._forget(kept)
        self.teacher.forget(kept)
        self.events = self.events[: len(self.teacher.places)]

    async def _answer(self, request: Request) -> TokenOutput:
        """One turn.

        Raises:
            ValueError: the prompt has images, video or audio.
        """
        given = [name for name in MEDIA if request.more.get(name)]
        if given:
            raise ValueError(
                f"prune_opd.gate.enable: a prompt has {given[0]}, the gate scores text only"
            )
        # What tools said is the teacher's context, and none of its business.
        self.sequence.skip_to(len(request.prompt_ids))
        config = self.client.prune_opd
        turn = GatedTurn(self, config.new_gate(self.events), request)
        output = await turn.run(config.gate.chunk_for(self.limit))
        self._take_in(turn)
        if turn.teacher_rows:
            self.events = np.concatenate([self.events, *turn.events])
            self.teacher.add(len(self.tokens), TopKRows.join(*turn.teacher_rows))
        if turn.kept is not None:
            self._forget(len(self.tokens) + turn.kept)
            self.stop = self.teacher.places[-1] + 1 if self.teacher.places else 0
        return output

    def report_on(self, output: AgentLoopOutput) -> Known:
        """See ``Response``."""
        mask = output.response_mask
        own = self.teacher.within(mask)
        report = replace(self.report, events=self.events[own])
        output.extra_fields = output.extra_fields | {GATE_REPORT: report}
        known = super().report_on(output)
        if own.sum() < sum(mask):
            return known
        topk, chosen = self.client.prune_opd.topk, bool(self.client.wide)
        return replace(known, teacher=self.teacher.spread(mask, topk, chosen))


class GatedTurn(FollowedTurn):
    """One turn: what is generated, and what is scored of it while that goes on.

    Args:
        response: that it is of; its report is gone on with.
        gate: knows the turns before, if they matter.
        request: with ``max_tokens``.
    """

    def __init__(self, response: GatedResponse, gate: Gate, request: Request):
        super().__init__(response.client, request)
        self.sequence, self.report = response.sequence, response.report
        self.config = self.client.prune_opd
        self.gate, self._before = gate, gate.tokens
        self.metric = self.config.rules.metric
        self.unscored: list[Chunk] = []
        self.events: list[NDArray[np.bool_]] = []
        self.teacher_rows: list[TopKRows] = []
        self.ended = False
        self._news = asyncio.Event()

    @property
    def kept(self) -> int | None:
        """See ``FollowedTurn``."""
        return None if self.gate.stop is None else self.gate.stop - self._before

    async def run(self, chunk: int) -> TokenOutput:
        """See ``FollowedTurn``; the teacher is asked at every chunk."""
        watch = asyncio.create_task(self._watch())
        try:
            output = await self._generate(chunk)
            self.ended = True
            self._news.set()
            ended_at = time.monotonic()
            await watch
            self.report.waited += time.monotonic() - ended_at
        finally:
            watch.cancel()
        return self._result(output)

    async def _hear(self, part: Chunk) -> None:
        await super()._hear(part)
        self.unscored.append(part)
        self._news.set()
        # Its abort may have come before this request was known.
        if self.gate.stop is not None and self._generating is not None:
            await self._generating.abort()

    async def _watch(self) -> None:
        """Have every chunk scored, until the gate stops the response or loses its teacher."""
        rows: TopKRows | None = None
        while not self.report.given_up and (self.unscored or not self.ended):
            if not self.ended and (rows is None or not self.unscored):
                await self._news.wait()
                self._news.clear()
            if not self.unscored:
                continue
            rows = await self._ask()
            if rows is not None and self.gate.feed(self._find_events(rows)) is not None:
                if not self.ended and self._generating is not None:
                    await self._generating.abort()
                return

    def _find_events(self, rows: TopKRows) -> NDArray[np.bool_]:
        """The events of the first unscored chunks, which the teacher's rows are about."""
        tokens: list[int] = []
        student: list[TopKRows] = []
        while len(tokens) < len(rows):
            chunk = self.unscored.pop(0)
            tokens += chunk.token_ids
            student.append(chunk.rows)
        self.teacher_rows.append(rows)
        self.events.append(find_events(self.metric, TopKRows.join(*student), rows, tokens))
        return self.events[-1]

    async def _ask(self) -> TopKRows | None:
        gate, report, began = self.config.gate, self.report, time.monotonic()
        tokens, chosen = self.prompt_ids + self.tokens, {}
        if self.client.wide:
            chosen["ids"] = np.concatenate([part.rows.ids for part in self.unscored])
        try:
            return await self.sequence.score(tokens, gate.deadline, **chosen)
        except TimeoutError as error:
            report.late += 1
            report.error = str(error) or type(error).__name__
        # Whatever a server may raise: it costs the gate, never the response.
        except Exception as error:
            report.failed += 1
            # Ray puts the cause last, behind a traceback of its own.
            report.error = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
        finally:
            report.asked += time.monotonic() - began
        report.given_up = report.late + report.failed > gate.retries
        return None

    def _result(self, output: TokenOutput) -> TokenOutput:
        report, stop = self.report, self.kept
        report.stopped = stop is not None
        report.generated += len(self.tokens)
        report.teacher_tokens = self.sequence.computed
        result = super()._result(output)
        if stop is not None:
            result.stop_reason = DRIFT
        return result


def find_events(
    metric: DriftMetric, student: TopKRows, teacher: TopKRows, tokens: list[int]
) -> NDArray[np.bool_]:
    """The drift events of some tokens, by the same formulas that weigh them in training.

    Args:
        metric: of drift, with its bound.
        student: (N, K) of the rollout engine.
        teacher: (N, K).
        tokens: N sampled tokens.

    Returns:
        (N,) bool.
    """
    # Copies: what Ray delivers is read-only, which torch warns of.
    ours, theirs = (
        TopK(torch.tensor(rows.ids), torch.tensor(rows.log_probs)) for rows in (student, teacher)
    )
    scores = Scores(torch.tensor(tokens), ours, theirs)
    return metric.events(scores, torch.ones(len(tokens), dtype=torch.bool)).numpy()
