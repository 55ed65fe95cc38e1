"""What a user reads at start is what is on."""

from typing import Any

import pytest

from recipe.prune_opd.config import GateConfig, PruneOPDConfig
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training.banner import banner, chunk_warning


def said(response_length: int = 8192, home: str = "worker_group", **groups: Any) -> str:
    """The banner of a configuration."""
    given = {"teacher": {"path": "T", "home": home}, **groups}
    config = PruneOPDConfig.model_validate(given)
    budget = config.budget.resolved(response_length)
    config = config.changed(budget=budget)
    return banner(config, build_home(config), budget.build())


def test_tells_what_is_on():
    drift = {"w_drop": 0.03, "threshold": 0.6}
    text = said(drift=drift, budget={"max": 4000}, topk=8, strategy="union")
    weights, limit = "w_drop = 0.03, w_base = 0.5", "1024 to start, 1024 to 4000"
    for part in ("T (", "union, student_p, k = 8", "overlap_ratio, γ = 0.6", weights, limit):
        assert part in text


def test_tells_several_teachers_by_their_names():
    text = said(teacher={"models": {"math": "M", "code": "C"}, "key": "domain"})
    (line,) = [line for line in text.splitlines() if line.startswith("  teacher ")]
    assert line.startswith("  teacher   math: M, code: C, by domain (worker group, ")


def test_tells_a_trainer_that_is_not_the_usual_one():
    assert "trainer" not in said()
    assert "  trainer   separate_async" in said(trainer_mode="separate_async").splitlines()


def test_tells_whose_weights_are_not_the_papers():
    given = {"weights": "first", "weights_args": {"tokens": 100}}
    assert "  weights   first 100 tokens alone" in said(drift=given).splitlines()
    assert "  weights   importance, γ = 0.5" in said(drift={"weights": "importance"}).splitlines()


def test_tells_where_rollouts_come_from():
    semi = {"enable": True, "dir": "/shared/r"}
    assert "rollouts" not in said()
    text = said(semi=semi)
    assert "cached without the teacher's scores in /shared/r; never live" in text
    text = said(semi=semi | {"switch": "overlap", "overlap_below": 0.4}, strategy="sampled")
    assert (
        "cached with the teacher's scores in /shared/r; live once the overlap is below 0.4" in text
    )


RULES = {
    "cumulative": "w_drop = 0.03",
    "windowed": "above 0.25 events per token over 40 tokens",
    "consecutive": "9 events in a row",
    "relative": "0.125 events per token above the first 40 tokens",
    "never": "stops nothing",
}


@pytest.mark.parametrize("kind", RULES)
def test_tells_the_gates_rule(kind):
    keys = {"window": 40, "rate": 0.25, "run_length": 9, "increase": 0.125, "chunk": 32}
    text = said(gate={"enable": True, "kind": kind, **keys}, drift={"w_drop": 0.03})
    assert f"  gate      {kind}, {RULES[kind]}, every 32 tokens" in text.splitlines()


@pytest.mark.parametrize(
    ("longest", "chunks"), [(4096, "64 tokens"), (12288, "64 tokens, 256 at a limit of 12288")]
)
def test_tells_the_chunks_in_force(longest, chunks):
    text = said(longest, gate={"enable": True}, budget={"max": longest, "init": 1024})
    assert text.splitlines()[-1].endswith(f", every {chunks}")


@pytest.mark.parametrize(
    ("home", "gate", "where"),
    [
        ("worker_group", False, "worker group"),
        ("worker_group", True, "worker group and, for the gate, servers"),
        ("server", False, "server"),
        ("server", True, "server"),
        ("url", False, "url"),
    ],
)
def test_tells_where_the_teacher_is(home, gate, where):
    text = said(home=home, gate={"enable": gate}, strategy="sampled")
    assert f"  teacher   T ({where}, temperature 1.0)" in text.splitlines()


def test_tells_what_is_off():
    off = {"enable": False}
    text = said(drift=off | {"metric": "teacher_top_p_accept"}, budget=off)
    assert "w_drop" not in text
    for part in (
        "weights   off",
        "off: fixed at 8192 tokens",
        "teacher_top_p_accept, top_p = 0.95",
        "gate      off",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("chunk", "limit"), [(None, 100_000), (16, 2048), (96, 12288), (64, 8192), (1, 128)]
)
def test_a_chunk_that_suits_the_limit_is_no_matter(chunk, limit):
    assert chunk_warning(GateConfig(chunk=chunk), limit) is None


@pytest.mark.parametrize(
    ("chunk", "limit", "asked"), [(64, 12288, 192), (16, 12288, 768), (1, 129, 129)]
)
def test_a_small_chunk_on_long_responses_is_warned_of(chunk, limit, asked):
    warning = chunk_warning(GateConfig(chunk=chunk), limit)
    chosen = {12288: 256, 129: 64}[limit]
    for part in (
        f"prune_opd.gate.chunk: {chunk} ",
        f"{asked} times",
        f"{asked // 2} times",
        f"would take {chosen}",
    ):
        assert part in warning
