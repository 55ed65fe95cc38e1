"""Top-k ids and log-probs out of a training engine, in one pass, with or without gradient.

verl's engines let a loss function look at the logits first: with ``distillation_use_topk`` set on
the batch they call ``loss_fn(student_logits=..., data=...)`` and keep what it returns, one value
per token and name, then call ``loss_fn(model_output=..., data=...)`` for the loss
(``FSDPEngineWithLMHead.prepare_model_outputs``, ``forward_step``). ``TopKPass`` speaks that
protocol; a block of K values per token travels as K named columns.

Shapes: N rows of packed sequences (this rank's share under sequence parallelism), S tokens of all
full sequences, R tokens of all responses, K candidates, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

ROWS_AT_A_TIME = 256
"""Rows turned to float32 at once: 256 x 152,000 x 4 bytes = 0.16 GB instead of N x V x 4."""


# ------------------------------------------------------------------------------------- pure tensors


def top_log_probs(logits: Tensor, k: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Find the k largest logits among the first ``vocab_size`` ids, and their log-probs over all V.

    Args:
        logits: (N, V) float of any dtype. Ranked as they are: a cast to float32 is exact, so it
            changes no order, ties included. The normaliser is float32.
        k: K.
        vocab_size: candidates are ids below it; the normaliser always takes all V.

    Returns:
        (N, K) int32 ids by descending logit, (N, K) float32 log-probs (float64 of float64).
    """
    ids, log_probs = [], []
    for rows in logits.split(ROWS_AT_A_TIME):
        top = rows[:, :vocab_size].topk(k, dim=-1)
        ids.append(top.indices.int())
        log_probs.append(top.values - _normaliser(rows))
    return torch.cat(ids), torch.cat(log_probs)


def log_probs_at(logits: Tensor, ids: Tensor, overwrite: bool = False) -> Tensor:
    """Full-vocabulary log-probs of chosen ids, once differentiable with respect to ``logits``.

    Args:
        logits: (N, V) float.
        ids: (N, K) int; an id outside [0, V) is given -inf and no gradient: this model has no row
            for it.
        overwrite: let the backward pass write the gradient into the logits' memory, which saves a
            second (N, V). Only where nobody reads the logits once it has begun. Where autograd does
            (an operation on them that is differentiated later, a graph that is used twice) torch
            raises a RuntimeError. A leaf is never overwritten: its owner keeps it.

    Returns:
        (N, K) float32 (float64 of float64).
    """
    return _LogProbsAt.apply(logits, ids, overwrite)


class _LogProbsAt(torch.autograd.Function):
    """Function ``log_probs_at`` by pieces: of size (N, V) it makes nothing but the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, overwrite: bool) -> Tensor:
        normaliser = torch.cat([_normaliser(rows) for rows in logits.split(ROWS_AT_A_TIME)])
        known, rows = _known(ids, logits.shape[-1])
        ctx.save_for_backward(logits, ids, normaliser)
        ctx.overwrite = overwrite and not _root(logits).is_leaf and logits.is_contiguous()
        return (logits.gather(-1, rows) - normaliser).masked_fill_(~known, -torch.inf)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "log_probs_at: got create_graph=True, allowed: False, it has a first derivative"
                " only"
            )
        logits, ids, normaliser = ctx.saved_tensors
        # Detached, it shares memory and version counter with the logits, so torch refuses later
        # readers.
        gradient = logits.detach() if ctx.overwrite else torch.empty_like(logits)
        split = (
            tensor.split(ROWS_AT_A_TIME) for tensor in (gradient, logits, ids, normaliser, upstream)
        )
        for into, *piece in zip(*split, strict=True):
            into.copy_(_gradient(*piece))
        return gradient, None, None


def _gradient(logits: Tensor, ids: Tensor, normaliser: Tensor, upstream: Tensor) -> Tensor:
    """Gradient (N, V) float32 of ``(log_probs_at(logits, ids) * upstream).sum()``."""
    known, rows = _known(ids, logits.shape[-1])
    upstream = upstream.masked_fill(~known, 0)
    probs = _exp_of_difference(logits, normaliser)
    return probs.mul_(-upstream.sum(-1, keepdim=True)).scatter_add_(-1, rows, upstream)


def _normaliser(logits: Tensor) -> Tensor:
    """Logsumexp (N, 1) float32 (float64 of float64), for which torch takes twice the memory."""
    largest = logits.amax(-1, keepdim=True).to(torch.promote_types(logits.dtype, torch.float32))
    return _exp_of_difference(logits, largest).sum(-1, keepdim=True).log_().add_(largest)


def _exp_of_difference(logits: Tensor, per_row: Tensor) -> Tensor:
    """Compute ``exp(logits - per_row)`` (N, V) in the dtype of ``per_row``, in one tensor."""
    return logits.to(per_row.dtype, copy=True).sub_(per_row).exp_()


def _known(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Tell which ids have a row, (N, K) bool; with (N, K) int64 ids that all have one."""
    known = (ids >= 0) & (ids < vocab_size)
    return known, torch.where(known, ids, 0).long()


def _root(tensor: Tensor) -> Tensor:
    """Tensor whose memory a view shows."""
    return tensor if tensor._base is None else tensor._base


def scoring_rows(sequence_offsets: Tensor, response_offsets: Tensor) -> Tensor:
    """Row of the packed sequences whose logits score each response token: the one before it.

    Args:
        sequence_offsets: (B + 1,) int, offsets of prompt + response.
        response_offsets: (B + 1,) int, offsets of the responses, which end their sequences.

    Returns:
        (R,) int64.
    """
    lengths = response_offsets.diff()
    first = sequence_offsets[1:] - lengths - 1 - response_offsets[:-1]
    count = torch.arange(int(response_offsets[-1]), device=response_offsets.device)
    return count + torch.repeat_interleave(first, lengths)


# ------------------------------------------------------------------------------------ jagged fields


def spread(field: Tensor, input_ids: Tensor) -> Tensor:
    """Put per-response values on the rows that score them; other rows hold 0.

    Args:
        field: jagged (B, response, K).
        input_ids: jagged (B, prompt + response).

    Returns:
        (S, K), of the field's dtype.
    """
    values = field.values()
    rows = scoring_rows(_offsets(input_ids), _offsets(field))
    return values.new_zeros(input_ids.values().shape[0], values.shape[-1]).index_copy(
        0, rows, values
    )


def collect(values: Tensor, input_ids: Tensor, responses: Tensor) -> Tensor:
    """Collect the rows that score a response, as a jagged field; inverse of ``spread``.

    Args:
        values: (S, ...).
        input_ids: jagged (B, prompt + response).
        responses: jagged (B, response).

    Returns:
        jagged (B, response, ...).
    """
    rows = scoring_rows(_offsets(input_ids), _offsets(responses))
    return torch.nested.nested_tensor_from_jagged(values[rows], _offsets(responses))


def _offsets(jagged: Tensor) -> Tensor:
    # torch declares it for nested tensors only
    return jagged.offsets()  # type: ignore[attr-defined]


def join_columns(model_output: Mapping[str, Tensor], name: str) -> Tensor:
    """Join the columns that ``TopKPass`` wrote as ``name/0``, ``name/1``, ... to (S, K)."""
    columns: list[Tensor] = []
    while f"{name}/{len(columns)}" in model_output:
        columns.append(model_output[f"{name}/{len(columns)}"].values())
    return torch.stack(columns, -1)


def _columns(name: str, values: Tensor) -> dict[str, Tensor]:
    """Split (N, K) into K tensors (1, N), as the engines carry; contiguous, as NCCL needs."""
    return {f"{name}/{i}": column for i, column in enumerate(values.T.contiguous().unsqueeze(1))}


def _this_rank(rows: Tensor) -> Tensor:
    """Share (N, K) of (S, K) whose logits this rank holds under Ulysses sequence parallelism."""
    from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor

    if get_ulysses_sequence_parallel_world_size() == 1:
        return rows
    return slice_input_tensor(rows, dim=0)


# ---------------------------------------------------------------------------------- engine protocol


@dataclass(frozen=True)
class Request:
    """Request to a pass over a batch. It travels with the batch under the key ``REQUEST``."""

    topk: int = 0
    """Number of the model's most likely ids to return (``top_ids``, ``top_log_probs``), or 0."""
    vocab_size: int = 0
    """Bound of ids that are candidates of ``topk``."""
    at: str | None = None
    """Batch field, jagged (B, response, K) int, of ids to score (``log_probs_at``)."""


REQUEST = "topk_request"

Objective = Callable[[Tensor, TensorDict], tuple[Tensor, dict[str, Any]]]
"""Function: (log-probs at the requested ids (S, K), micro-batch) -> scalar loss, metrics."""


class TopKPass:
    """Loss function (``loss_fn``) for verl's training workers that answers the batch's ``Request``.

    Args:
        objective: makes the loss out of the requested log-probs when the engine trains; None: a
            scoring-only model.
    """

    def __init__(self, objective: Objective | None = None):
        self.objective = objective

    def __call__(
        self,
        *,
        data: TensorDict,
        model_output: Mapping[str, Tensor] | None = None,
        student_logits: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer verl's protocol: columns if ``student_logits`` is given, else loss and metrics."""
        if student_logits is not None:
            return self._columns(student_logits.squeeze(0), data)
        if self.objective is not None and model_output is not None and torch.is_grad_enabled():
            return self.objective(join_columns(model_output, "log_probs_at"), data)
        # A scoring pass too has to return a loss: without a loss function verl shows no logits.
        return torch.zeros((), device=data["input_ids"].values().device), {}

    def _columns(self, logits: Tensor, data: TensorDict) -> dict[str, Tensor]:
        request: Request = data[REQUEST]
        columns: dict[str, Tensor] = {}
        if request.topk:
            ids, log_probs = top_log_probs(logits, request.topk, request.vocab_size)
            columns |= _columns("top_ids", ids) | _columns("top_log_probs", log_probs)
        if request.at:
            ids = _this_rank(spread(data[request.at], data["input_ids"]))
            # The objective reads nothing else of the logits: the gradient may take their memory.
            columns |= _columns("log_probs_at", log_probs_at(logits, ids, overwrite=True))
        return columns


def request_pass(data: TensorDict, request: Request, sampled: bool, entropy: bool = False) -> None:
    """Set the flags on a batch that make verl's engine answer ``request``.

    Set on the worker's own copy: on the driver they would stay in ``extra_info`` for every later
    call of the step.

    Args:
        data: the batch as the worker got it.
        request: what to return.
        sampled: also return ``log_probs`` of the sampled tokens.
        entropy: also return ``entropy``.
    """
    from verl.utils import tensordict_utils as tu

    flags = {
        REQUEST: request,
        "distillation_use_topk": True,  # call the loss function on the logits
        "distillation_only": not sampled,  # leave the sampled-token term out
        "calculate_entropy": entropy,
        "compute_loss": True,  # False would take the loss function away, and the columns with it
    }
    for key, value in flags.items():
        tu.assign_non_tensor_data(data, key, value)
