"""A home of the teacher says before start what it cannot serve, in one sentence."""

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.reward import STRATEGIES
from recipe.prune_opd.teacher.home import HOMES, Home, build_home

ROLLOUT = {
    **{"name": "vllm", "disaggregation": {"enabled": False}, "engine_kwargs": {}},
    **{"temperature": 1.0, "top_p": 1.0, "top_k": -1, "calculate_log_probs": False},
}
MODEL = {"path": "T", "override_config": {}, "lora_rank": 8, "lora_adapter_path": None}
VERL = OmegaConf.create(
    {
        "trainer": {"del_local_ckpt_after_load": False, "n_gpus_per_node": 8},
        "actor_rollout_ref": {"rollout": ROLLOUT, "model": MODEL},
    }
)
URLS = ["http://10.0.0.1:8000", "https://teacher.example:8443"]


def home_of(home: str, teacher: dict[str, Any] | None = None, **keys: Any) -> Home:
    """The home of a configuration, its own checks passed."""
    url = {"url": {"urls": URLS}} if home == "url" else {}
    given = {"path": "T", "home": home, **url, **(teacher or {})}
    config = {"strategy": "sampled", "teacher": given, **keys}
    built = build_home(PruneOPDConfig.model_validate(config))
    built.check(VERL)
    return built


@pytest.mark.parametrize("home", HOMES)
def test_every_home_is_one(home):
    assert isinstance(home_of(home), Home)


@pytest.mark.parametrize("home", ["server", "url"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_servers_are_refused_where_the_students_candidates_are_scored(strategy, home):
    if strategy in ("only_tch", "intersection", "sampled"):
        home_of(home, strategy=strategy)
    else:
        with pytest.raises(ValueError, match=rf"^prune_opd\.strategy: got '{strategy}'") as refused:
            home_of(home, strategy=strategy)
        more = " without teacher.server.wide_topk" if home == "server" else ""
        assert str(refused.value).endswith(
            f"allowed: only_tch, intersection, sampled with teacher.home={home}, which cannot score"
            f" the student's candidates{more}"
        )


WIDE = {"server": {"engine": "vllm", "wide_topk": 64}}


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_a_wide_top_k_servers_serve_every_strategy_with_one_copy(strategy, gate):
    home = home_of("server", WIDE, strategy=strategy, gate={"enable": gate})
    asks = strategy in ("only_stu", "union", "union_intersection")
    assert (home.asks_on_student, home.follows) == (asks, asks or gate)
    assert (home.reference_model, home.held) == (False, None)
    assert home.cacheable == (not asks)


def test_servers_of_somebody_else_are_not_asked_about_the_students_candidates():
    with pytest.raises(ValueError, match=r"home=url, which cannot score the student's can"):
        home_of("url", WIDE, strategy="only_stu")
    assert not home_of("worker_group", WIDE, strategy="only_stu").asks_on_student


def test_what_does_not_go_with_a_wide_top_k_is_refused():
    def refused(said, teacher=WIDE, verl=None, **keys):
        home = {"path": "T", "home": "server", **teacher}
        config = PruneOPDConfig.model_validate({"teacher": home, **keys})
        with pytest.raises(ValueError, match=said):
            build_home(config).check(OmegaConf.merge(VERL, verl or {}))

    narrow = {"server": {"engine": "vllm", "wide_topk": 8}}
    refused(r"teacher\.server\.wide_topk: got 8, allowed: 0, or at least topk, 16$", narrow)
    few = {"server": WIDE["server"] | {"engine_kwargs": {"max_logprobs": 32}}}
    refused(r"max_logprobs: got 32, .* at least prune_opd\.teacher\.server\.wide_topk, 64$", few)
    semi = {"enable": True, "dir": "D"}
    refused(r"^prune_opd\.semi\.enable: got True, allowed: false where teacher", semi=semi)
    other = {"actor_rollout_ref": {"rollout": {"name": "trtllm"}}}
    refused(r"^actor_rollout_ref\.rollout\.name: .*opd\.teacher\.server\.wide_topk", verl=other)
    split = {"actor_rollout_ref": {"rollout": {"top_p": 0.9, "calculate_log_probs": True}}}
    refused(r"calculate_log_probs: got True, allowed .*\.teacher\.server\.wide_topk", verl=split)


def test_no_vocabulary_is_narrower_than_the_wide_top_k(monkeypatch):
    monkeypatch.setattr("recipe.prune_opd.teacher.servers.check_server_models", lambda *given: None)
    home = home_of("server", WIDE, strategy="only_stu")
    home.check_models(VERL, None, SimpleNamespace(vocab_size=64))
    with pytest.raises(ValueError, match=r"wide_topk: got 64, allowed: at most the teacher's .*63"):
        home.check_models(VERL, None, SimpleNamespace(vocab_size=63))


@pytest.mark.parametrize("home", ["worker_group", "lora_base"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_trainers_workers_serve_every_strategy(strategy, home):
    assert home_of(home, strategy=strategy).prune_opd.strategy == strategy


REFUSED = [
    ("server", {"temperature": 0.7}, {}, r"temperature: got 0\.7, allowed: 1 with teacher\.home=s"),
    ("url", {"temperature": 0.7}, {}, r"temperature: got 0\.7, allowed: 1 with teacher\.home=url"),
    ("server", {"trust_remote_code": True}, {}, "trust_remote_code: got True, allowed: false with"),
    (
        "worker_group",
        {"trust_remote_code": True},
        {"gate": {"enable": True}},
        "trust_remote_code: got True, allowed: false with gate.enable",
    ),
    ("url", {"url": {"urls": []}}, {}, r"url\.urls: got \[\], allowed: at least one http://"),
]


@pytest.mark.parametrize(("home", "teacher", "keys", "said"), REFUSED)
def test_what_does_not_go_with_a_home_is_refused(home, teacher, keys, said):
    with pytest.raises(ValueError, match=rf"^prune_opd\.teacher\.{said}"):
        home_of(home, teacher, **keys)


def test_a_gate_needs_servers_of_the_run():
    """It asks again and again about one sequence, which an API does not know."""
    with pytest.raises(
        ValueError,
        match=r"^prune_opd\.gate\.enable: got True, allowed: false with teacher\.home=url: ",
    ):
        home_of("url", gate={"enable": True})


def test_a_run_that_may_go_back_keeps_its_checkpoint():
    home = home_of("server")
    config = OmegaConf.merge(VERL, {"trainer": {"del_local_ckpt_after_load": True}})
    with pytest.raises(ValueError, match=r"^trainer\.del_local_ckpt_after_load: got True"):
        home.check(config)


def test_code_of_the_teachers_own_is_no_matter_elsewhere():
    assert home_of("url", {"trust_remote_code": True}).prune_opd.teacher.trust_remote_code
    assert home_of("worker_group", {"trust_remote_code": True}).held.trust_remote_code


@pytest.mark.parametrize(
    ("home", "gate", "asked", "reference", "held"),
    [
        ("worker_group", False, False, True, True),
        ("worker_group", True, True, True, True),
        ("lora_base", False, False, True, False),
        ("lora_base", True, True, True, False),
        ("server", False, True, False, False),
        ("server", True, True, False, False),
        ("url", False, True, False, False),
    ],
)
def test_servers_are_asked_by_the_gate_and_by_their_home(home, gate, asked, reference, held):
    found = home_of(home, gate={"enable": gate})
    assert (found.is_asked, found.reference_model) == (asked, reference)
    assert (found.held is not None) == held


@pytest.mark.parametrize(
    ("teacher", "model", "said"),
    [
        (
            {},
            {"lora_rank": 0},
            r"actor_rollout_ref\.model\.lora_rank: got 0, allowed with .*\.home=lora_base:",
        ),
        ({}, {"path": "S"}, r"prune_opd\.teacher\.path: got 'T', allowed: with .*path, 'S'$"),
        (
            {"override_config": {"attn_implementation": "eager"}},
            {},
            r"prune_opd\.teacher\.override_config: got \{.*eager.*\}, allowed: with .*, \{\}$",
        ),
    ],
)
def test_a_base_is_that_of_a_student_with_an_adapter(teacher, model, said):
    given = {"path": "T", "home": "lora_base", **teacher}
    home = build_home(PruneOPDConfig.model_validate({"teacher": given}))
    with pytest.raises(ValueError, match=rf"^{said}"):
        home.check(OmegaConf.merge(VERL, {"actor_rollout_ref": {"model": model}}))


@pytest.mark.parametrize(
    "adapter",
    [{"lora_adapter_path": "/a"}, {"lora": {"rank": 8}}, {"lora": None, "lora_rank": 8}],
    ids=str,
)
def test_an_adapter_is_one_however_it_is_named(adapter):
    model = {"lora_rank": 0, **adapter}
    home_of("lora_base").check(OmegaConf.merge(VERL, {"actor_rollout_ref": {"model": model}}))


class Elsewhere(Home):
    """A home of a user's own that delivers nothing beside its top k."""

    delivers = ()

    def __init__(self, prune_opd: PruneOPDConfig, address: str):
        super().__init__(prune_opd)
        self.address = address

    def client(self, config: DictConfig, servers: Any) -> str:
        return f"client of {self.address}"


MINE = f"{__name__}:Elsewhere"


def test_a_home_of_ones_own_is_built_with_its_arguments():
    home = home_of(MINE, {"args": {"address": "there"}}, strategy="intersection")
    assert home.client(VERL, None) == "client of there"
    assert (home.is_asked, home.pool(VERL), str(home)) == (True, None, MINE)


def test_strategies_are_refused_by_what_a_home_delivers():
    with pytest.raises(
        ValueError, match=r"got 'sampled', allowed: only_tch, intersection with .* sampled tokens$"
    ):
        home_of(MINE, {"args": {"address": "there"}})


class Knowing(Elsewhere):
    delivers = ("teacher_on_student",)


def test_a_home_of_ones_own_may_be_asked_about_the_students_candidates():
    mine, given = f"{__name__}:Knowing", {"args": {"address": "there"}}
    with pytest.raises(
        ValueError,
        match=r"^prune_opd\.teacher\.server\.wide_topk: got 0, allowed: at least topk",
    ):
        home_of(mine, given, strategy="only_stu")
    assert home_of(mine, given | WIDE, strategy="only_stu").asks_on_student


def test_weights_are_refused_by_what_a_home_delivers():
    """Where they are applied: switched off, nobody asks for the sampled tokens."""
    mine = {"args": {"address": "there"}}
    with pytest.raises(
        ValueError,
        match=r"^prune_opd\.drift\.weights: got 'importance', allowed: reliability, first with .*"
        r" sampled tokens$",
    ):
        home_of(MINE, mine, strategy="intersection", drift={"weights": "importance"})
    off = {"weights": "importance", "enable": False}
    home_of(MINE, mine, strategy="intersection", drift=off)
    home_of("server", strategy="intersection", drift={"weights": "importance"})


SEVERAL = {"path": None, "models": {"math": "M", "code": "C"}}


@pytest.mark.parametrize("home", ["worker_group", "server"])
def test_several_teachers_go_where_the_home_says_so(home):
    assert home_of(home, SEVERAL).several


@pytest.mark.parametrize(("home", "more"), [("url", {}), (MINE, {"args": {"address": "there"}})])
def test_several_teachers_are_refused_by_a_home_of_one(home, more):
    with pytest.raises(ValueError, match=r"^prune_opd\.teacher\.models: ") as refused:
        home_of(home, SEVERAL | more, strategy="intersection")
    assert str(refused.value) == (
        "prune_opd.teacher.models: got ['math', 'code'], allowed: none with"
        f" teacher.home={home}, which serves one, teacher.path"
    )


class Both(Elsewhere):
    """A home of a user's own that serves several."""

    several = True

    def clients(self, config: DictConfig, servers: Any) -> list[str]:
        return [f"client of {self.address}/{name}" for name in self.prune_opd.teacher.paths]


def test_a_home_of_ones_own_may_serve_several():
    given = SEVERAL | {"args": {"address": "there"}}
    home = home_of(f"{__name__}:Both", given, strategy="intersection")
    assert home.clients(VERL, None) == ["client of there/code", "client of there/math"]


def test_a_home_of_one_has_one_client_or_none():
    one = home_of(MINE, {"args": {"address": "there"}}, strategy="intersection")
    assert one.clients(VERL, None) == ["client of there"]
    assert home_of("worker_group").clients(VERL, None) == []


def test_names_and_arguments_that_are_none_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^prune_opd\.teacher\.home: got 'servers', allowed: worker_group, lora_base, server,"
        " url, or ",
    ):
        home_of("servers")
    with pytest.raises(ValueError, match=r"^prune_opd\.teacher\.args\.address: no value was given"):
        home_of(MINE)
    with pytest.raises(ValueError, match=r"^prune_opd\.teacher\.args\.port: .* it has: address$"):
        home_of(MINE, {"args": {"address": "there", "port": 1}})
