"""Top-k ids and log-probs out of a training engine, in one pass, with or without gradient.

verl's engines let a loss function look at the logits first: with ``distillation_use_topk`` set on
the batch they call ``loss_fn(student_logits=..., data=...)`` and keep what it returns, one value
per token and name, then call ``loss_fn(model_output=..., data=...)`` for the loss
(``FSDPEngineWithLMHead.prepare_model_outputs``, ``forward_step``, and of Megatron's engine
``_lm_head_logits_processor``). ``TopKPass`` speaks that protocol; a block of K values per token
travels as K named columns. Which rows and columns of the logits a rank holds: ``engines``.

Shapes: N rows of logits (this rank's share under sequence or context parallelism), S tokens of all
full sequences, R tokens of all responses, K candidates, V vocabulary (this rank's part of it under
tensor parallelism).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from verl_ext.engines.megatron import Megatron
from verl_ext.engines.packed import Packed

# ------------------------------------------------------------------------------------ jagged fields


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


def _columns(name: str, values: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    """Split (N, K) into K tensors of the rows' shape, as the engines carry; contiguous, as NCCL
    needs."""
    columns = values.T.contiguous().unflatten(-1, shape)
    return {f"{name}/{i}": column for i, column in enumerate(columns)}


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
    sampled: bool = False
    """Score the sampled tokens (``log_probs``)."""
    entropy: bool = False
    """Return the distribution's ``entropy``."""


REQUEST = "topk_request"

Objective = Callable[[Tensor, TensorDict], tuple[Tensor, dict[str, Any]]]
"""Function: (log-probs at the requested ids (S, K), micro-batch) -> scalar loss, metrics."""


class TopKPass:
    """Loss function (``loss_fn``) for verl's training workers that answers the batch's ``Request``.

    Args:
        objective: makes the loss out of the requested log-probs when the engine trains; None: a
            scoring-only model.
        vocab_size: tokens of the model, where its engine may pad the vocabulary (Megatron); 0: all
            columns are tokens.
    """

    def __init__(self, objective: Objective | None = None, vocab_size: int = 0):
        self.objective, self.vocab_size = objective, vocab_size

    def __call__(
        self,
        *,
        data: TensorDict,
        model_output: Mapping[str, Tensor] | None = None,
        student_logits: Tensor | None = None,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer verl's protocol: columns if ``student_logits`` is given, else loss and metrics.

        Megatron's engine alone says a ``data_format``.
        """
        if student_logits is not None:
            engine = Megatron(data, data_format, self.vocab_size) if data_format else Packed()
            return self._columns(student_logits, data, engine)
        if self.objective is not None and model_output is not None and torch.is_grad_enabled():
            return self.objective(join_columns(model_output, "log_probs_at"), data)
        # A scoring pass too has to return a loss: without a loss function verl shows no logits.
        return torch.zeros((), device=data["input_ids"].values().device), {}

    def _columns(
        self, logits: Tensor, data: TensorDict, engine: Packed | Megatron
    ) -> dict[str, Tensor]:
        request: Request = data[REQUEST]
        tokens, rows = data["input_ids"], logits.shape[:-1]
        logits = logits.flatten(0, -2)
        ids = []
        if request.sampled:  # a row scores the token after it
            ids.append(tokens.values().roll(-1).unsqueeze(-1))
        if request.at:
            ids.append(spread(data[request.at], tokens))
        at = engine.arrange(torch.cat(ids, -1), tokens) if ids else None
        if self.objective is not None and logits.requires_grad:
            # It reads nothing else of the logits: the gradient may take their memory.
            assert at is not None
            scored = engine.log_probs_at(logits, at, overwrite=True)
            return _columns("log_probs_at", scored, rows)
        found = engine.score(logits, request.topk, request.vocab_size, at, request.entropy)
        columns = {"entropy": found.pop("entropy").view(rows)} if request.entropy else {}
        if request.sampled:
            sampled, found["log_probs_at"] = found["log_probs_at"].tensor_split([1], -1)
            columns["log_probs"] = sampled.contiguous().view(rows)
        for name, values in found.items():
            columns |= _columns(name, values, rows)
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
        REQUEST: replace(request, sampled=sampled, entropy=entropy),
        "distillation_use_topk": True,  # call the loss function on the logits
        # verl's own passes over the logits for these two are left out: ours has them.
        "distillation_only": True,
        "calculate_entropy": False,
        "compute_loss": True,  # False would take the loss function away, and the columns with it
    }
    for key, value in flags.items():
        tu.assign_non_tensor_data(data, key, value)
