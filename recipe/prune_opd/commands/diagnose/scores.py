"""Scores of both models on the student's responses, and means of them by place.

Shapes: B responses, T positions, K candidates of each model. Responses are padded at their end;
``mask`` is True on their tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from recipe.prune_opd.commands.diagnose.tokens import KINDS
from recipe.prune_opd.method.reward import Scores, TopK


@dataclass(frozen=True)
class PairScores:
    """Scores of both models on the student's responses, for several k out of one pass."""

    scores: Scores
    """Scores at the largest k, the teacher's log-probs on the student's candidates among them."""
    mask: Tensor
    """(B, T) bool."""
    groups: Tensor
    """(B,) int64, number of the prompt: responses to one prompt are alike."""
    ks: tuple[int, ...]
    """Numbers of candidates that are looked at."""
    spread: dict[str, Tensor] = field(default_factory=dict)
    """Width of the models' distributions by name, each (B, T) float32: ``student_entropy``,
    ``teacher_entropy``, and ``teacher_certainty``, see ``Scored``."""
    _narrow: dict[int, Scores] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> Tensor:
        """Tokens that the student sampled, (B, T) int64."""
        return self.scores.responses

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, (B,) int64."""
        return self.mask.sum(-1)

    def at(self, k: int) -> Scores:
        """Scores of the first k candidates of each model, which are its top k.

        Args:
            k: from 1 to K.
        """
        if k not in self._narrow:
            whole = self.scores
            on_student = whole.teacher_on_student
            self._narrow[k] = Scores(
                whole.responses,
                _first(whole.student, k),
                _first(whole.teacher, k),
                None if on_student is None else on_student[..., :k],
            )
        return self._narrow[k]

    def mass(self, k: int) -> dict[str, Tensor]:
        """Probability of top k tokens, each (B, T) float32.

        Args:
            k: from 1 to K.

        Returns:
            ``student_mass`` and ``teacher_mass``, what each model gives to its own top k;
            ``teacher_on_student``, what the teacher gives to the student's.
        """
        scores = self.at(k)
        assert scores.teacher_on_student is not None
        log_probs = {
            "student_mass": scores.student.log_probs,
            "teacher_mass": scores.teacher.log_probs,
            "teacher_on_student": scores.teacher_on_student,
        }
        return {name: values.exp().sum(-1) for name, values in log_probs.items()}


def _first(top: TopK, k: int) -> TopK:
    return TopK(top.ids[..., :k], top.log_probs[..., :k])


# -------------------------------------------------------------------------------------------- means


def mean(values: Tensor, mask: Tensor) -> float:
    """Mean over all tokens.

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.
    """
    return values[mask].double().mean().item()


def by_position(values: Tensor, mask: Tensor, width: int) -> list[float]:
    """Means over ``width`` positions at a time, NaN where no response reaches.

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.
        width: >= 1.
    """
    tokens = mask.shape[-1]
    places = torch.arange(tokens).expand(mask.shape) // width
    return _means(values, mask, places, -(-tokens // width))


def by_quarter(values: Tensor, mask: Tensor) -> list[float]:
    """Means over the quarters of each response: token t of n is in quarter floor(4 t / n).

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.

    Returns:
        4 numbers, NaN for a quarter that no response has (all of them are shorter than 4 tokens).
    """
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    return _means(values, mask, (4 * torch.arange(mask.shape[-1]) // lengths).clamp(max=3), 4)


def by_kind(values: Tensor, mask: Tensor, kinds: Tensor) -> list[float]:
    """Means by kind of token, NaN for a kind that does not occur.

    Args:
        values: (B, T) of any number type.
        mask: (B, T) bool.
        kinds: (B, T) int64, number in ``KINDS``.
    """
    return _means(values, mask, kinds, len(KINDS))


def _means(values: Tensor, mask: Tensor, places: Tensor, count: int) -> list[float]:
    """Means of ``values`` by place, (B, T) int64 -> ``count`` numbers."""
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, places[mask], values[mask].double())
    return (sums / torch.bincount(places[mask], minlength=count)).tolist()
