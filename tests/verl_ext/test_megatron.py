"""However Megatron's ranks share model and sequences, a pass returns and trains what it does whole.

Runs verl's Megatron engine on two gloo ranks, see ``megatron_rank.py``. "Whole" is the pass that
FSDP's engine makes, over all columns in one process.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import answers_of

from verl_ext import cpu

PROGRAM = Path(__file__).with_name("megatron_rank.py")
LAYOUTS = ("thd", "bshd")
SCORES = ("top_ids", "top_log_probs", "log_probs_at", "log_probs", "entropy")

pytestmark = [
    pytest.mark.skipif(not cpu.no_accelerator(), reason="PyTorch is built for an accelerator"),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return answers_of(PROGRAM, tmp_path_factory.mktemp("megatron"))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


# ----------------------------------------------------------------------- a table in a model's place


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["data", "tensor", "context"])
def test_a_scoring_pass_returns_the_same_on_each_rank(ranks, way, layout, name):
    expected = ranks[0]["packed"]["scores"][name]
    for rank in ranks:
        close(rank[f"{way} {layout}"]["scores"][name], expected, 2e-6)
    assert expected[expected.isfinite()].float().std() > 0.1  # not all the same anyway


def test_the_case_has_what_goes_wrong(ranks):
    """Too few candidates on a rank, one of them wanted; ids without a row, padding that is larger
    than every token's logit."""
    from megatron_rank import COMMON, OUTSIDE, PADDED, K, V, table

    scores = ranks[0]["packed"]["scores"]
    assert 0 < COMMON - PADDED // 2 < K
    assert (scores["top_ids"] >= PADDED // 2).any()
    assert (scores["top_ids"] < COMMON).all()
    assert scores["log_probs_at"].isinf().sum() == len(OUTSIDE)
    assert table()[:, V:].min() > table()[:, :V].max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_update_has_the_same_gradient(ranks, layout):
    expected = ranks[0]["packed"]["gradient"]["table"]
    gradients = {
        way: [rank[f"{way} {layout}"]["gradient"]["table"] for rank in ranks]
        for way in ("data", "tensor", "context")
    }
    for each in gradients["data"]:
        close(each, expected, 3e-6)
    close(torch.cat(gradients["tensor"], -1), expected, 3e-6)
    # Megatron averages over context-parallel ranks, too, and multiplies the loss by their number.
    close(torch.stack(gradients["context"]).mean(0), expected, 3e-6)
    assert expected.abs().max() > 0.01


def test_a_rank_that_holds_padding_alone_adds_nothing(ranks):
    expected = ranks[0]["packed few"]
    for name in SCORES:
        close(ranks[1]["tensor few"]["scores"][name], expected["scores"][name], 2e-6)
    gradient = torch.cat([rank["tensor few"]["gradient"]["table"] for rank in ranks], -1)
    close(gradient, expected["gradient"]["table"], 3e-6)
    assert not ranks[1]["tensor few"]["gradient"]["table"].any()


# ------------------------------------------------------------------------- a model of megatron-core


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("way", "rank"), [("tensor", 0), ("tensor", 1), ("pipeline", 1)])
def test_a_model_in_parts_scores_the_same(ranks, way, rank, name):
    expected = ranks[0]["gpt data"]["scores"][name]
    close(ranks[rank][f"gpt {way}"]["scores"][name], expected, 2e-5)
    assert expected[expected.isfinite()].float().std() > 0.05


@pytest.mark.parametrize("way", ["tensor", "pipeline"])
def test_a_model_in_parts_has_the_same_gradient(ranks, way):
    expected, seen = ranks[0]["gpt data"]["gradient"], set()
    parts = [rank[f"gpt {way}"]["gradient"] for rank in ranks]
    for name, gradient in expected.items():
        found = [part[name] for part in parts if name in part]
        seen.add(len(found))
        split = [i for i, size in enumerate(gradient.shape) if size != found[0].shape[i]]
        whole = torch.cat(found, split[0]) if split else found[0]
        assert gradient.abs().max() > 1e-5, name
        torch.testing.assert_close(whole, gradient, rtol=1e-3, atol=1e-5)
    assert seen == ({2} if way == "tensor" else {1})


@pytest.mark.parametrize(
    ("way", "answering"),
    [("tensor thd", [0]), ("context bshd", [0]), ("data thd", [0, 1]), ("gpt pipeline", [1])],
)
def test_one_rank_answers_for_all_that_share_responses(ranks, way, answering):
    assert [rank for rank in range(2) if ranks[rank][way]["answers"]] == answering


def test_only_the_last_stage_has_scores(ranks):
    assert ranks[0]["gpt pipeline"]["scores"] is None
