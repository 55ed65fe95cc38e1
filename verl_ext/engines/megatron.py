"""Megatron's way: each tensor-parallel rank has a part of the vocabulary, rows are padded.

The softmax over a rank's part is the distribution of a token given that it is of this part, so a
part is scored as if it were all there is, and the share of each part, which one number per row and
rank tells, makes log-probs over the vocabulary of it. Nothing of the logits' size is sent or made.

Shapes: N rows of this rank, S tokens of all full sequences, K ids, V / ranks columns.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, distributed

from verl_ext import logits as whole


class Megatron:
    """Rows as ``MegatronEngineWithLMHead`` makes them out of a micro-batch.

    Args:
        data: the micro-batch.
        data_format: "thd", packed with padding behind each sequence, or "bshd", padded. In both,
            context-parallel ranks hold two pieces of each sequence, one from either end.
        vocab_size: tokens of the model. Megatron pads its embedding: rows from here on count
            nowhere, neither in a top k nor in a normaliser. 0: there are none.
    """

    def __init__(self, data: TensorDict, data_format: str, vocab_size: int = 0):
        from megatron.core import parallel_state as mpu

        self.data, self.data_format, self.vocab_size = data, data_format, vocab_size
        self.group = mpu.get_tensor_model_parallel_group()
        self.rank = mpu.get_tensor_model_parallel_rank()
        self.ranks = mpu.get_tensor_model_parallel_world_size()

    def arrange(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """Put (S, K) on this rank's rows, (N, K), as verl does with the tokens; padding holds 0.

        Args:
            ids: (S, K).
            tokens: jagged (B, prompt + response), whose packed tokens they belong to.
        """
        from verl.models.mcore.util import preprocess_bshd_engine, preprocess_thd_engine
        from verl.utils.tensordict_utils import get_non_tensor_data

        offsets = tokens.offsets()  # type: ignore[attr-defined]  # torch declares it for nested
        jagged = torch.nested.nested_tensor_from_jagged(ids, offsets)
        if self.data_format == "thd":
            rows, *_ = preprocess_thd_engine(jagged)
        else:
            # verl pads every micro-batch of a mini-batch to the same length.
            length = get_non_tensor_data(self.data, "forced_max_seqlen", None)
            rows, *_ = preprocess_bshd_engine(jagged, forced_max_seqlen=length)
        return rows.flatten(0, 1)

    def score(
        self,
        logits: Tensor,
        k: int = 0,
        vocab_size: int = 0,
        ids: Tensor | None = None,
        entropy: bool = False,
    ) -> dict[str, Tensor]:
        """Read all that is wanted of the logits; no gradient. See ``verl_ext.logits.score``.

        Args:
            logits: (N, V / ranks) float.
            k: see there; at most the number of ids below ``vocab_size``.
            vocab_size: see there.
            ids: (N, K2) int.
            entropy: see there.
        """
        return self._score(logits, k, vocab_size, ids, entropy)[0]

    def log_probs_at(self, logits: Tensor, ids: Tensor, overwrite: bool = False) -> Tensor:
        """Full-vocabulary log-probs of chosen ids, once differentiable with respect to ``logits``.

        Only the forward pass talks to other ranks. See ``verl_ext.logits.log_probs_at``.
        """
        return _LogProbsAt.apply(logits, ids, self, overwrite)

    def _inside(self, logits: Tensor, vocab_size: int) -> int:
        """Columns of this rank whose ids are below ``vocab_size``."""
        width = logits.shape[-1]
        return min(width, max(0, vocab_size - self._first(logits)))

    def _first(self, logits: Tensor) -> int:
        """Id of this rank's first column."""
        return self.rank * logits.shape[-1]

    def _own(self, logits: Tensor) -> Tensor:
        """Columns of tokens; a rank that holds padding alone keeps one, whose share is nothing."""
        return logits[:, : max(1, self._tokens(logits))]

    def _tokens(self, logits: Tensor) -> int:
        return self._inside(logits, self.vocab_size or self.ranks * logits.shape[-1])

    @torch.no_grad()
    def _score(
        self, logits: Tensor, k: int, vocab_size: int, ids: Tensor | None, entropy: bool = False
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What ``score`` returns, and the logarithm (N, 1) of this rank's share of all mass."""
        candidates = self._inside(logits, vocab_size)
        given = None if ids is None else ids - self._first(logits)
        part = whole.score(
            self._own(logits), min(k, candidates), candidates, given, entropy, normaliser=True
        )
        mass = part.pop("normaliser")
        if not self._tokens(logits):
            mass = torch.full_like(mass, -torch.inf)
        log_share = mass - self._gathered(mass).logsumexp(0)
        share = log_share.to(torch.promote_types(logits.dtype, torch.float32))
        found: dict[str, Tensor] = {}
        if k:
            found |= self._merged(part, k, share, self._first(logits))
        if ids is not None:
            found["log_probs_at"] = part["log_probs_at"] + share.unsqueeze(-1)
            distributed.all_reduce(
                found["log_probs_at"], distributed.ReduceOp.MAX, group=self.group
            )
        if entropy:
            # Within the parts, and of which part it is.
            found["entropy"] = share.exp() * part["entropy"] + torch.special.entr(share.exp())
            distributed.all_reduce(found["entropy"], group=self.group)
        return found, share.unsqueeze(-1)

    def _merged(
        self, part: dict[str, Tensor], k: int, share: Tensor, first: int
    ) -> dict[str, Tensor]:
        """The k likeliest of all ranks, out of those of each; one with fewer is filled up."""
        ids = share.new_zeros(len(share), k, dtype=torch.int32)
        log_probs = share.new_full((len(share), k), -torch.inf)
        if part.get("top_ids") is not None:
            here = part["top_ids"].shape[-1]
            ids[:, :here] = part["top_ids"] + first
            log_probs[:, :here] = part["top_log_probs"] + share.unsqueeze(-1)
        every_id, every = (
            torch.cat(list(self._gathered(values)), -1) for values in (ids, log_probs)
        )
        top, at = every.topk(k)
        return {"top_ids": every_id.gather(-1, at), "top_log_probs": top}

    def _gathered(self, values: Tensor) -> Tensor:
        """Values of all ranks, (ranks, ...)."""
        every = [torch.empty_like(values) for _ in range(self.ranks)]
        distributed.all_gather(every, values.contiguous(), group=self.group)
        return torch.stack(every)


class _LogProbsAt(torch.autograd.Function):
    """Function ``Megatron.log_probs_at``; the backward pass knows its share and asks nobody, so it
    may be inside an activation checkpoint."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, engine: Megatron, overwrite: bool) -> Tensor:
        found, share = engine._score(logits, 0, 0, ids)
        ctx.save_for_backward(logits, ids, share)
        ctx.engine, ctx.overwrite = engine, overwrite and whole.may_overwrite(logits)
        return found["log_probs_at"]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits, ids, share = ctx.saved_tensors
        engine: Megatron = ctx.engine
        tokens = engine.vocab_size or engine.ranks * logits.shape[-1]
        pulled = whole.pull(ids, upstream, tokens) * share.exp()
        gradient = whole.gradient_memory(logits, ctx.overwrite)
        own, into = engine._own(logits), engine._own(gradient)
        whole.write_gradient(into, own, ids - engine._first(logits), upstream, pulled)
        gradient[:, engine._tokens(logits) :] = 0
        return gradient, None, None, None
