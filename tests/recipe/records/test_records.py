"""Records hold what a step did, by position, and survive a killed run."""

import gzip
import json
import math
from itertools import pairwise

import pytest
import torch

from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.pruning import Drift, Pruned
from recipe.prune_opd.method.reward import Scores, TopK, TopKReward
from recipe.prune_opd.records.files import (
    STEPS,
    Records,
    read_lines,
    read_samples,
    read_steps,
    rewound,
    sampled_steps,
)
from recipe.prune_opd.records.metrics import COLUMNS, step_record
from recipe.prune_opd.records.positions import (
    BUCKETS,
    BY_POSITION,
    bucket_edges,
    by_position,
    position_sums,
)
from recipe.prune_opd.records.samples import chosen, token_data

# ---------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("longest", [1, 2, 3, 8, 96, 227, 512, 513, 1024, 12288, 31744, 131072])
def test_buckets_cover_every_position_once(longest):
    edges = bucket_edges(longest)
    assert (edges[0], edges[-1]) == (0, longest)
    assert edges == sorted(set(edges))
    assert len(edges) - 1 <= BUCKETS


def test_buckets_double_with_the_position():
    edges = bucket_edges(12288)
    assert len(edges) - 1 == BUCKETS == 32
    assert edges[:10] == [0, 24, 48, 72, 96, 120, 144, 168, 192, 240]
    assert edges[-5:] == [6144, 7680, 9216, 10752, 12288]
    assert all(end - start <= start / 4 for start, end in pairwise(edges[4:]))


def sums_of(mask, overlap, events, edges, base=0.25):
    """With a reward of two candidates of -1 each, a student sure of one token and a teacher torn
    between two."""
    weights = reliability(events, mask, w_drop=0.5, w_base=base)
    reward = -torch.ones(*mask.shape, 2)
    sure = torch.tensor([0.0, -torch.inf]).expand(*mask.shape, 2)
    torn = torch.full((*mask.shape, 2), math.log(0.5))
    ids = torch.zeros(*mask.shape, 2, dtype=torch.long)
    given = TopKReward(reward, ids, ids == 0, sure)
    pruned = Pruned(mask.bool(), overlap, events, weights, given, reward)
    return position_sums(pruned, Scores(ids[..., 0], TopK(ids, sure), TopK(ids, torn)), edges)


def test_sums_by_hand():
    """Two responses of four and two tokens in buckets of one, two and one positions; what is masked
    is garbage."""
    nan = math.nan
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    overlap = torch.tensor([[1.0, 0.5, 0.0, 0.25], [0.5, 0.5, nan, nan]])
    events = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]).bool()  # R: 1, .5, .5, 0 and 1, 1
    sums = sums_of(mask, overlap, events, [0, 1, 3, 4], base=0.0)
    assert sums.shape == (2, len(BY_POSITION) * 3)
    assert sums.dtype == torch.float32
    first, second = (row.view(len(BY_POSITION), 3).tolist() for row in sums)
    log2 = math.log(2)
    assert {
        name: pytest.approx(values) for name, values in zip(BY_POSITION, first, strict=True)
    } == {
        "tokens": [1, 2, 1],
        "overlap": [1, 0.5, 0.25],
        "events": [0, 1, 1],
        "weight": [1, 1, 0],
        "trained": [1, 2, 0],
        "reward": [-2, -4, -2],
        "student_entropy": [0, 0, 0],
        "teacher_entropy": [log2, 2 * log2, log2],
    }
    assert dict(zip(BY_POSITION, second, strict=True))["tokens"] == [1, 1, 0]
    total = by_position(sums, [0, 1, 3, 4])
    assert total["tokens"] == [2, 3, 1]
    assert total["weight"] == [2, 2, 0]
    assert total["overlap"] == [1.5, 1, 0.25]


def random_batch(rows=6, length=50):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, length, generator=generator) < 0.8
    overlap = torch.rand(rows, length, generator=generator)
    return mask, overlap, overlap < 0.3


@pytest.mark.parametrize("longest", [50, 20, 4000])
def test_sums_over_buckets_are_sums_over_tokens(longest):
    """Also where responses are longer than the largest limit, or far shorter."""
    mask, overlap, events = random_batch()
    edges = bucket_edges(longest)
    sums = sums_of(mask, overlap, events, edges).view(len(mask), len(BY_POSITION), -1).sum(-1)
    weights = reliability(events, mask, 0.5, 0.25)
    expected = {
        "tokens": mask.sum(-1),
        "overlap": (overlap * mask).sum(-1),
        "events": (events & mask).sum(-1),
        "weight": (weights.weight * mask).sum(-1),
        "trained": mask.sum(-1),
        "reward": -2 * mask.sum(-1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(sums[:, BY_POSITION.index(name)], value.float(), msg=name)


def test_sums_of_parts_are_those_of_the_whole():
    mask, overlap, events = random_batch()
    edges = bucket_edges(50)
    parts = zip(mask.split(2), overlap.split(2), events.split(2), strict=True)
    whole = sums_of(mask, overlap, events, edges)
    torch.testing.assert_close(torch.cat([sums_of(*part, edges) for part in parts]), whole)


def test_sums_do_not_depend_on_padding():
    mask, overlap, events = random_batch()
    wider = [torch.nn.functional.pad(value.float(), (0, 7)) for value in (mask, overlap, events)]
    edges = bucket_edges(50)
    torch.testing.assert_close(
        sums_of(wider[0].bool(), wider[1], wider[2].bool(), edges),
        sums_of(mask, overlap, events, edges),
    )


# ------------------------------------------------------------------------------- the line of a step

EDGES = [0, 4, 8, 16]


def rows_of(*responses: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of responses: columns as given; tokens fill the buckets, each with overlap .5 and
    reliability 1."""
    sums, positions = (
        torch.zeros(len(responses), len(COLUMNS)),
        torch.zeros(len(responses), len(BY_POSITION), 3),
    )
    for row, given in enumerate(responses):
        for name, value in given.items():
            sums[row, COLUMNS.index(name)] = value
        for bucket, (start, end) in enumerate(pairwise(EDGES)):
            count = min(max(given["tokens"] - start, 0), end - start)
            positions[row, BY_POSITION.index("tokens"), bucket] = count
            positions[row, BY_POSITION.index("overlap"), bucket] = count / 2
            positions[row, BY_POSITION.index("trained"), bucket] = count
    return sums, positions.flatten(1)


def test_a_step_by_hand():
    """One ended by itself, one was cut by the limit, one was stopped by the gate, of one nothing
    was scored."""
    sums, positions = rows_of(
        {"tokens": 3, "effective_length": 3, "ended": 1},
        {"tokens": 6, "effective_length": 5, "missing": 1},
        {"tokens": 4, "effective_length": 4, "stopped": 1, "generated": 7},
        {"tokens": 0, "missing": 7},
    )
    record = step_record(sums, positions, EDGES, limit=7, next_limit=9, longest=16)
    assert record["responses"] == 4
    assert (record["limit"], record["next_limit"]) == (7, 9)
    assert record["share"] == {"ended": 0.25, "gate": 0.25, "limit": 0.5}
    assert record["tokens"] == {
        "generated": 3 + 7 + 7 + 7,
        "scored": 3 + 6 + 4,
        "trained": 13,
        "reliable": 3 + 5 + 4,
        "saved": (16 - 7) * 3,  # the first would not have been longer
    }
    assert {name: record["length"][name] for name in ("min", "max", "mean")} == {
        "min": 3,
        "max": 7,
        "mean": 5.25,
    }
    # As the budget counts: without the one of which nothing is known.
    assert record["effective_length"]["mean"] == 4
    assert record["effective_length"]["q50"] == 4
    assert record["positions"]["edges"] == [0, 4, 8]  # what nobody reached is not written
    assert record["positions"]["tokens"] == [11, 2]
    assert record["positions"]["overlap"] == [0.5, 0.5]


def test_rows_that_are_left_out_change_nothing():
    """Padding rows are: the record of real rows is the same with and without them in the batch."""
    real = {"tokens": 3, "effective_length": 2}
    sums, positions = rows_of(real, real, {"tokens": 9, "effective_length": 9})
    keep = torch.tensor([True, True, False])
    expected = step_record(*rows_of(real, real), EDGES, 7, 7, 16)
    assert step_record(sums[keep], positions[keep], EDGES, 7, 7, 16) == expected
    assert step_record(sums, positions, EDGES, 7, 7, 16) != expected


def test_a_step_in_which_nothing_was_scored_is_no_error():
    record = step_record(*rows_of({"tokens": 0, "missing": 4}), EDGES, 7, 7, 16)
    assert record["effective_length"] is None
    assert record["positions"] == {"edges": [0]} | {n: [] for n in BY_POSITION if n != "trained"}
    json.dumps(record, allow_nan=False)


def test_what_is_not_finite_becomes_null():
    sums, positions = rows_of({"tokens": 4, "effective_length": 4})
    positions[0, 3 * BY_POSITION.index("reward")] = -torch.inf
    record = step_record(sums, positions, EDGES, 7, 7, 16)
    assert record["positions"]["reward"] == [None]
    json.dumps(record, allow_nan=False)


# ------------------------------------------------------------------------------------------ samples


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


# -------------------------------------------------------------------------------------------- files


def line(value: float = 0.0) -> dict:
    return {"positions": {}, "value": value}


def steps(folder) -> list[tuple[int, float]]:
    return [(record["step"], record["value"]) for record in read_steps(folder)[0]]


def test_a_step_is_in_the_file_at_once(tmp_path):
    records = Records(tmp_path / "a" / "b")
    records.step(1, line(0.5))
    (found,), faults = read_steps(tmp_path / "a" / "b")
    assert (found["step"], found["value"], faults) == (1, 0.5, [])
    assert found["time"].endswith("+00:00")


def test_a_torn_last_line_is_skipped_and_named(tmp_path):
    records = Records(tmp_path)
    for step in (1, 2):
        records.step(step, line())
    file = tmp_path / STEPS
    file.write_text(file.read_text()[:-9])
    found, faults = read_steps(tmp_path)
    assert [record["step"] for record in found] == [1]
    (fault,) = faults
    assert "line 2" in fault
    assert str(file) in fault


def test_a_resumed_run_writes_after_a_torn_line(tmp_path):
    Records(tmp_path).step(1, line())
    file = tmp_path / STEPS
    file.write_text(file.read_text() + '{"step":2,"ti')
    Records(tmp_path).step(2, line(7))
    assert steps(tmp_path) == [(1, 0), (2, 7)]
    assert len(read_steps(tmp_path)[1]) == 1


def test_steps_repeated_after_a_resume_supersede_the_earlier_ones(tmp_path):
    first = Records(tmp_path)
    for step in (1, 2, 3, 4, 5):
        first.step(step, line(1))
    second = Records(tmp_path)
    for step in (4, 5, 6):
        second.step(step, line(2))
    assert steps(tmp_path) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]


def test_a_resumed_run_that_has_not_caught_up_stands_where_it_is():
    course = rewound([{"step": step} for step in (1, 2, 3, 4, 5, 3, 4)])
    assert [record["step"] for record in course] == [1, 2, 3, 4]
    assert rewound([{"step": 7}, {"step": 1}]) == [{"step": 1}]


@pytest.mark.parametrize("text", ["", "\n\n", "[1]\n", "null\n", "\x00\x00\n", '{"other": 1}\n'])
def test_lines_of_something_else_are_no_steps(tmp_path, text):
    (tmp_path / STEPS).write_text(text)
    assert read_steps(tmp_path)[0] == []


def test_text_that_is_no_utf8_is_no_error(tmp_path):
    (tmp_path / STEPS).write_bytes(b'\xff\xfe{"step"\n{"step":1,"positions":{}}\n')
    found, faults = read_lines(tmp_path / STEPS)
    assert [record["step"] for record in found] == [1]
    assert len(faults) == 1


def test_samples_of_a_step_are_replaced_as_a_whole(tmp_path):
    records = Records(tmp_path)
    records.samples(20, [sample(), sample()])
    records.samples(20, [sample()])
    records.samples(3, [])
    assert read_samples(tmp_path, 20) == [sample()]
    assert sampled_steps(tmp_path) == [3, 20]
    assert read_samples(tmp_path, 4) == []
    assert not list(tmp_path.rglob("*.partial"))


def test_samples_that_cannot_be_written_leave_the_file_of_before(tmp_path):
    records = Records(tmp_path)
    records.samples(20, [sample()])
    with pytest.raises(ValueError, match="JSON"):
        records.samples(20, [{"weight": math.nan}])
    assert read_samples(tmp_path, 20) == [sample()]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_damaged_file_of_samples_is_an_error_that_names_it(tmp_path):
    Records(tmp_path).samples(1, [sample()])
    (file,) = tmp_path.rglob("*.gz")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"step_1\.jsonl\.gz"):
        read_samples(tmp_path, 1)
    file.write_bytes(gzip.compress(b"no json"))
    with pytest.raises(ValueError, match=r"step_1\.jsonl\.gz"):
        read_samples(tmp_path, 1)
