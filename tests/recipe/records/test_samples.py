"""Samples: which responses are kept token by token, and that whatever they hold can be written."""

import json
import math

import torch

from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.pruning import Drift
from recipe.prune_opd.method.reward import Scores, TopK
from recipe.prune_opd.records.samples import chosen, token_data


def test_samples_go_from_the_least_reliable_to_the_most():
    lengths = [5.0, 1.0, 9.0, 3.0, 7.0]
    assert chosen(lengths, 3) == [1, 0, 2]
    assert chosen(lengths, 1) == [0]
    assert chosen(lengths, 9) == [1, 3, 0, 4, 2]
    assert chosen([], 3) == []


IDS = torch.tensor([[[7, 8, 9], [8, 7, 9], [9, 8, 7]]])
LOG_PROBS = torch.tensor([[[-0.1, -2.0, -3.0], [-0.5, -1.0, -torch.inf], [-0.2, -1.5, -9.0]]])


def sample(
    topk: int = 2, student: TopK | None = None, overlap: tuple[float, ...] = (1.0, 0.5, 0.0)
) -> dict:
    """Three tokens, the second an event, the last without the teacher's score."""
    own, teacher = student or TopK(IDS, LOG_PROBS), TopK(IDS.flip(2), LOG_PROBS)
    mask, events = torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
    drift = Drift(
        mask, torch.tensor([overlap]), events, reliability(events, mask, w_drop=0.01, w_base=0.5)
    )
    return token_data(
        Scores(torch.tensor([[7, 8, 7]]), own, teacher), drift, topk, lambda token: f"<{token}>"
    )


def test_a_sample_by_hand():
    found = sample()
    assert found["tokens"] == [7, 8, 7]
    assert found["overlap"] == [1, 0.5, None]
    assert found["events"] == [1]
    assert found["weight"] == [1, 0.99, 0.99]
    assert found["student_ids"] == [[7, 8], [8, 7], [9, 8]]
    assert found["teacher_ids"] == [[9, 8], [9, 7], [7, 8]]
    assert found["student_log_probs"] == [[-0.1, -2], [-0.5, -1], [-0.2, -1.5]]
    assert found["pieces"] == {"7": "<7>", "8": "<8>", "9": "<9>"}


def test_a_candidate_that_a_server_did_not_report_can_be_written():
    found = sample(topk=3)
    assert found["student_log_probs"][1] == [-0.5, -1, -99]
    json.dumps(found, allow_nan=False)


def test_a_sample_of_a_broken_model_can_be_written():
    nan = math.nan
    broken = TopK(IDS[..., :2], torch.tensor([[[nan, -1.0], [math.inf, nan], [-0.5, -0.7]]]))
    found = sample(student=broken, overlap=(nan, 0.5, 0.0))
    assert found["student_log_probs"] == [[None, -1], [None, None], [-0.5, -0.7]]
    assert found["overlap"] == [None, 0.5, None]
    json.dumps(found, allow_nan=False)
