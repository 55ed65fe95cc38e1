"""Every verl key that cannot go with the method is refused, and all others are left alone."""

import re

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.settings import GATE_SETTINGS, SEMI_SETTINGS, SETTINGS
from recipe.prune_opd.training.preflight import check_values

# ----------------------------------------------------------------------------------------- settings


WRONG = {
    "trainer.use_v1": False,
    "algorithm.use_kl_in_reward": True,
    "algorithm.gamma": 0.99,
    "algorithm.lam": 0.95,
    "algorithm.use_pf_ppo": True,
    "algorithm.filter_groups.enable": True,
    "algorithm.rollout_correction.bypass_mode": True,
    "algorithm.rollout_correction.rollout_is": "token",
    "algorithm.rollout_correction.rollout_rs": "token",
    "trainer.resume_mode": "never",
    "critic.enable": True,
    "trainer.critic_warmup": 5,
    "distillation.enabled": True,
    "actor_rollout_ref.actor.strategy": "torchtitan",
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.entropy_coeff": 0.01,
    "actor_rollout_ref.actor.calculate_entropy": True,
    "actor_rollout_ref.actor.calculate_sum_pi_squared": True,
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "gspo",
    "actor_rollout_ref.actor.use_prefix_grouper": True,
    "actor_rollout_ref.model.use_fused_kernels": True,
    "actor_rollout_ref.actor.checkpoint.async_save": True,
    "actor_rollout_ref.rollout.name": "hf",
    "actor_rollout_ref.rollout.mode": "sync",
    "actor_rollout_ref.rollout.pipeline_model_parallel_size": 2,
}


def test_the_recipe_itself_is_allowed(config):
    assert check_values(config)[0].teacher.path == "T"


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_both_fsdp_engines_are_allowed(config, strategy):
    config.actor_rollout_ref.actor.strategy = strategy
    check_values(config)


def test_every_setting_has_a_case_here():
    assert [setting.key for setting in SETTINGS] == list(WRONG)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_wrong_settings_are_refused(config, setting):
    parent, _, name = setting.key.rpartition(".")
    assert name in OmegaConf.select(config, parent), "verl has no such key"
    OmegaConf.update(config, setting.key, WRONG[setting.key])
    with pytest.raises(ValueError, match="because") as refused:
        check_values(config)
    message = str(refused.value)
    found, allowed = WRONG[setting.key], setting.allowed[0]
    assert message.startswith(f"{setting.key}: got {found!r}, allowed with prune_opd: {allowed}")
    assert message.endswith(setting.why)


@pytest.mark.parametrize("setting", SEMI_SETTINGS, ids=lambda setting: setting.key)
def test_wrong_settings_are_refused_with_semi_opd_alone(config, setting):
    assert OmegaConf.select(config, setting.key) in setting.allowed
    OmegaConf.update(config, setting.key, True, force_add=True)
    check_values(config)
    config.prune_opd.semi.enable = True
    with pytest.raises(ValueError, match=r"allowed with prune_opd\.semi\.enable: False") as refused:
        check_values(config)
    assert str(refused.value).startswith(f"{setting.key}: got True")


# --------------------------------------------------------------------------------------------- gate


ENGINES = ("actor_rollout_ref.rollout.engine_kwargs.vllm", "prune_opd.teacher.server.engine_kwargs")
MOST_LOGPROBS = "-1 for all, or a whole number of at least prune_opd.topk, 16"


@pytest.mark.parametrize("key", ENGINES)
@pytest.mark.parametrize(
    ("argument", "found", "allowed"),
    [
        ("logprobs_mode", "processed_logprobs", "'raw_logprobs'"),
        ("max_logprobs", 15, MOST_LOGPROBS),
        ("max_logprobs", -5, MOST_LOGPROBS),
        ("max_logprobs", 16.5, MOST_LOGPROBS),
        ("incremental_streaming_output", True, "False"),
    ],
)
def test_arguments_of_an_engine_do_not_slip_past(gated, key, argument, found, allowed):
    OmegaConf.update(gated, key, {argument: found}, force_add=True)
    with pytest.raises(ValueError, match="allowed with") as refused:
        check_values(gated)
    assert (
        str(refused.value)
        == f"{key}.{argument}: got {found!r}, allowed with prune_opd.gate.enable: {allowed}"
    )
    gated.prune_opd.gate.enable = False
    check_values(gated)


@pytest.mark.parametrize("key", ENGINES)
@pytest.mark.parametrize(
    "arguments", [{"logprobs_mode": "raw_logprobs"}, {"max_logprobs": None}, {"max_logprobs": -1}]
)
def test_arguments_of_an_engine_that_do_no_harm(gated, key, arguments):
    OmegaConf.update(gated, key, arguments, force_add=True)
    check_values(gated)


def test_a_rule_of_the_budget_that_cannot_be_built_is_refused(config):
    """Before Ray starts, not when the trainer makes its budget."""
    config.prune_opd.budget.rule = "no.such.module:Rule"
    with pytest.raises(
        ValueError, match=r"^prune_opd\.budget\.rule: no\.such\.module:Rule cannot be"
    ):
        check_values(config)
    config.prune_opd.budget.rule = "hits"
    OmegaConf.update(config, "prune_opd.budget.args", {"speed": 2}, force_add=True)
    with pytest.raises(ValueError, match=r"^prune_opd\.budget\.args\.speed: hits has no such"):
        check_values(config)


NEVER = [
    ({"prune_opd.drift.w_drop": 0.004}, "kind: got cumulative, w_drop = 0.004, which holds at 250"),
    ({"prune_opd.gate.kind": "windowed", "prune_opd.gate.window": 201}, "holds at 201 tokens"),
    (
        {"prune_opd.gate.kind": "consecutive", "prune_opd.gate.run_length": 201},
        "kind: got consecutive, 201 events in a row, which holds at 201 tokens",
    ),
    ({"prune_opd.gate.kind": "relative", "prune_opd.gate.window": 101}, "holds at 202 tokens"),
    ({"prune_opd.gate.min_tokens": 200}, "min_tokens: got 200"),
]


@pytest.mark.parametrize(("settings", "said"), NEVER, ids=[said for _, said in NEVER])
def test_a_rule_that_can_stop_nothing_is_refused(gated, settings, said):
    gated.prune_opd.budget.max = 200
    for key, value in settings.items():
        OmegaConf.update(gated, key, value)
    with pytest.raises(ValueError, match=r"budget\.max, 200") as refused:
        check_values(gated)
    assert str(refused.value).startswith("prune_opd.gate.")
    assert said in str(refused.value)
    gated.prune_opd.budget.max = 400
    check_values(gated)


WRONG_WITH_A_GATE = {
    "actor_rollout_ref.rollout.name": "trtllm",
    "actor_rollout_ref.rollout.disaggregation.enabled": True,
}


@pytest.fixture
def gated(config) -> DictConfig:
    """The recipe's configuration with the gate on."""
    config.prune_opd.gate.enable = True
    config.prune_opd.teacher.server.engine = "vllm"  # not the rollout's, which a test changes
    return config


def test_the_gate_is_allowed(gated):
    assert check_values(gated)[0].gate.enable


def test_every_setting_of_the_gate_has_a_case_here():
    assert [setting.key for setting in GATE_SETTINGS] == list(WRONG_WITH_A_GATE)


@pytest.mark.parametrize("setting", GATE_SETTINGS, ids=lambda setting: setting.key)
def test_wrong_settings_are_refused_with_a_gate_alone(gated, setting):
    found = WRONG_WITH_A_GATE[setting.key]
    OmegaConf.update(gated, setting.key, found, force_add=True)
    with pytest.raises(ValueError, match="because") as refused:
        check_values(gated)
    message = str(refused.value)
    allowed = setting.allowed[0]
    assert message.startswith(
        f"{setting.key}: got {found!r}, allowed with prune_opd.gate.enable: {allowed}"
    )
    assert message.endswith(setting.why)
    gated.prune_opd.gate.enable = False
    check_values(gated)


@pytest.mark.parametrize("home", [False, True], ids=["gate", "home"])
@pytest.mark.parametrize(
    ("replicas", "parallel", "per_node", "allowed"),
    [
        (1, 1, 1, True),
        (2, 2, 8, True),
        (3, 1, 8, True),
        (2, 8, 8, True),
        (3, 4, 8, False),
        (3, 1, 2, False),
    ],
)
def test_the_teachers_servers_must_fit_the_nodes(
    gated, replicas, parallel, per_node, allowed, home
):
    if home:
        serve(gated)
        gated.prune_opd.gate.enable = False
    gated.prune_opd.teacher.server.replicas = replicas
    gated.prune_opd.teacher.server.tensor_model_parallel_size = parallel
    gated.trainer.n_gpus_per_node = per_node
    if allowed:
        check_values(gated)
    else:
        found = f"{replicas} replicas of {parallel} devices"
        with pytest.raises(
            ValueError, match=rf"^prune_opd\.teacher\.server: got {found}, allowed: .* {per_node}, "
        ):
            check_values(gated)
    gated.prune_opd.gate.enable, gated.prune_opd.teacher.home = False, "worker_group"
    check_values(gated)


def test_each_of_several_teachers_has_so_many_servers(gated):
    gated.prune_opd.teacher.path = None
    gated.prune_opd.teacher.models = {"math": "M", "code": "C"}
    gated.prune_opd.teacher.server.replicas = 2
    gated.trainer.n_gpus_per_node = 4
    check_values(gated)
    gated.prune_opd.teacher.server.replicas = 3
    found = "3 replicas of 1 devices for each of 2 teachers"
    with pytest.raises(ValueError, match=rf"^prune_opd\.teacher\.server: got {found}, allowed: "):
        check_values(gated)


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.7), ("top_p", 0.9), ("top_k", 50)])
def test_log_probs_of_two_distributions_are_not_compared(gated, key, value):
    rollout = gated.actor_rollout_ref.rollout
    rollout[key] = value
    rollout.calculate_log_probs = False
    check_values(gated)
    rollout.calculate_log_probs = True
    with pytest.raises(
        ValueError, match=r"^actor_rollout_ref\.rollout\.calculate_log_probs: got True"
    ) as refused:
        check_values(gated)
    assert key in str(refused.value)
    gated.prune_opd.gate.enable = False
    check_values(gated)


def test_log_probs_of_the_plain_distribution_may_be_compared(gated):
    gated.actor_rollout_ref.rollout.calculate_log_probs = True
    for top_k in (-1, 0):
        gated.actor_rollout_ref.rollout.top_k = top_k
        check_values(gated)


@pytest.mark.parametrize(("most", "allowed"), [(15, False), (16, True), (-1, True)])
def test_the_rollout_must_report_k_candidates(gated, most, allowed):
    OmegaConf.update(
        gated,
        "actor_rollout_ref.rollout.engine_kwargs.vllm",
        {"max_logprobs": most},
        force_add=True,
    )
    if allowed:
        check_values(gated)
    else:
        with pytest.raises(
            ValueError, match=r"max_logprobs: got 15, allowed with prune_opd\.gate\.enable: .* 16$"
        ):
            check_values(gated)


# ------------------------------------------------------------------ the student as the rollout says


@pytest.fixture
def told(gated) -> DictConfig:
    """A gate, and the student's part from the rollout."""
    gated.prune_opd.student = "rollout"
    return gated


def test_the_rollout_may_tell_the_students_part(told):
    typed, home = check_values(told)
    assert typed.student == "rollout"
    assert home.follows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune_opd.student": "both"}, "prune_opd.student: got 'both', allowed: "),
        (
            {"prune_opd.gate.enable": False},
            "prune_opd.student: got 'rollout', allowed: trainer where no servers are asked",
        ),
        (
            {"prune_opd.strategy": "union"},
            "prune_opd.student: got 'rollout', allowed: trainer with strategy=union",
        ),
        (
            {"actor_rollout_ref.rollout.temperature": 0.7},
            "actor_rollout_ref.rollout.temperature: got 0.7, allowed with"
            " prune_opd.student=rollout: 1",
        ),
        (
            {"actor_rollout_ref.rollout.top_k": 50},
            "actor_rollout_ref.rollout.top_k: got 50, allowed with prune_opd.student=rollout: -1",
        ),
        (
            {"actor_rollout_ref.rollout.name": "trtllm", "prune_opd.gate.enable": False}
            | {"prune_opd.teacher.home": "url", "prune_opd.strategy": "only_tch"},
            "actor_rollout_ref.rollout.name: got 'trtllm', allowed with prune_opd.student=rollout",
        ),
    ],
)
def test_where_the_rollout_cannot_tell_it_the_start_ends(told, settings, message):
    for key, value in settings.items():
        OmegaConf.update(told, key, value)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_values(told)


def test_a_cached_response_has_no_report_of_the_student(served):
    served.prune_opd.student = "rollout"
    check_values(served)
    served.prune_opd.semi.enable = True
    with pytest.raises(
        ValueError, match=r"^prune_opd\.student: got 'rollout', allowed: trainer with"
    ):
        check_values(served)


# ---------------------------------------------------------------------------------- teacher servers


def serve(config: DictConfig) -> None:
    """Have the teacher on servers."""
    config.prune_opd.teacher.home, config.prune_opd.strategy = "server", "intersection"


@pytest.fixture
def served(config) -> DictConfig:
    """The recipe's configuration with the teacher on servers, without a gate."""
    serve(config)
    config.prune_opd.teacher.server.engine = "vllm"  # not the rollout's, which a test changes
    return config


def test_a_teacher_on_servers_is_allowed(served):
    assert check_values(served)[0].teacher.home == "server"


def test_a_strategy_that_servers_cannot_serve_ends_the_start(served):
    served.prune_opd.strategy = "only_stu"
    with pytest.raises(
        ValueError, match=r"^prune_opd\.strategy: got 'only_stu', allowed: only_tch"
    ):
        check_values(served)


@pytest.mark.parametrize(
    ("argument", "found", "allowed"),
    [
        ("logprobs_mode", "processed_logprobs", "'raw_logprobs'"),
        ("max_logprobs", 15, MOST_LOGPROBS),
        ("max_logprobs", -5, MOST_LOGPROBS),
        ("max_logprobs", 16.5, MOST_LOGPROBS),
        ("incremental_streaming_output", True, "False"),
    ],
)
def test_arguments_of_the_teachers_engine_alone_matter_without_a_gate(
    served, argument, found, allowed
):
    rollout, teacher = ENGINES
    OmegaConf.update(served, rollout, {argument: found}, force_add=True)
    check_values(served)  # of the rollout nothing but tokens is wanted
    OmegaConf.update(served, teacher, {argument: found}, force_add=True)
    with pytest.raises(ValueError, match="allowed with") as refused:
        check_values(served)
    assert (
        str(refused.value)
        == f"{teacher}.{argument}: got {found!r}, allowed with prune_opd.teacher.home=server:"
        f" {allowed}"
    )


@pytest.mark.parametrize("setting", GATE_SETTINGS, ids=lambda setting: setting.key)
def test_what_a_gate_alone_needs_may_be_anything_on_servers(served, setting):
    OmegaConf.update(served, setting.key, WRONG_WITH_A_GATE[setting.key], force_add=True)
    check_values(served)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("gate.enable", True, "actor_rollout_ref.rollout.name"),
        ("teacher.home", "server", "prune_opd.teacher.server.engine"),
    ],
)
def test_the_engine_must_be_one_that_can_be_asked(config, key, value, named):
    """The teacher's is the rollout's, unless another is named."""
    serve(config)
    config.prune_opd.teacher.home = "worker_group"
    config.actor_rollout_ref.rollout.name = "trtllm"
    check_values(config)
    OmegaConf.update(config.prune_opd, key, value)
    with pytest.raises(ValueError, match=rf"^{named}: got 'trtllm', allowed.* vllm,? "):
        check_values(config)


@pytest.mark.parametrize(
    "key", ["log_prob_max_token_len_per_gpu", "log_prob_micro_batch_size_per_gpu"]
)
def test_without_a_teachers_pass_its_micro_batches_may_be_anything(served, key):
    ref = served.actor_rollout_ref.ref
    ref.log_prob_use_dynamic_bsz = key == "log_prob_max_token_len_per_gpu"
    ref[key] = 1 if ref.log_prob_use_dynamic_bsz else None
    check_values(served)
    served.prune_opd.teacher.home = "worker_group"
    with pytest.raises(ValueError, match=rf"^actor_rollout_ref\.ref\.{key}: got "):
        check_values(served)


def test_the_students_micro_batches_still_matter(served):
    served.actor_rollout_ref.actor.ppo_max_token_len_per_gpu = 1
    with pytest.raises(
        ValueError, match=r"^actor_rollout_ref\.actor\.ppo_max_token_len_per_gpu: got 1, "
    ):
        check_values(served)


# --------------------------------------------------------------------------------- node and folders


def test_a_configuration_without_the_recipe_is_refused(compose):
    with pytest.raises(ValueError, match=r"\+recipe=prune_opd"):
        check_values(compose())


@pytest.mark.parametrize("node", [3, "yes"])
def test_the_recipes_node_must_be_a_node(config, node):
    config.prune_opd = node
    with pytest.raises(ValueError, match=r"^prune_opd: "):
        check_values(config)


def test_the_budget_must_fit_the_rollout(config):
    config.data.max_response_length = 300
    check_values(config)
    config.prune_opd.budget.max = 301
    with pytest.raises(ValueError, match=r"prune_opd\.budget\.max: got 301, allowed: .*300"):
        check_values(config)


@pytest.mark.parametrize(("mode", "path"), [("resume_path", None), ("resume_path", "runs/one")])
def test_a_folder_to_resume_from_must_be_named(config, mode, path):
    config.trainer.resume_mode, config.trainer.resume_from_path = mode, path
    with pytest.raises(ValueError, match=rf"^trainer\.resume_from_path: got {path!r}, allowed"):
        check_values(config)
    config.trainer.resume_from_path = "runs/one/global_step_20"
    check_values(config)


@pytest.mark.parametrize("recipe", ["prune_opd_eval", "[opd,paper_validation]"])
@pytest.mark.parametrize(
    ("given", "said"), [(None, "no value"), ("data", "'data'"), ("./data", "'./data'")]
)
def test_the_benchmarks_folder_must_not_depend_on_where_the_command_was_typed(
    compose, monkeypatch, recipe, given, said
):
    # Of the submitting shell: the trainer's process has another.
    monkeypatch.setenv("DATA_DIR", "/elsewhere")
    overrides = [f"+recipe={recipe}", "prune_opd.teacher.path=T"]
    config = compose(*overrides, *([f"data.benchmarks={given}"] if given else []))
    with pytest.raises(
        ValueError, match=rf"^data\.benchmarks: got {said}, allowed: the absolute path"
    ):
        check_values(config)
    config = compose(*overrides, "data.benchmarks=/data")
    check_values(config)
    assert config.data.val_files[0] == "/data/amc23.parquet"
    # Then nothing needs the folder.
    check_values(compose(*overrides, "data.val_files=own.parquet"))
