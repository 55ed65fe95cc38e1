"""The gate changes of verl's configuration what it must and nothing else."""

import copy
from pathlib import Path
from types import SimpleNamespace

import certifi
import pytest
from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.replica import RolloutReplicaRegistry

from recipe.prune_opd.config import ENGINES, TeacherConfig, TeacherUrlConfig, read_config
from recipe.prune_opd.teacher.servers import follow_rollout, teacher_pool
from recipe.prune_opd.teacher.urls import url_teacher
from verl_ext.rollout.url_teacher import DIALECTS, UrlTeacher

GIVEN = {
    "prune_opd.teacher.path": "~/models/teacher/",
    "prune_opd.topk": 24,
    "prune_opd.budget.max": 700,
    "prune_opd.teacher.server.replicas": 3,
    "prune_opd.teacher.server.tensor_model_parallel_size": 2,
    "prune_opd.teacher.server.gpu_memory_utilization": 0.6,
    "prune_opd.teacher.server.block_size": 16,
    "prune_opd.teacher.server.max_num_batched_tokens": 4096,
    "prune_opd.teacher.server.enforce_eager": False,
    "prune_opd.teacher.server.engine_kwargs": {"swap_space": 1},
    "actor_rollout_ref.rollout.dtype": "float16",
    "data.max_prompt_length": 100,
    "data.max_response_length": 900,
}


@pytest.fixture(scope="module")
def composed(compose) -> DictConfig:
    return compose("+recipe=prune_opd", "prune_opd.teacher.path=T")


@pytest.fixture
def config(composed, monkeypatch) -> DictConfig:
    """The recipe's configuration, free to change, as is verl's registry."""
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    return copy.deepcopy(composed)


@pytest.mark.parametrize(("topk", "most"), [(16, 20), (20, 20), (32, 32)])
def test_the_rollout_reports_the_unprocessed_top_k(config, topk, most):
    follow_rollout(config, topk)
    rollout = config.actor_rollout_ref.rollout
    assert rollout.logprobs_mode == "raw_logprobs"
    assert rollout.engine_kwargs.vllm == {"max_logprobs": most}


def test_a_users_engine_arguments_win(config):
    given = {"max_logprobs": 100, "swap_space": 1}
    OmegaConf.update(config, "actor_rollout_ref.rollout.engine_kwargs.vllm", given, force_add=True)
    follow_rollout(config, 16)
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm == given


def test_nothing_else_of_the_configuration_is_changed(config, composed):
    follow_rollout(config, 16)
    for key in ("logprobs_mode", "engine_kwargs"):
        config.actor_rollout_ref.rollout[key] = composed.actor_rollout_ref.rollout[key]
    assert config == composed


@pytest.mark.parametrize("engine", ENGINES)
def test_verl_is_told_to_start_our_servers(config, monkeypatch, engine):
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", {})
    config.actor_rollout_ref.rollout.name = engine
    follow_rollout(config, 16)
    ((name, loader),) = RolloutReplicaRegistry._registry.items()
    assert (name, loader.__module__) == (engine, "verl_ext.rollout")


def test_the_teachers_pool_has_all_the_settings(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    for key, value in GIVEN.items():
        OmegaConf.update(config, key, value, force_add=True)
    pool = teacher_pool(config, read_config(config))
    assert vars(pool) == {
        "paths": {"default": "/home/user/models/teacher"},
        "engine": "vllm",
        "topk": 24,
        "max_prompt_length": 100,
        "max_response_length": 700,  # the largest limit, not what validation may generate
        "replicas": 3,
        "tensor_model_parallel_size": 2,
        "dtype": "float16",
        "gpu_memory_utilization": 0.6,
        "block_size": 16,
        "max_num_batched_tokens": 4096,
        "enforce_eager": False,
        "engine_kwargs": {"swap_space": 1},
        "wide": 0,
    }


@pytest.mark.parametrize(("wide", "most"), [(0, 24), (24, 24), (256, 256)])
def test_the_teachers_servers_may_be_asked_for_a_wide_top_k(config, wide, most):
    for key, value in GIVEN.items():
        OmegaConf.update(config, key, value, force_add=True)
    config.prune_opd.teacher.server.wide_topk = wide
    pool = teacher_pool(config, read_config(config))
    assert (pool.wide, pool._arguments()["max_logprobs"]) == (wide, most)


@pytest.mark.parametrize("engine", ENGINES)
def test_verl_takes_the_teachers_configuration(config, monkeypatch, engine):
    """Its keys, and checks, are those of verl's distillation."""
    seen = []
    config.prune_opd.teacher.server.engine = engine
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    monkeypatch.setattr(
        "verl_ext.rollout.teacher_pool.MultiTeacherModelManager", lambda **given: seen.append(given)
    )
    for key, value in GIVEN.items():
        OmegaConf.update(config, key, value, force_add=True)
    before = copy.deepcopy(config)
    teacher_pool(config, read_config(config)).start(config, "pool", 8).result()
    assert config == before, "distillation itself stays off"
    ((given),) = seen
    assert given["resource_pool"] == "pool"
    distillation = omega_conf_to_dataclass(given["config"].distillation)
    (teacher,) = distillation.teacher_models.values()
    assert (distillation.n_gpus_per_node, distillation.nnodes, teacher.world_size) == (6, 1, 6)
    inference = teacher.inference
    assert (inference.max_model_len, inference.tensor_model_parallel_size, inference.dtype) == (
        801,
        2,
        "float16",
    )
    assert (inference.enable_prefix_caching, inference.free_cache_engine) == (True, False)
    assert (inference.logprobs_mode, inference.temperature) == ("raw_logprobs", 1)
    arguments = {
        "vllm": {"block_size": 16, "max_logprobs": 24},
        "sglang": {"chunked_prefill_size": 4096},
    }[engine]
    assert inference.name == engine
    assert inference.engine_kwargs == {engine: arguments | {"swap_space": 1}}


def test_verl_takes_several_teachers_and_their_clients_keep_the_order(config, monkeypatch):
    """The order in which rows count them, which is not that of the configuration."""
    seen = []
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    monkeypatch.setattr(
        "verl_ext.rollout.teacher_pool.MultiTeacherModelManager", lambda **given: seen.append(given)
    )
    for key, value in GIVEN.items():
        OmegaConf.update(config, key, value, force_add=True)
    config.prune_opd.teacher.path = None
    config.prune_opd.teacher.models = {"math": "org/M", "code": "org/C"}
    pool = teacher_pool(config, read_config(config))
    pool.start(config, "pool", 12).result()
    distillation = omega_conf_to_dataclass(seen[0]["config"].distillation)
    assert (distillation.n_gpus_per_node, distillation.nnodes) == (12, 1)
    found = {
        name: (one.model_path, one.world_size) for name, one in distillation.teacher_models.items()
    }
    assert list(found.items()) == [("code", ("org/C", 6)), ("math", ("org/M", 6))]
    # verl's class has other defaults than its yaml: random weights.
    assert {one.inference.load_format for one in distillation.teacher_models.values()} == {"auto"}
    names = list(found)
    manager = SimpleNamespace(
        server_addresses={name: [f"{name} 1", f"{name} 2"] for name in names},
        server_handles={name: [name.upper(), name.title()] for name in names},
        load_balancer_handle={name: f"balancer of {name}" for name in names},
    )
    code, math = pool.clients(config, manager)
    assert code._servers == {"code 1": "CODE", "code 2": "Code"}
    assert math._servers == {"math 1": "MATH", "math 2": "Math"}
    assert math._load_balancer == "balancer of math"


# -------------------------------------------------------------------------------------- behind URLs


URLS, KEY = ["http://10.0.0.1:8000", "https://teacher.example"], "TEST_TEACHER_KEY"


def behind(**given: object) -> TeacherConfig:
    return TeacherConfig(
        path="org/teacher", home="url", url=TeacherUrlConfig(**{"urls": URLS} | given)
    )


def test_a_client_has_all_the_settings(monkeypatch, tmp_path):
    monkeypatch.setenv(KEY, "secret\n")
    authority = tmp_path / "ca.pem"
    authority.write_bytes(trusted := Path(certifi.where()).read_bytes())
    client = url_teacher(behind(model="M", api="sglang", api_key_env=KEY, ca_file=str(authority)))
    assert client == UrlTeacher(URLS, "M", "sglang", KEY, trusted.decode())
    assert "secret" not in repr(client) + str(client)


def test_certificates_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"prune_opd.teacher.url.ca_file: .*ca.pem does not exist"):
        url_teacher(behind(ca_file=str(tmp_path / "ca.pem")))


@pytest.mark.parametrize("model", [None, ""])
def test_servers_name_the_teacher_by_its_path_unless_told_otherwise(model):
    assert url_teacher(behind(model=model)) == UrlTeacher(URLS, "org/teacher", "vllm")


@pytest.mark.parametrize("api", ENGINES)
def test_every_api_has_a_dialect(api):
    assert url_teacher(behind(api=api)).dialect in DIALECTS


def test_without_a_name_no_variable_is_read(monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    assert url_teacher(behind()).api_key_env is None


@pytest.mark.parametrize("value", [None, ""])
def test_a_key_that_is_not_there_is_missed_in_one_sentence(monkeypatch, value):
    monkeypatch.delenv(KEY, raising=False)
    if value is not None:
        monkeypatch.setenv(KEY, value)
    with pytest.raises(
        ValueError, match=rf"^prune_opd\.teacher\.url\.api_key_env: .* {KEY}\b"
    ) as refused:
        url_teacher(behind(api_key_env=KEY))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["se\ncret", "secr\u00e9t", "sec\x00ret"[:3] + "\x7fret"])
def test_a_key_that_no_header_holds_is_refused_unseen(monkeypatch, key):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ValueError, match=rf"api_key_env: the variable {KEY} holds") as refused:
        url_teacher(behind(api_key_env=KEY))
    assert key not in str(refused.value)
    assert "\n" not in str(refused.value)
