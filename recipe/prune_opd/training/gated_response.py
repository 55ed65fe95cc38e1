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
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.training.response import Request, Response
from verl_ext.rollout.client import FollowedResponse, GrowingSequence
from verl_ext.rollout.rows import Chunk, TopKRows
from verl_ext.rollout.scoring import missing_rows

DRIFT = "drift"
"""Stop reason of a stopped response. verl resumes "abort" and "aborted"."""
ABORTED = ("abort", "aborted")
MEDIA = ("image_data", "video_data", "audio_data")


class GatedResponse(Response):
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
        self.places: list[int] = []
        """Positions in the response, N."""
        self.events = np.zeros(0, dtype=bool)
        """(N,)."""
        self.rows: list[TopKRows] = []
        """Of the teacher, (N, K) together."""

    def _forget(self, kept: int) -> None:
        count = sum(place < kept for place in self.places)
        if count < len(self.places):
            self.places, self.events = self.places[:count], self.events[:count]
            self.rows = [TopKRows.join(*self.rows)[:count]]

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
        self._take_in(turn, len(self.tokens))
        return output

    def _take_in(self, turn: "GatedTurn", begin: int) -> None:
        """Keep what was found out about a turn whose first token is at ``begin``."""
        new = np.concatenate([np.zeros(0, dtype=bool), *turn.events])[: turn.kept]
        self.places += range(begin, begin + len(new))
        self.events = np.concatenate([self.events, new])
        if turn.teacher_rows:
            self.rows.append(TopKRows.join(*turn.teacher_rows)[: len(new)])
        if turn.kept is not None:
            self.stop = self.places[-1] + 1 if self.places else 0

    def report_on(self, output: AgentLoopOutput) -> TopKRows | None:
        """See ``Response``; what a loop has masked out is none of the student's."""
        mask, places = np.array(output.response_mask, dtype=bool), np.array(self.places, dtype=int)
        own = places < len(mask)
        own[own] = mask[places[own]]
        report = replace(self.report, events=self.events[own])
        output.extra_fields = output.extra_fields | {GATE_REPORT: report}
        if own.sum() < mask.sum():
            return None
        rows = missing_rows(len(mask), self.client.prune_opd.topk)
        if self.rows:
            known = TopKRows.join(*self.rows)
            rows.ids[places[own]], rows.log_probs[places[own]] = (
                known.ids[own],
                known.log_probs[own],
            )
        return rows


class GatedTurn:
    """One turn: what is generated, and what is scored of it while that goes on.

    Args:
        response: that it is of; its report is gone on with.
        gate: knows the turns before, if they matter.
        request: with ``max_tokens``.
    """

    def __init__(self, response: GatedResponse, gate: Gate, request: Request):
        self.client, self.sequence = response.client, response.sequence
        self.config, self.report = self.client.prune_opd, response.report
        self.gate, self._before = gate, gate.tokens
        self.metric = self.config.rules.metric
        self.request, self.prompt_ids = request, request.prompt_ids
        priority = request.more.get("priority")
        self.priority = {"priority": priority} if priority else {}
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.unscored: list[Chunk] = []
        self.events: list[NDArray[np.bool_]] = []
        self.teacher_rows: list[TopKRows] = []
        self.ended = False
        self._news = asyncio.Event()
        self._generating: FollowedResponse | None = None

    @property
    def kept(self) -> int | None:
        """Tokens of the turn that are kept; None where it is not stopped."""
        return None if self.gate.stop is None else self.gate.stop - self._before

    async def run(self, chunk: int) -> TokenOutput:
        """Generate, and return what verl's ``generate`` would, cut at the stop.

        Args:
            chunk: tokens between two questions to the teacher.
        """
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

    async def _generate(self, chunk: int) -> TokenOutput:
        """Generate to the end or the stop, going on after every abort by somebody else (a weight
        update)."""
        params, first = dict(self.request.sampling_params), None
        limit = params["max_tokens"]
        while True:
            params["max_tokens"] = limit - len(self.tokens)
            async with self.client.follow(
                self.request.request_id,
                self.prompt_ids + self.tokens,
                params,
                topk=self.config.topk,
                chunk=chunk,
                **self.priority,
            ) as self._generating:
                async for part in self._generating:
                    self.tokens += part.token_ids
                    self.log_probs += part.sampled_log_probs.tolist()
                    self.unscored.append(part)
                    self._news.set()
                    # Its abort may have come before this request was known.
                    if self.gate.stop is not None:
                        await self._generating.abort()
            output = self._generating.output
            assert output is not None
            first = first or output
            aborted = output.stop_reason in ABORTED
            if aborted and self.gate.stop is None and len(self.tokens) < limit:
                await asyncio.sleep(1)  # as verl's own resuming client does
                if self.gate.stop is None:
                    continue
            return _whole(output, first)

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
        try:
            return await self.sequence.score(self.prompt_ids + self.tokens, gate.deadline)
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
        experts = output.routed_experts
        return TokenOutput(
            token_ids=self.tokens[:stop],
            log_probs=self.log_probs[:stop]
            if self.request.sampling_params.get("logprobs")
            else None,
            routed_experts=experts
            if experts is None or stop is None
            else experts[: len(self.prompt_ids) + stop],
            stop_reason=output.stop_reason if stop is None else DRIFT,
            num_preempted=output.num_preempted,
            extra_fields=output.extra_fields,
        )


def _whole(last: TokenOutput, first: TokenOutput) -> TokenOutput:
    """The last request's output, standing for all requests of the turn."""
    if last.stop_reason in ABORTED:  # at the limit, or stopped: nothing is left to go on with
        last.stop_reason = "length"
    versions = first.extra_fields.get("global_steps"), last.extra_fields.get("global_steps")
    last.extra_fields["num_cached_tokens"] = first.extra_fields.get("num_cached_tokens")
    last.extra_fields["min_global_steps"], last.extra_fields["max_global_steps"] = versions
    return last


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
