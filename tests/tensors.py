"""Generated tensors for tests: shapes with nothing in them, special values, dtypes, views."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from recipe.prune_opd.method.reward import Sampled, Scores, TopK

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
VOCABULARY = 8
INF, NAN = float("inf"), float("nan")


def view(tensor: Tensor) -> Tensor:
    """The same numbers, not contiguous in memory."""
    return torch.stack([tensor, tensor], -1)[..., 0]


@st.composite
def filled(draw: Any, shape: Sequence[int], special: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Log-probs, none of them infinite but where ``special`` says, in some places."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensor = -5 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    if special and tensor.numel():
        places = st.lists(st.integers(0, tensor.numel() - 1), max_size=4, unique=True)
        for place in draw(places):
            tensor.view(-1)[place] = draw(st.sampled_from(special))
    tensor = tensor.to(dtype)
    return view(tensor) if draw(st.booleans()) else tensor


@st.composite
def flags(draw: Any, shape: Sequence[int]) -> Tensor:
    """None, all, or some in any places: holes, not only padding at the end."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.rand(*shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))


@st.composite
def ids(draw: Any, shape: Sequence[int], repeated: bool = False) -> Tensor:
    """Token ids (..., K), distinct in a row unless ``repeated``."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ranked = torch.rand(*shape[:-1], VOCABULARY, generator=generator).argsort(-1)
    found = ranked[..., : shape[-1]].to(draw(st.sampled_from([torch.int32, torch.int64])))
    found = found % 3 if repeated else found
    return view(found) if draw(st.booleans()) else found


@st.composite
def shapes(draw: Any) -> tuple[int, int, int]:
    """B, T and K: no tokens, one candidate, and all that there are."""
    bounds = ((1, 3), (0, 6), (1, VOCABULARY))
    return tuple(draw(st.integers(*bound)) for bound in bounds)  # type: ignore[return-value]


@st.composite
def batches(
    draw: Any, special: Sequence[float] = (), repeated: bool = False
) -> tuple[Scores, Tensor]:
    """Scores with all their parts, and which tokens count."""
    shape = draw(shapes())
    kind = draw(st.sampled_from(DTYPES))

    def part(*size: int) -> Tensor:
        return draw(filled(size, special, kind))

    def top() -> TopK:
        ranked = part(*shape).sort(-1, descending=True).values
        return TopK(draw(ids(shape, repeated)), ranked)

    scores = Scores(
        responses=draw(ids((*shape[:2], 1))).squeeze(-1),
        student=top(),
        teacher=top(),
        teacher_on_student=part(*shape),
        student_on_teacher=part(*shape),
        sampled=Sampled(part(*shape[:2]), part(*shape[:2])),
    )
    return scores, draw(flags(shape[:2]))
