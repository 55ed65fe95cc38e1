"""The servers behind the gate: verl's configuration adjusted so that responses can be followed and
scored."""

import os
from pathlib import Path

from omegaconf import DictConfig, open_dict

from recipe.prune_opd.checks.files import local_path
from recipe.prune_opd.config import PruneOPDConfig, TeacherConfig
from verl_ext.rollout import register
from verl_ext.rollout.rows import RAW
from verl_ext.rollout.teacher_pool import TeacherPool
from verl_ext.rollout.url_teacher import UrlTeacher

VLLM_MAX_LOGPROBS = 20
"""vLLM's default of ``max_logprobs``."""


def follow_rollout(config: DictConfig, topk: int) -> None:
    """Have the rollout servers report the unprocessed top-k of what they generate."""
    rollout = config.actor_rollout_ref.rollout
    register(rollout.name)
    with open_dict(config):
        rollout.logprobs_mode = RAW
        engine = dict(rollout.engine_kwargs.get("vllm") or {})
        engine["max_logprobs"] = engine.get("max_logprobs") or max(topk, VLLM_MAX_LOGPROBS)
        rollout.engine_kwargs.vllm = engine


def url_teacher(teacher: TeacherConfig) -> UrlTeacher:
    """The teacher on servers that somebody else runs.

    Raises:
        ValueError: the environment has no such variable for the key, or there is no such file.
    """
    given, key = teacher.url, None
    if given.api_key_env:
        key = os.environ.get(given.api_key_env, "").strip()
        if not key:
            raise ValueError(
                "prune_opd.teacher.url.api_key_env: the environment has no variable"
                f" {given.api_key_env}, needed where the trainer runs"
            )
    certificates = None
    if given.ca_file:  # read here: the machines that ask may not have the file
        if not Path(given.ca_file).is_file():
            raise ValueError(
                f"prune_opd.teacher.url.ca_file: {given.ca_file} does not exist, allowed: a file in"
                " PEM format"
            )
        certificates = Path(given.ca_file).read_text()
    return UrlTeacher(given.urls, given.model or str(teacher.path), given.api, key, certificates)


def teacher_pool(config: DictConfig, prune_opd: PruneOPDConfig) -> TeacherPool:
    """The teacher's servers, as long as a training response may become."""
    server, rollout = prune_opd.teacher.server, config.actor_rollout_ref.rollout
    return TeacherPool(
        path=local_path(str(prune_opd.teacher.path)),
        engine=server.engine,
        topk=prune_opd.topk,
        max_prompt_length=rollout.prompt_length,
        max_response_length=prune_opd.budget.build(rollout.response_length).max,
        replicas=server.replicas,
        tensor_model_parallel_size=server.tensor_model_parallel_size,
        dtype=server.dtype,
        gpu_memory_utilization=server.gpu_memory_utilization,
        block_size=server.block_size,
        max_num_batched_tokens=server.max_num_batched_tokens,
        enforce_eager=server.enforce_eager,
        engine_kwargs=server.engine_kwargs,
    )
