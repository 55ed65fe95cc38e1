"""FSDP's and VeOmni's way: rows of packed sequences, shared out by Ulysses, over the vocabulary.

Shapes: N rows of this rank, S tokens of all full sequences, K ids.
"""

from torch import Tensor

from verl_ext import logits


class Packed:
    """Rows of packed sequences, each over the whole vocabulary."""

    def arrange(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """Share (N, K) of (S, K) whose logits this rank holds under Ulysses sequence parallelism.

        Args:
            ids: (S, K).
            tokens: jagged (B, prompt + response), whose packed tokens they belong to.
        """
        from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor

        if get_ulysses_sequence_parallel_world_size() == 1:
            return ids
        return slice_input_tensor(ids, dim=0)

    score = staticmethod(logits.score)
    log_probs_at = staticmethod(logits.log_probs_at)
