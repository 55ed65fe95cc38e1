"""What teacher servers say about finished responses, on its way from the agent loop to the workers.

A response is scored as soon as it is complete, while others are still being generated.

Shapes: B responses, R tokens of a response, K candidates.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recipe.prune_opd.config import PruneOPDConfig
from verl_ext.rollout.client import FollowingClient
from verl_ext.rollout.rows import TopKRows
from verl_ext.rollout.scoring import MISSING, ResponseScorer, ScoreReport

if TYPE_CHECKING:  # verl's module imports ours, by way of the registered agent loop
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

SCORE_REPORT = "prune_opd_score"
"""Key of a response's ``extra_fields``: its ``ScoreReport``."""
SERVED_IDS, SERVED_LOG_PROBS = "teacher_ids", "teacher_logprobs"
"""Fields of a response, jagged (B, R, K), or K + 1 with the sampled token first. These are verl's names: its padding
rows are resized under no others. They have more rows than their response has tokens."""


class TeachingClient(FollowingClient):
    """Client of the rollout servers that also reaches the teacher's.

    Args:
        prune_opd: the configuration.
        teacher: client of the teacher's servers, a ``ScoringClient``, or a ``UrlTeacher`` where there is no gate.
        vocab_size: of the teacher.
        **kwargs: see ``LLMServerClient``.
    """

    def __init__(self, *, prune_opd: PruneOPDConfig, teacher: Any, vocab_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.prune_opd, self.teacher, self.vocab_size = prune_opd, teacher, vocab_size

    @functools.cached_property
    def _scorer(self) -> ResponseScorer:
        given, workers = self.prune_opd.teacher, self.config.actor_rollout_ref.rollout.agent.num_workers
        return ResponseScorer(
            self.teacher,
            self.prune_opd.topk,
            self.vocab_size,
            -(-given.concurrency // workers),  # each rollout worker has a client of its own
            given.deadline,
            given.retries,
        )

    async def teach(self, output: "AgentLoopOutput", known: TopKRows | None = None) -> None:
        """Put the teacher's rows of a finished response, and how they came about, into its ``extra_fields``.

        Args:
            output: of the agent loop.
            known: rows from the start of the response that a gate has asked for already.
        """
        sampled, tokens = self.prune_opd.strategy == "sampled", len(output.response_ids)
        if known is not None and len(known) >= tokens and not sampled:
            rows, own, report = known[:tokens], None, ScoreReport()
        else:
            rows, own, report = await self._scorer.score(output.prompt_ids, output.response_ids)
        ids, log_probs = torch.tensor(rows.ids), torch.tensor(rows.log_probs)  # copies: Ray's arrays are read-only
        if sampled:
            ids = torch.cat([torch.tensor(output.response_ids, dtype=torch.int32).unsqueeze(-1), ids], -1)
            log_probs = torch.cat([torch.tensor(own).unsqueeze(-1), log_probs], -1)
        output.extra_fields |= {SERVED_IDS: ids, SERVED_LOG_PROBS: log_probs, SCORE_REPORT: report}


def served_rows(field: Tensor, responses: Tensor) -> Tensor:
    """The rows of the response tokens alone.

    Args:
        field: jagged (B, R or more, K), the last R rows being the response's.
        responses: jagged (B, R).

    Returns:
        jagged (B, R, K).
    """
    offsets = responses.offsets()  # type: ignore[attr-defined]  # torch declares it for nested tensors only
    lengths = offsets.diff().tolist()
    rows = [block[len(block) - length :] for block, length in zip(field.unbind(), lengths, strict=True)]
    return torch.nested.nested_tensor_from_jagged(torch.cat(rows), offsets)


def log_probs_of(ids: Tensor, teacher_ids: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """The teacher's log-probs of some ids, where they are among its own candidates.

    Args:
        ids: (N, K) int, distinct in a row.
        teacher_ids: (N, K) int, distinct in a row.
        teacher_log_probs: (N, K) float.

    Returns:
        (N, K) float; ``-inf`` for an id that the teacher did not report.
    """
    found = torch.full(ids.shape, MISSING, dtype=teacher_log_probs.dtype)
    for theirs, log_probs in zip(teacher_ids.unbind(-1), teacher_log_probs.unbind(-1), strict=True):
        found = torch.where(ids == theirs.unsqueeze(-1), log_probs.unsqueeze(-1), found)
    return found


def is_missing(teacher_log_probs: Tensor) -> Tensor:
    """Tokens without the teacher's score, (..., K) -> (...) bool: even its most likely candidate has probability 0."""
    return teacher_log_probs[..., 0].isneginf()
