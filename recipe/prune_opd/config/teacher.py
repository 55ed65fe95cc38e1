"""Keys of ``prune_opd.teacher``: the model, and where it is."""

import re
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from annotated_types import Ge, Lt
from pydantic import Field, ValidationInfo, field_validator, model_validator

from recipe.prune_opd.config.base import (
    Keys,
    Natural,
    Positive,
    Real,
    Seconds,
    Share,
    Temperature,
    recipe,
    require,
)
from verl_ext.texts import named

Engine = Literal["vllm", "sglang"]
ENGINES: tuple[str, ...] = get_args(Engine)
"""Engines whose servers can be followed and asked."""


class TeacherServerConfig(Keys):
    """The teacher as inference servers beside the trainer, where something needs it while responses
    are generated.

    They take devices of their own, ``replicas * tensor_model_parallel_size`` of them for each
    teacher.
    """

    engine: str = recipe("vllm", "${actor_rollout_ref.rollout.name}")
    """Engine of the servers, ``vllm`` or ``sglang``."""
    replicas: Positive = 1
    """Servers of a teacher; responses are shared out among them, each stays with one. Several
    teachers (``teacher.models``) have so many each."""
    tensor_model_parallel_size: Positive = 1
    """Devices of a server."""
    gpu_memory_utilization: Share = 0.85
    """Share of a device's memory for weights and prefix cache."""
    dtype: str = recipe("bfloat16", "${actor_rollout_ref.rollout.dtype}")
    """Dtype of the weights."""
    block_size: Positive = 16
    """Tokens per block of vLLM's prefix cache (SGLang's holds single tokens). A gate's chunk that
    is a multiple of it is scored without recomputing."""
    max_num_batched_tokens: Positive = 2048
    """Tokens a server runs through the model at once. vLLM may hold a row of logits of each,
    outside of the memory it has planned: 2048 rows of 152,000 float32 are 1.2 GB."""
    enforce_eager: bool = True
    """No CUDA graphs: scoring is prefill, which they help little."""
    wide_topk: Natural = 0
    """Most likely tokens among which a server looks for the student's candidates, such as 256. With
    it ``home=server`` serves every strategy; a candidate outside of them is given the smallest
    log-prob among them. 0: servers are not asked about the student's candidates."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the engine, as ``actor_rollout_ref.rollout.engine_kwargs.ENGINE``. They
    win over the keys above."""


class TeacherUrlConfig(Keys):
    """The teacher on inference servers that somebody else runs."""

    urls: list[str] = Field(default_factory=list)
    """``http(s)://host:port`` of each server. All serve the same teacher."""
    api: Engine = "vllm"
    """``vllm``: ``vllm serve``, on its /v1/completions. ``sglang``: ``sglang.launch_server``, on
    its /generate."""
    model: str | None = None
    """Name under which they serve it. Default: ``teacher.path``."""
    api_key_env: str | None = None
    """Name of the environment variable with the API key, needed on every node: who asks reads it
    there, and it is sent to the servers alone."""
    ca_file: str | None = None
    """File with certificates to trust beside the system's."""

    @field_validator("urls")
    @classmethod
    def _bare(cls, urls: list[str]) -> list[str]:
        places = [_place(url) for url in urls]
        twice = next((url for i, url in enumerate(urls) if places[i] in places[:i]), None)
        require(twice is None, "teacher.url.urls", twice, "each server once")
        return urls


PORTS = {"http": 80, "https": 443}


def _place(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a server's URL.

    Raises:
        ValueError: it is none, or has more than these.
    """
    allowed = "http://host:port or https://host:port and nothing else"
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:  # a bracket that is not closed, a port that is none
        require(False, "teacher.url.urls", url, allowed)
    bare = url == f"{scheme}://{parts.netloc}" and "@" not in parts.netloc and url.isprintable()
    require(bool(scheme in PORTS and host and bare), "teacher.url.urls", url, allowed)
    return scheme, str(host), PORTS[scheme] if port is None else port


ONLY = "default"
"""Name of a teacher that is the only one, which is verl's for its servers."""
NAME = re.compile(r"\w[\w./-]*")
"""Names of teachers: a part of logged names, and of those of verl's server processes."""
VERLS_OWN = "teacher_model"
"""Name that verl's configuration has for the only teacher, and drops where there are several."""


class TeacherConfig(Keys):
    """The frozen model that scores responses, or several of them.

    How the worker group holds it is verl's own, with FSDP
    ``actor_rollout_ref.ref.fsdp_config.{model_dtype,param_offload}``, with every engine
    ``actor_rollout_ref.ref.log_prob_{use_dynamic_bsz,max_token_len_per_gpu}``,
    ``actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu``.
    """

    path: str = Field("", json_schema_extra={"recipe": None})
    """Required, but with ``teacher.models``. Local folder or hub name of the teacher."""
    models: dict[str, str] = Field(default_factory=dict, json_schema_extra={"recipe": None})
    """Several teachers in place of ``teacher.path``: local folder or hub name of each by its name,
    ``{math: PATH, code: PATH}``. A training row names its own in the column ``teacher.key``."""
    key: str = "data_source"
    """With ``teacher.models``: column of the training data that holds the name of a row's
    teacher."""
    home: str = "worker_group"
    """Place where it is. ``worker_group``: on the trainer's devices, as verl's reference model;
    scores any token. ``lora_base``: the student without its LoRA adapter, so no second copy;
    ``path`` is the student's. ``server``: on inference servers with devices of their own
    (``server.*``), which know their own top k and the sampled token, and score a response while
    others are still being generated; for strategies only_tch, intersection and sampled, with
    ``server.wide_topk`` for all. ``url``: the same without ``wide_topk``, on servers that somebody
    else runs (``url.*``)."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of a home of your own."""
    concurrency: Positive = 256
    """Responses that the servers of a teacher score at once, for all rollout workers together.
    Others wait their turn, so that a slow teacher does not pile up work."""
    deadline: Seconds = 600.0
    """Seconds that servers have for an answer about a finished response. A gate has its own,
    ``gate.deadline``."""
    retries: Natural = 5
    """More questions to servers about a response after one that failed or was not answered in
    time, 1, 2, 4, ... seconds later, at most 60."""
    max_missing: Annotated[Real, Ge(0), Lt(1)] = 0.01
    """Share of a step's tokens that may lack the score of the teacher's servers. They are masked;
    above it the run stops, with a checkpoint."""
    temperature: Temperature = 1.0
    """Teacher logits are divided by it. The student's are divided by
    ``actor_rollout_ref.rollout.temperature``."""
    trust_remote_code: bool = False
    """Twin of ``actor_rollout_ref.model.trust_remote_code`` for the teacher's model and
    tokenizer."""
    override_config: dict[str, Any] = recipe({}, "${actor_rollout_ref.model.override_config}")
    """Twin of ``actor_rollout_ref.model.override_config`` for the teacher (``attn_implementation``,
    ...)."""
    server: TeacherServerConfig = TeacherServerConfig()
    """Its inference servers. Started with ``home=server``, or where the gate is on: then the
    teacher is in memory twice with ``home=worker_group``, once with ``home=server``."""
    url: TeacherUrlConfig = TeacherUrlConfig()
    """Servers that somebody else runs, with ``home=url``."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if isinstance(given, dict):
            path, several = given.get("path"), bool(given.get("models"))
            blank = not str(path or "").strip()
            allowed = "a folder or hub name of the teacher model, or several in teacher.models"
            require(several or not blank, "teacher.path", path, allowed)
            allowed = "null with teacher.models, which has the path of each"
            require(blank or not several, "teacher.path", path, allowed)
        return given

    @field_validator("path", "models", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        empty: dict[str, Any] = {"path": "", "models": {}}
        return empty[str(info.field_name)] if value is None else value

    @field_validator("models")
    @classmethod
    def _known(cls, models: dict[str, str]) -> dict[str, str]:
        for name, one in models.items():
            key = named("teacher", "models", name)
            require(bool(one.strip()), key, one, "a folder or hub name of the teacher model")
            allowed = f"names of letters, digits, _, -, . and /, and not {VERLS_OWN}"
            known = NAME.fullmatch(name) and name != VERLS_OWN
            require(bool(known), "teacher.models", name, allowed)
        alike = len({name.replace("/", "_") for name in models}) < len(models)
        allowed = "names that differ in more than / and _, which are one to verl's servers"
        require(not alike, "teacher.models", list(models), allowed)
        return models

    @property
    def paths(self) -> dict[str, str]:
        """Path of each teacher by its name, in the order in which rows count them, which is not
        that of the configuration: a resumed run must count alike."""
        return dict(sorted(self.models.items())) or {ONLY: self.path}

    def key_of(self, name: str) -> str:
        """Name of the key that holds the path of one of ``paths``, for messages."""
        parts = ("models", name) if self.models else ("path",)
        return named("prune_opd", "teacher", *parts)
