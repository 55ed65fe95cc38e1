"""A training response under the gate: the teacher scores it while it grows, and it is stopped where
the gate says so.

Generation never waits for the teacher. While a chunk is scored the next is generated; what lies
beyond the stop is dropped. A teacher that is late, gone or talks nonsense costs the response its
gate, nothing else.
"""

import asyncio
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.method.drift import DriftMetric
from recipe.prune_opd.method.reward import Scores, TopK
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport
from recipe.prune_opd.teacher.client import TeachingClient
from verl_ext.rollout.client import FollowedResponse, GrowingSequence
from verl_ext.rollout.rows import Chunk, TopKRows

DRIFT = "drift"
"""Stop reason of a stopped response. verl resumes "abort" and "aborted"."""
ABORTED = ("abort", "aborted")


class GatedGeneration:
    """The one method of ``LLMServerClient`` that agent loops call."""

    def __init__(self, client: TeachingClient):
        self._client = client
        self.teacher_rows: TopKRows | None = None
        """Rows of the teacher about the last response, from its start on."""

    async def generate(
        self,
        request_id: str,
        *,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        **kwargs: Any,
    ) -> TokenOutput:
        """See ``LLMServerClient.generate``; ``max_tokens`` must be given.

        Raises:
            ValueError: the prompt has images, video or audio.
        """
        given = [name for name in ("image_data", "video_data", "audio_data") if kwargs.get(name)]
        if given:
            raise ValueError(
                f"prune_opd.gate.enable: a prompt has {given[0]}, the gate scores text only"
            )
        client, config = self._client, self._client.prune_opd
        async with client.teacher.sequence(
            len(prompt_ids), config.topk, client.vocab_size
        ) as sequence:
            response = GatedResponse(
                client, sequence, request_id, list(prompt_ids), sampling_params, kwargs
            )
            output = await response.run()
        self.teacher_rows = TopKRows.join(*response.teacher_rows) if response.teacher_rows else None
        return output


class GatedResponse:
    """One response: what is generated, what is scored of it, and its gate."""

    def __init__(
        self,
        client: TeachingClient,
        sequence: GrowingSequence,
        request_id: str,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        kwargs: dict[str, Any],
    ):
        self.client, self.sequence, self.request_id = client, sequence, request_id
        self.config = client.prune_opd
        self.gate = self.config.new_gate()
        self.metric = self.config.rules.metric
        self.prompt_ids, self.sampling_params = prompt_ids, sampling_params
        self.priority = {"priority": kwargs["priority"]} if kwargs.get("priority") else {}
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.unscored: list[Chunk] = []
        self.events: list[NDArray[np.bool_]] = []
        self.teacher_rows: list[TopKRows] = []
        self.report = GateReport()
        self.ended = False
        self._news = asyncio.Event()
        self._generating: FollowedResponse | None = None

    async def run(self) -> TokenOutput:
        """Generate, and return what verl's ``generate`` would, cut at the stop, with the
        ``GateReport``."""
        watch = asyncio.create_task(self._watch())
        try:
            output = await self._generate()
            self.ended = True
            self._news.set()
            ended_at = time.monotonic()
            await watch
            self.report.waited = time.monotonic() - ended_at
        finally:
            watch.cancel()
        return self._result(output)

    async def _generate(self) -> TokenOutput:
        """Generate to the end or the stop, going on after every abort by somebody else (a weight
        update)."""
        limit, params, first = self.sampling_params["max_tokens"], dict(self.sampling_params), None
        while True:
            params["max_tokens"] = limit - len(self.tokens)
            async with self.client.follow(
                self.request_id,
                self.prompt_ids + self.tokens,
                params,
                topk=self.config.topk,
                chunk=self.config.gate.chunk_for(limit),
                **self.priority,
            ) as self._generating:
                async for chunk in self._generating:
                    self.tokens += chunk.token_ids
                    self.log_probs += chunk.sampled_log_probs.tolist()
                    self.unscored.append(chunk)
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
        while self.unscored or not self.ended:
            if not self.ended and (rows is None or not self.unscored):
                await self._news.wait()
                self._news.clear()
            if not self.unscored:
                continue
            rows = await self._ask()
            if self.report.given_up:
                return
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
        report, stop = self.report, self.gate.stop
        report.stopped, report.generated = stop is not None, len(self.tokens)
        report.teacher_tokens = self.sequence.computed
        report.events = np.concatenate([np.zeros(0, dtype=bool), *self.events])[:stop]
        experts = output.routed_experts
        return TokenOutput(
            token_ids=self.tokens[:stop],
            log_probs=self.log_probs[:stop] if self.sampling_params.get("logprobs") else None,
            routed_experts=experts
            if experts is None or stop is None
            else experts[: len(self.prompt_ids) + stop],
            stop_reason=output.stop_reason if stop is None else DRIFT,
            num_preempted=output.num_preempted,
            extra_fields={**output.extra_fields, GATE_REPORT: report},
        )


def _whole(last: TokenOutput, first: TokenOutput) -> TokenOutput:
    """The last request's output, standing for all requests of the response."""
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
