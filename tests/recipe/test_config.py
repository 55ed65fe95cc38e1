from dataclasses import asdict

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from recipe.prune_opd.config import BudgetConfig, DriftConfig, PruneOPDConfig, TeacherConfig, load_config

PAPER = {
    "teacher": {"path": "T", "temperature": 1.0, "trust_remote_code": False, "override_config": {}},
    "topk": 16,
    "strategy": "only_stu",
    "weighting": "student_p",
    "dump_dir": None,
    "drift": {
        "enable": True,
        "metric": "overlap_ratio",
        "threshold": 0.7,
        "top_p": 0.95,
        "w_drop": 0.01,
        "w_base": 0.5,
    },
    "budget": {
        "enable": True,
        "init": None,
        "min": None,
        "max": None,
        "step": 100,
        "hit_ratio": 0.1,
        "margin": 100,
        "patience": 3,
    },
}


def load(**changes: object) -> PruneOPDConfig:
    """The paper's configuration with keys changed, ``__`` for a dot."""
    node = OmegaConf.create(PAPER)
    for key, value in changes.items():
        OmegaConf.update(node, key.replace("__", "."), value, force_add=True)
    return load_config(node)


# ------------------------------------------------------------------------------------------------ defaults


def test_class_defaults_are_the_papers():
    assert asdict(PruneOPDConfig(teacher=TeacherConfig(path="T"))) == PAPER


@pytest.fixture(scope="module")
def composed(compose):
    return compose("+recipe=prune_opd", "prune_opd.teacher.path=T")


def test_yaml_has_the_same_keys_and_values(composed):
    node = OmegaConf.to_container(composed.prune_opd, resolve=True)
    assert node == PAPER
    assert asdict(load_config(composed.prune_opd)) == PAPER


def test_loading_keeps_what_was_given():
    changed = load(
        topk=32, strategy="union", drift__w_drop=0.02, budget__max=4000, teacher__override_config={"a": 1}, dump_dir="d"
    )
    assert (changed.topk, changed.strategy, changed.dump_dir) == (32, "union", "d")
    assert (changed.drift.w_drop, changed.budget.max, changed.teacher.override_config) == (0.02, 4000, {"a": 1})
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
        ("actor_rollout_ref.rollout.agent.default_agent_loop", "prune_opd"),
        ("actor_rollout_ref.rollout.name", "vllm"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 1),
    ],
)
def test_recipe_sets_verls_keys(composed, key, value):
    assert OmegaConf.select(composed, key) == value


def test_command_line_beats_the_recipe(compose):
    config = compose("+recipe=prune_opd", "prune_opd.topk=32", "prune_opd.teacher.path=T", "algorithm.gamma=0.5")
    assert config.prune_opd.topk == 32
    assert config.algorithm.gamma == 0.5
    assert config.prune_opd.drift.threshold == 0.7


def test_teacher_takes_the_students_model_overrides(compose):
    override = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    config = compose("+recipe=prune_opd", "prune_opd.teacher.path=T", override)
    assert load_config(config.prune_opd).teacher.override_config == {"attn_implementation": "sdpa"}


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
    config = compose("+recipe=opd_fixed_length", "prune_opd.teacher.path=T", "prune_opd.budget.max=300")
    plain = compose("+recipe=opd", "prune_opd.teacher.path=T", "prune_opd.budget.max=300")
    assert config == plain


def test_fixed_length_must_be_given(compose):
    config = compose("+recipe=opd_fixed_length", "prune_opd.teacher.path=T")
    with pytest.raises(ValueError, match=r"^prune_opd\.budget\.max: "):
        load_config(config.prune_opd)


# ------------------------------------------------------------------------------------------------ budget


@pytest.mark.parametrize(
    ("response_length", "expected"), [(96, (96, 96, 96)), (4096, (1024, 1024, 4096)), (31744, (1024, 1024, 12288))]
)
def test_default_budget_fits_the_rollout(response_length, expected):
    budget = BudgetConfig().build(response_length)
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
    budget = BudgetConfig(**given).build(8192)
    assert (budget.limit, budget.min, budget.max) == expected


@pytest.mark.parametrize("length", [0, 400])
def test_a_budget_that_is_off_stays(length):
    budget = BudgetConfig(max=400, enable=False, patience=1).build(8192)
    for _ in range(3):
        budget.update([length])
    assert budget.limit == 400


def test_all_budget_keys_reach_the_budget():
    budget = BudgetConfig(step=7, hit_ratio=0.3, margin=11, patience=5).build(4096)
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
        BudgetConfig(**given).build(8192)


# ------------------------------------------------------------------------------------------------ refusals


REFUSED = [
    ("teacher.path", None, "folder or hub name"),
    ("teacher.path", "", "folder or hub name"),
    ("teacher.temperature", 0, "> 0"),
    ("teacher.temperature", -1.0, "> 0"),
    ("topk", 0, ">= 1"),
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
    ("drift.w_base", -0.5, ">= 0"),
    ("drift.w_base", float("inf"), ">= 0"),
    ("budget.init", 0, ">= 1"),
    ("budget.min", 0, ">= 1"),
    ("budget.max", -1, ">= 1"),
    ("budget.step", 0, ">= 1"),
    ("budget.hit_ratio", -0.1, "[0, 1]"),
    ("budget.hit_ratio", 10, "[0, 1]"),
    ("budget.margin", -1, ">= 0"),
    ("budget.patience", 0, ">= 1"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED])
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
    ("drift.w_base", 0),
    ("budget.hit_ratio", 0),
    ("budget.hit_ratio", 1),
    ("budget.margin", 0),
    ("budget.patience", 1),
    ("budget.step", 1),
    ("budget.min", 1),
    ("topk", 1),
]


@pytest.mark.parametrize(("key", "value"), EDGES)
def test_values_at_the_edge_are_allowed(key, value):
    assert OmegaConf.select(OmegaConf.structured(load(**{key.replace(".", "__"): value})), key) == value


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
        ("teacher.override_config", "sdpa", "str"),
        ("teacher", None, "teacher"),
        ("teacher.path", "${no.such.key}", "no.such.key"),
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


@pytest.mark.parametrize("key", ["topK", "drift.gamma", "budget.maximum", "teacher.name"])
def test_unknown_keys_are_refused(key):
    with pytest.raises(ValueError, match=rf"^prune_opd\.{key}: .*{key.split('.')[-1]}"):
        load(**{key.replace(".", "__"): 1})


# ------------------------------------------------------------------------------------------------ banner


def test_banner_tells_what_is_on():
    config = load(drift__w_drop=0.03, drift__threshold=0.6, budget__max=4000, topk=8, strategy="union")
    text = config.describe(config.budget.build(8192))
    weights, limit = "w_drop = 0.03, w_base = 0.5", "1024 to start, 1024 to 4000"
    for part in ("T (", "union, student_p, k = 8", "γ = 0.6", weights, limit):
        assert part in text


def test_banner_tells_what_is_off():
    config = load(drift__enable=False, budget__enable=False, drift__metric="teacher_top_p_accept")
    text = config.describe(config.budget.build(8192))
    for part in ("weights   off", "off: fixed at 8192 tokens", "teacher_top_p_accept, top_p = 0.95"):
        assert part in text
    assert "w_drop" not in text
