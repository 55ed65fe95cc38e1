"""Every key has the paper's default, refuses wrong values by name, and reaches verl as given."""

import pickle
import re

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from recipe.prune_opd.config import (
    BudgetConfig,
    DriftConfig,
    GateConfig,
    PruneOPDConfig,
    TeacherConfig,
    TeacherServerConfig,
    TeacherUrlConfig,
    load_config,
)
from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.gates import (
    GATES,
    Consecutive,
    Cumulative,
    GateRule,
    Never,
    Relative,
    Windowed,
)

PAPER = {
    "trainer_mode": "sync",
    "resume": "strict",
    "student": "trainer",
    "deadline": 1800.0,
    "teacher": {
        "path": "T",
        "models": {},
        "key": "data_source",
        "home": "worker_group",
        "args": {},
        "concurrency": 256,
        "deadline": 600.0,
        "retries": 5,
        "max_missing": 0.01,
        "temperature": 1.0,
        "trust_remote_code": False,
        "override_config": {},
        "server": {
            "engine": "vllm",
            "replicas": 1,
            "tensor_model_parallel_size": 1,
            "gpu_memory_utilization": 0.85,
            "dtype": "bfloat16",
            "block_size": 16,
            "max_num_batched_tokens": 2048,
            "enforce_eager": True,
            "engine_kwargs": {},
            "wide_topk": 0,
        },
        "url": {"urls": [], "api": "vllm", "model": None, "api_key_env": None, "ca_file": None},
    },
    "topk": 16,
    "strategy": "only_stu",
    "strategy_args": {},
    "weighting": "student_p",
    "weighting_args": {},
    "loss_normaliser": "generated",
    "reward_clip": None,
    "dump_dir": None,
    "task_reward": {"coef": None, "responses": "all"},
    "drift": {
        "enable": True,
        "metric": "overlap_ratio",
        "args": {},
        "threshold": 0.7,
        "top_p": 0.95,
        "w_drop": 0.01,
        "scope": "response",
        "w_base": 0.5,
        "weights": "reliability",
        "weights_args": {},
    },
    "budget": {
        "enable": True,
        "rule": "hits",
        "args": {},
        "init": None,
        "min": None,
        "max": None,
        "step": 100,
        "hit_ratio": 0.1,
        "margin": 100,
        "patience": 3,
    },
    "gate": {
        "enable": False,
        "kind": "cumulative",
        "args": {},
        "min_tokens": 1,
        "window": 128,
        "rate": 0.5,
        "run_length": 16,
        "increase": 0.3,
        "chunk": None,
        "deadline": 10.0,
        "retries": 2,
    },
    "semi": {
        "enable": False,
        "dir": None,
        "switch": "never",
        "overlap_below": None,
        "overlap_above": None,
    },
    "records": {"dir": None, "every": 20, "samples": 4, "topk": 5},
}


def load(**changes: object) -> PruneOPDConfig:
    """The paper's configuration with keys changed, ``__`` for a dot."""
    node = OmegaConf.create(PAPER)
    for key, value in changes.items():
        OmegaConf.update(node, key.replace("__", "."), value, force_add=True)
    return load_config(node)


# ----------------------------------------------------------------------------------------- defaults


def test_class_defaults_are_the_papers():
    assert PruneOPDConfig(teacher=TeacherConfig(path="T")).model_dump() == PAPER


@pytest.fixture(scope="module")
def composed(compose):
    return compose("+recipe=prune_opd", "prune_opd.teacher.path=T")


def test_yaml_has_the_same_keys_and_values(composed):
    """But for the folders of records and rollouts, which are the run's."""
    folders = {
        group: {"dir": f"{composed.trainer.default_local_dir}/{name}"}
        for group, name in (("records", "records"), ("semi", "rollouts"))
    }
    expected = PAPER | {group: PAPER[group] | folder for group, folder in folders.items()}
    node = OmegaConf.to_container(composed.prune_opd, resolve=True)
    assert node["teacher"]["models"] is None  # Hydra would take no group in the place of {}
    node["teacher"]["models"] = {}
    assert node == expected
    assert load_config(composed.prune_opd).model_dump() == expected


def test_loading_keeps_what_was_given():
    changed = load(
        topk=32,
        strategy="union",
        drift__w_drop=0.02,
        budget__max=4000,
        teacher__override_config={"a": 1},
        dump_dir="d",
    )
    assert (changed.topk, changed.strategy, changed.dump_dir) == (32, "union", "d")
    assert (changed.drift.w_drop, changed.budget.max, changed.teacher.override_config) == (
        0.02,
        4000,
        {"a": 1},
    )
    assert isinstance(changed, PruneOPDConfig)
    assert isinstance(changed.drift, DriftConfig)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.adv_estimator", "prune_opd"),
        ("algorithm.use_kl_in_reward", False),
        ("critic.enable", False),
        ("trainer.use_v1", True),
        ("trainer.v1.trainer_mode", "prune_opd"),
        ("actor_rollout_ref.actor.loss_agg_mode", "token-mean"),
        ("actor_rollout_ref.actor.use_dynamic_bsz", True),
        ("actor_rollout_ref.ref.log_prob_use_dynamic_bsz", True),
        ("actor_rollout_ref.rollout.log_prob_use_dynamic_bsz", True),
        ("actor_rollout_ref.actor.use_kl_loss", False),
        ("actor_rollout_ref.actor.entropy_coeff", 0),
        ("actor_rollout_ref.rollout.agent.default_agent_loop", "single_turn_agent"),  # verl's own
        ("actor_rollout_ref.rollout.name", "vllm"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 1),
    ],
)
def test_recipe_sets_verls_keys(composed, key, value):
    assert OmegaConf.select(composed, key) == value


def test_command_line_beats_the_recipe(compose):
    config = compose(
        "+recipe=prune_opd", "prune_opd.topk=32", "prune_opd.teacher.path=T", "algorithm.gamma=0.5"
    )
    assert config.prune_opd.topk == 32
    assert config.algorithm.gamma == 0.5
    assert config.prune_opd.drift.threshold == 0.7


def test_teacher_takes_the_students_model_overrides(compose):
    override = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    config = compose("+recipe=prune_opd", "prune_opd.teacher.path=T", override)
    assert load_config(config.prune_opd).teacher.override_config == {"attn_implementation": "sdpa"}


def test_teachers_servers_take_the_rollouts_dtype(compose):
    config = compose(
        "+recipe=prune_opd", "prune_opd.teacher.path=T", "actor_rollout_ref.rollout.dtype=float32"
    )
    assert load_config(config.prune_opd).teacher.server.dtype == "float32"


def test_a_wrong_value_that_is_taken_from_a_key_of_verls_names_that_key(compose):
    config = compose("+recipe=prune_opd", "prune_opd.teacher.path=T")
    config.actor_rollout_ref.rollout.name = None
    with pytest.raises(ValueError, match=r"got None.*that of actor_rollout_ref\.rollout\.name"):
        load_config(config.prune_opd)


def test_without_the_recipe_the_teachers_path_is_an_error(compose):
    with pytest.raises(ConfigCompositionException, match=r"prune_opd\.teacher\.path"):
        compose("prune_opd.teacher.path=T")


def test_plain_opd_differs_in_the_two_switches_alone(compose, composed):
    plain = compose("+recipe=opd", "prune_opd.teacher.path=T")
    assert not plain.prune_opd.drift.enable
    assert not plain.prune_opd.budget.enable
    plain.prune_opd.drift.enable = plain.prune_opd.budget.enable = True
    assert plain == composed


def test_fixed_length_is_plain_opd_with_a_limit_of_ones_own(compose):
    config = compose(
        "+recipe=opd_fixed_length", "prune_opd.teacher.path=T", "prune_opd.budget.max=300"
    )
    plain = compose("+recipe=opd", "prune_opd.teacher.path=T", "prune_opd.budget.max=300")
    assert config == plain


def test_fixed_length_must_be_given(compose):
    config = compose("+recipe=opd_fixed_length", "prune_opd.teacher.path=T")
    with pytest.raises(ValueError, match=r"^prune_opd\.budget\.max: "):
        load_config(config.prune_opd)


BASELINES = {
    "opd_first": (
        {"weights": "first", "weights_args": {"tokens": 100}},
        ["prune_opd.drift.weights_args.tokens=100"],
    ),
    "iw_opd": ({"weights": "importance"}, []),
}


@pytest.mark.parametrize("recipe", BASELINES)
def test_a_baseline_of_weights_is_plain_opd_with_these_weights(compose, recipe):
    drift, given = BASELINES[recipe]
    config = compose(f"+recipe={recipe}", "prune_opd.teacher.path=T", *given)
    rules = load_config(config.prune_opd).rules
    assert (rules.applied, rules.weights) == (True, DriftConfig(**drift).build_weights())
    plain = compose("+recipe=opd", "prune_opd.teacher.path=T")
    assert not config.prune_opd.budget.enable
    config.prune_opd.drift = plain.prune_opd.drift
    assert config == plain


def test_the_tokens_of_the_position_baseline_must_be_given(compose):
    config = compose("+recipe=opd_first", "prune_opd.teacher.path=T")
    with pytest.raises(ValueError, match=r"^prune_opd\.drift\.weights_args\.tokens: no value was"):
        load_config(config.prune_opd)


def test_the_gates_recipe_is_prune_opd_with_what_goes_with_a_gate(compose, composed):
    config = compose("+recipe=prune_opd_gate", "prune_opd.teacher.path=T")
    typed = load_config(config.prune_opd)
    assert (typed.gate.enable, typed.drift.w_base) == (True, 0)
    assert typed.loss_normaliser == "reliable"
    config.prune_opd.gate.enable = False
    config.prune_opd.drift.w_base, config.prune_opd.loss_normaliser = 0.5, "generated"
    assert config == composed


def test_semi_opd_is_plain_opd_with_one_switch(compose):
    semi = compose("+recipe=semi_opd", "prune_opd.teacher.path=T")
    assert semi.prune_opd.semi.enable
    assert semi.prune_opd.semi.dir == f"{semi.trainer.default_local_dir}/rollouts"
    semi.prune_opd.semi.enable = False
    assert semi == compose("+recipe=opd", "prune_opd.teacher.path=T")


SEMI = {
    "gate": ({}, {"gate": {"enable": True}}, "gate.enable: got True, allowed: false with semi"),
    "no folder": ({"dir": None}, {}, "semi.dir: got None"),
    "no bound": ({"switch": "overlap"}, {}, "semi.overlap_below: got None, allowed: a bound"),
    "no switch": ({"overlap_below": 0.5}, {}, "semi.overlap_below: got 0.5, allowed: null with"),
    "no switch either": ({"overlap_above": 0.5}, {}, "semi.overlap_above: got 0.5"),
    "another switch": (
        {"switch": "later"},
        {},
        "semi.switch: got 'later', allowed: never, overlap",
    ),
    "no share": ({"overlap_below": 1.5}, {}, "semi.overlap_below: got 1.5"),
}


@pytest.mark.parametrize("case", SEMI)
def test_keys_of_semi_opd_that_do_not_go_together_are_refused(case):
    semi, others, message = SEMI[case]
    given = {"teacher": {"path": "T"}, "semi": {"enable": True, "dir": "d"} | semi} | others
    with pytest.raises(ValueError, match="^" + re.escape(f"prune_opd.{message}")):
        load_config(OmegaConf.create(given))
    if case not in ("another switch", "no share"):
        load_config(OmegaConf.create(given | {"semi": given["semi"] | {"enable": False}}))


# ------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize(
    ("response_length", "expected"),
    [(96, (96, 96, 96)), (4096, (1024, 1024, 4096)), (31744, (1024, 1024, 12288))],
)
def test_default_budget_fits_the_rollout(response_length, expected):
    budget = BudgetConfig().resolved(response_length).build()
    assert (budget.limit, budget.min, budget.max) == expected
    assert (budget.step, budget.hit_ratio, budget.margin, budget.patience) == (100, 0.1, 100, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"init": 2048}, (2048, 1024, 8192)),
        ({"min": 2000}, (2000, 2000, 8192)),
        ({"min": 10}, (1024, 10, 8192)),
        ({"max": 500}, (500, 500, 500)),
        ({"min": 100, "max": 500}, (500, 100, 500)),
        ({"init": 300, "min": 200, "max": 400}, (300, 200, 400)),
        ({"init": 300, "min": 200, "max": 400, "enable": False}, (400, 400, 400)),
        ({"enable": False}, (8192, 8192, 8192)),
    ],
)
def test_given_bounds_are_kept(given, expected):
    budget = BudgetConfig(**given).resolved(8192).build()
    assert (budget.limit, budget.min, budget.max) == expected


@pytest.mark.parametrize("length", [0, 400])
def test_a_budget_that_is_off_stays(length):
    budget = BudgetConfig(max=400, enable=False, patience=1).resolved(8192).build()
    for _ in range(3):
        budget.update([length])
    assert budget.limit == 400


def test_all_budget_keys_reach_the_budget():
    budget = BudgetConfig(step=7, hit_ratio=0.3, margin=11, patience=5).resolved(4096).build()
    assert (budget.step, budget.hit_ratio, budget.margin, budget.patience) == (7, 0.3, 11, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max": 8193}, r"prune_opd\.budget\.max: got 8193, allowed: .*8192"),
        ({"min": 8193}, r"prune_opd\.budget\.min: got 8193, allowed: .*8192"),
        ({"min": 400, "max": 300}, r"prune_opd\.budget\.min: got 400, allowed: .*300"),
        ({"min": 400, "init": 300}, r"prune_opd\.budget\.init: got 300, allowed: .*400.*8192"),
        ({"init": 500}, r"prune_opd\.budget\.init: got 500, allowed: .*1024.*8192"),
        ({"init": 9000}, r"prune_opd\.budget\.init: got 9000, allowed: .*1024.*8192"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        BudgetConfig(**given).resolved(8192).build()


# --------------------------------------------------------------------------------------------- gate


RULES = {
    "cumulative": Cumulative(0.03),
    "windowed": Windowed(40, 0.25),
    "consecutive": Consecutive(9),
    "relative": Relative(40, 0.125),
    "never": Never(),
}


def test_every_kind_of_gate_has_a_case_here():
    assert list(RULES) == list(GATES)


@pytest.mark.parametrize("kind", RULES)
def test_all_gate_keys_reach_the_gate(kind):
    keys = {"min_tokens": 7, "window": 40, "rate": 0.25, "run_length": 9, "increase": 0.125}
    config = load(drift__w_drop=0.03, gate={"kind": kind, **keys})
    gate = config.new_gate()
    assert (gate.rule, gate.min_tokens) == (RULES[kind], 7)


def test_every_response_has_a_gate_of_its_own():
    config = load(gate__kind="consecutive")
    config.new_gate().feed([True] * 500)
    assert config.new_gate().stop is None


@pytest.mark.parametrize(
    ("limit", "chunk"),
    [
        (1, 64),
        (512, 64),
        (4096, 64),
        (4097, 128),
        (8192, 128),
        (8193, 256),
        (12288, 256),
        (31744, 512),
    ],
)
def test_a_chunk_is_chosen_by_the_limit(limit, chunk):
    assert GateConfig().chunk_for(limit) == chunk
    assert -(-limit // chunk) <= 64  # questions
    assert GateConfig(chunk=7).chunk_for(limit) == 7


# What cannot go with a gate: other keys, the key that is named, part of the reason.
WITH_A_GATE = [
    (
        {"teacher__temperature": 0.7, "drift__metric": "teacher_top_p_accept"},
        "teacher.temperature",
        "1 with gate.enable and drift.metric=teacher_top_p_accept",
    ),
]


@pytest.mark.parametrize(
    ("given", "key", "allowed"), WITH_A_GATE, ids=[key for _, key, _ in WITH_A_GATE]
)
def test_what_cannot_go_with_a_gate_is_refused(given, key, allowed):
    load(**given)
    with pytest.raises(ValueError, match=rf"^prune_opd\.{key}: got ") as refused:
        load(gate__enable=True, **given)
    assert allowed in str(refused.value).split("allowed: ")[1]


@pytest.mark.parametrize(
    "given",
    [
        {"drift__w_drop": 0, "gate__kind": "windowed"},
        {"teacher__temperature": 0.7},
        {"drift__enable": False},
    ],
)
def test_what_a_gate_does_not_need_may_be_anything(given):
    assert load(gate__enable=True, **given).gate.enable


# ------------------------------------------------------------------------------ home of the teacher


URLS = ["http://10.0.0.1:8000", "https://teacher.example:8443"]


def at_home(home: str, **changes: object) -> PruneOPDConfig:
    """A configuration with what the home of the teacher needs."""
    return load(
        **{"teacher__home": home, "strategy": "sampled"}
        | ({"teacher__url__urls": URLS} if home == "url" else {})
        | changes
    )


def test_urls_are_kept_as_given():
    given = {"urls": URLS, "api": "sglang", "model": "M", "api_key_env": "KEY", "ca_file": "ca.pem"}
    url = at_home("url", teacher__url=given).teacher.url
    assert isinstance(url, TeacherUrlConfig)
    assert url.model_dump() == given


def test_urls_come_from_the_command_line(compose):
    home = ("prune_opd.teacher.home=url", "prune_opd.strategy=sampled", "prune_opd.teacher.path=T")
    config = compose("+recipe=prune_opd", *home, f"prune_opd.teacher.url.urls=[{','.join(URLS)}]")
    assert load_config(config.prune_opd).teacher.url.urls == URLS


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1:8000/",
        "http://10.0.0.1:8000/v1",
        "https://a.example/?x",
        "http://",
        "https://user:password@a.example",
        "10.0.0.1:8000",
        "a.example",
        "ftp://a.example",
        "grpc://a:1",
        "",
    ],
)
@pytest.mark.parametrize("before", [[], URLS])
@pytest.mark.parametrize("home", ["worker_group", "url"])
def test_urls_have_scheme_and_host_and_no_more(url, before, home):
    with pytest.raises(
        ValueError, match="allowed: http://host:port or https://host:port and nothing else"
    ) as refused:
        at_home(home, teacher__url__urls=[*before, url])
    assert str(refused.value).startswith(f"prune_opd.teacher.url.urls: got {url!r}, ")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000"),
        ("http://teacher", "http://TEACHER:80"),
        ("https://teacher:443", "https://teacher"),
    ],
)
def test_a_server_is_named_once(first, second):
    """Named twice it would get two shares of the work."""
    with pytest.raises(
        ValueError, match=r"^prune_opd\.teacher\.url\.urls: got .*, allowed: each server once$"
    ):
        at_home("url", teacher__url__urls=[first, "http://other", second])
    at_home("url", teacher__url__urls=[first, "http://10.0.0.1:8001"])


def test_servers_keep_what_was_given():
    server = load(teacher__server={"replicas": 2, "engine_kwargs": {"a": 1}}).teacher.server
    assert isinstance(server, TeacherServerConfig)
    assert (server.replicas, server.engine_kwargs, server.block_size) == (2, {"a": 1}, 16)


# ------------------------------------------------------------------------------- rules of one's own


class Unsendable(GateRule):
    """A rule that cannot be pickled."""

    reach = 1

    def __init__(self):
        self.rule = lambda events: events

    def holds(self, events):
        return self.rule(events)


def test_a_configuration_travels_without_its_rules():
    """Wherever it arrives they are found anew, by their names."""
    config = load(gate__kind=f"{__name__}:Unsendable")
    assert isinstance(config.gate_rule, Unsendable)
    arrived = pickle.loads(pickle.dumps(config))
    assert arrived == config
    assert not {"rules", "gate_rule"} & vars(arrived).keys()
    assert isinstance(arrived.gate_rule, Unsendable)


class Boundless(ResponseBudget):
    """A rule that gives more than it may."""

    @property
    def limit(self) -> int:
        return 10_000


def test_a_budget_that_gives_more_than_the_rollout_can_generate_is_refused():
    config = load(budget__rule=f"{__name__}:Boundless")
    with pytest.raises(
        ValueError, match=r"budget\.rule: got .*10000', allowed: limits from 1 to .*500"
    ):
        config.budget.resolved(500).build()
    off = load(budget={"rule": f"{__name__}:Boundless", "enable": False})
    assert off.budget.resolved(500).build().limit == 500


def test_several_teachers_are_counted_in_the_order_of_their_names():
    models = {"openai/gsm8k": "M", "code": "C"}
    found = load(teacher__path=None, teacher__models=models).teacher
    assert list(found.paths.items()) == [("code", "C"), ("openai/gsm8k", "M")]
    assert found.key_of("code") == "prune_opd.teacher.models.code"
    assert found.key_of("openai/gsm8k") == "prune_opd.teacher.models.'openai/gsm8k'"
    alone = load(teacher__models=None).teacher
    assert (alone.paths, alone.key_of("default")) == ({"default": "T"}, "prune_opd.teacher.path")


TWO = {"math": "M", "code": "C"}
WRONG_TEACHERS = [
    ("T", TWO, "prune_opd.teacher.path: got 'T', allowed: null with teacher.models, which has"),
    (None, {}, "prune_opd.teacher.path: got None, allowed: a folder or hub name of the teacher"),
    (None, {"teacher_model": "M"}, "prune_opd.teacher.models: got 'teacher_model', allowed: names"),
    (None, TWO | {"a b": "M"}, "prune_opd.teacher.models: got 'a b', allowed: names of letters"),
    (None, TWO | {"": "M"}, "prune_opd.teacher.models: got '', allowed: names of letters"),
    (None, TWO | {"math": " "}, "prune_opd.teacher.models.math: got ' ', allowed: a folder or hub"),
    (
        None,
        {"a/b": "M", "a_b": "C"},
        "prune_opd.teacher.models: got ['a/b', 'a_b'], allowed: names",
    ),
    (None, "M", "prune_opd.teacher.models: got 'M', allowed: a group of keys"),
]


@pytest.mark.parametrize(("path", "models", "said"), WRONG_TEACHERS)
def test_teachers_that_cannot_be_are_refused(path, models, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        load(teacher__path=path, teacher__models=models)


def test_cached_rollouts_know_one_teacher():
    with pytest.raises(
        ValueError, match=r"^prune_opd\.teacher\.models: got .* semi\.enable: cached"
    ):
        load(teacher__path=None, teacher__models=TWO, semi={"enable": True, "dir": "d"})


# ----------------------------------------------------------------------------------------- refusals


REFUSED = [
    ("teacher.path", None, "folder or hub name"),
    ("teacher.path", "", "folder or hub name"),
    ("teacher.path", " ", "folder or hub name"),
    ("teacher.temperature", 0, "[0.01, 100]"),
    ("teacher.temperature", -1.0, "[0.01, 100]"),
    ("teacher.temperature", float("inf"), "[0.01, 100]"),
    ("topk", 0, ">= 1"),
    ("topk", True, ">= 1"),
    ("drift.w_drop", True, ">= 0"),
    ("drift.threshold", True, "(0, 1]"),
    ("gate.chunk", False, ">= 1"),
    ("strategy", "best", "only_stu, only_tch, intersection, union, union_intersection, sampled"),
    ("weighting", "p", "student_p, teacher_p, none"),
    ("drift.metric", "kl", "overlap_ratio, teacher_top_p_accept"),
    ("drift.threshold", 0, "(0, 1]"),
    ("drift.threshold", 1.5, "(0, 1]"),
    ("drift.threshold", float("nan"), "(0, 1]"),
    ("drift.top_p", 0, "(0, 1]"),
    ("drift.top_p", 1.01, "(0, 1]"),
    ("drift.w_drop", -0.01, ">= 0"),
    ("drift.w_drop", float("nan"), ">= 0"),
    ("drift.w_drop", float("inf"), ">= 0"),
    ("drift.w_base", -0.5, "[0, 1000]"),
    ("drift.w_base", 1e39, "[0, 1000]"),
    ("drift.w_base", float("inf"), "[0, 1000]"),
    ("budget.init", 0, ">= 1"),
    ("budget.min", 0, ">= 1"),
    ("budget.max", -1, ">= 1"),
    ("budget.step", 0, ">= 1"),
    ("budget.hit_ratio", -0.1, "[0, 1]"),
    ("budget.hit_ratio", 10, "[0, 1]"),
    ("budget.margin", -1, ">= 0"),
    ("budget.patience", 0, ">= 1"),
    ("loss_normaliser", "all", "generated, reliable"),
    ("gate.kind", "best", "cumulative, windowed, consecutive, relative, never"),
    ("gate.min_tokens", 0, ">= 1"),
    ("gate.window", 0, ">= 1"),
    ("gate.run_length", 0, ">= 1"),
    ("gate.chunk", 0, ">= 1"),
    ("gate.rate", -0.1, "[0, 1)"),
    ("gate.rate", 1.0, "[0, 1)"),
    ("gate.increase", -0.1, "[0, 1)"),
    ("gate.increase", 1.0, "[0, 1)"),
    ("gate.increase", float("nan"), "[0, 1)"),
    ("gate.deadline", 0.0, "> 0"),
    ("gate.deadline", float("inf"), "> 0"),
    ("gate.deadline", float("nan"), "> 0"),
    ("gate.retries", -1, ">= 0"),
    ("teacher.url.api", "openai", "vllm, sglang"),
    ("teacher.url.api", "", "vllm, sglang"),
    ("teacher.max_missing", -0.1, "[0, 1)"),
    ("teacher.max_missing", 1.0, "[0, 1)"),
    ("teacher.max_missing", float("nan"), "[0, 1)"),
    ("teacher.concurrency", 0, ">= 1"),
    ("teacher.deadline", 0.0, "> 0"),
    ("teacher.deadline", float("inf"), "> 0"),
    ("teacher.deadline", float("nan"), "> 0"),
    ("teacher.retries", -1, ">= 0"),
    ("teacher.server.replicas", 0, ">= 1"),
    ("teacher.server.tensor_model_parallel_size", 0, ">= 1"),
    ("teacher.server.block_size", 0, ">= 1"),
    ("teacher.server.max_num_batched_tokens", 0, ">= 1"),
    ("teacher.server.gpu_memory_utilization", 0.0, "(0, 1]"),
    ("teacher.server.gpu_memory_utilization", 1.1, "(0, 1]"),
]


@pytest.mark.parametrize(
    ("key", "value", "allowed"), REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED]
)
def test_values_out_of_range_are_refused(key, value, allowed):
    with pytest.raises(ValueError, match="prune_opd") as refused:
        load(**{key.replace(".", "__"): value})
    message = str(refused.value)
    assert message.startswith(f"prune_opd.{key}: got {value!r}")
    assert allowed in message.split("allowed: ")[1]


EDGES = [
    ("drift.threshold", 1),
    ("drift.threshold", 1e-3),
    ("drift.top_p", 1),
    ("drift.w_drop", 0),
    ("drift.w_drop", 2),
    ("drift.w_drop", 1e-19),
    ("drift.w_base", 0),
    ("drift.w_base", 1000),
    ("teacher.temperature", 0.01),
    ("budget.hit_ratio", 0),
    ("budget.hit_ratio", 1),
    ("budget.margin", 0),
    ("budget.patience", 1),
    ("budget.step", 1),
    ("budget.min", 1),
    ("topk", 1),
    ("gate.rate", 0),
    ("gate.increase", 0),
    ("gate.retries", 0),
    ("gate.min_tokens", 1),
    ("gate.window", 1),
    ("gate.run_length", 1),
    ("gate.chunk", 1),
    ("gate.deadline", 0.1),
    ("teacher.server.gpu_memory_utilization", 1),
    ("teacher.server.replicas", 1),
    ("teacher.concurrency", 1),
    ("teacher.deadline", 0.1),
    ("teacher.retries", 0),
    ("teacher.max_missing", 0),
    ("teacher.max_missing", 0.99),
    ("loss_normaliser", "reliable"),
]


@pytest.mark.parametrize(("key", "value"), EDGES)
def test_values_at_the_edge_are_allowed(key, value):
    config = OmegaConf.create(load(**{key.replace(".", "__"): value}).model_dump())
    assert OmegaConf.select(config, key) == value


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("topk", "abc", "abc"),
        ("topk", 1.5, "1.5"),
        ("topk", None, "None"),
        ("strategy", None, "None"),
        ("drift.w_drop", "much", "much"),
        ("drift.enable", "maybe", "maybe"),
        ("drift", 3, "3"),
        ("budget.max", "long", "long"),
        ("budget.step", [1], "1"),
        ("teacher.override_config", "sdpa", "sdpa"),
        ("teacher", None, "teacher"),
        ("teacher.path", "${no.such.key}", "no.such.key"),
        ("gate", 3, "3"),
        ("gate.chunk", "small", "small"),
        ("gate.deadline", None, "None"),
        ("teacher.server.replicas", 1.5, "1.5"),
        ("teacher.retries", 1.5, "1.5"),
        ("teacher.deadline", None, "None"),
        ("teacher.home", None, "None"),
        ("teacher.url", "http://10.0.0.1:8000", "http://10.0.0.1:8000"),
        ("teacher.url.api", None, "None"),
    ],
)
def test_values_of_the_wrong_type_are_refused_in_one_line(key, value, found):
    with pytest.raises(ValueError, match="prune_opd") as refused:
        load(**{key.replace(".", "__"): value})
    message = str(refused.value)
    assert message.startswith(f"prune_opd.{key}: ")
    assert found in message
    assert "\n" not in message


def test_a_broken_reference_inside_the_whole_configuration_is_named_once():
    config = OmegaConf.create({"prune_opd": PAPER})
    config.prune_opd.topk = "${no.such.key}"
    with pytest.raises(ValueError, match=r"^prune_opd\.topk: .*no\.such\.key"):
        load_config(config.prune_opd)


@pytest.mark.parametrize(
    "key",
    ["topK", "drift.gamma", "budget.maximum", "teacher.name", "teacher.url.api_key", "gate.on"],
)
def test_unknown_keys_are_refused(key):
    """And told with those there are."""
    said = rf"^prune_opd\.{key}: there is no such key, allowed: \w+, "
    with pytest.raises(ValueError, match=said):
        load(**{key.replace(".", "__"): 1})
