"""What of verl's configuration the gate changes."""

import copy

import pytest
from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.replica import RolloutReplicaRegistry

from recipe.prune_opd.config import load_config
from recipe.prune_opd.servers import follow_rollout, teacher_pool

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


def test_verl_is_told_to_start_our_servers(config):
    before = RolloutReplicaRegistry._registry["vllm"]
    follow_rollout(config, 16)
    assert RolloutReplicaRegistry._registry["vllm"] is not before
    assert RolloutReplicaRegistry._registry["vllm"].__module__ == "verl_ext.rollout"


def test_the_teachers_pool_has_all_the_settings(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    for key, value in GIVEN.items():
        OmegaConf.update(config, key, value, force_add=True)
    pool = teacher_pool(config, load_config(config.prune_opd))
    assert vars(pool) == {
        "path": "/home/user/models/teacher",
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
    }


def test_verl_takes_the_teachers_configuration(config, monkeypatch):
    """Its keys, and checks, are those of verl's distillation."""
    seen = []
    monkeypatch.setattr("verl_ext.rollout.teacher_pool.MultiTeacherModelManager", lambda **given: seen.append(given))
    for key, value in GIVEN.items():
        OmegaConf.update(config, key, value, force_add=True)
    before = copy.deepcopy(config)
    teacher_pool(config, load_config(config.prune_opd)).start(config, "pool", 8)
    assert config == before, "distillation itself stays off"
    ((given),) = seen
    assert given["resource_pool"] == "pool"
    distillation = omega_conf_to_dataclass(given["config"].distillation)
    (teacher,) = distillation.teacher_models.values()
    assert (distillation.n_gpus_per_node, distillation.nnodes, teacher.world_size) == (6, 1, 6)
    inference = teacher.inference
    assert (inference.max_model_len, inference.tensor_model_parallel_size, inference.dtype) == (801, 2, "float16")
    assert (inference.enable_prefix_caching, inference.free_cache_engine) == (True, False)
    assert (inference.logprobs_mode, inference.temperature) == ("raw_logprobs", 1)
    assert inference.engine_kwargs["vllm"] == {"block_size": 16, "max_logprobs": 24, "swap_space": 1}
