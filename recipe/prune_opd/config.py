"""Keys of ``prune_opd.*``: typed, documented under each field, defaults are the paper's.

The one place for a key: the yaml that Hydra reads and the tables of the documentation are made from
this file by ``docs/generate.py``. Invalid values cannot be built.
"""

from functools import cached_property
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from recipe.prune_opd.method.budget import BUDGETS, Budget
from recipe.prune_opd.method.drift import METRICS, DriftMetric
from recipe.prune_opd.method.gates import GATES, Gate, GateRule
from recipe.prune_opd.method.pruning import Rules
from recipe.prune_opd.method.reward import STRATEGIES, WEIGHTINGS

PAPER_MAX, PAPER_MIN, PAPER_INIT = 12288, 1024, 1024
SMALLEST_CHUNK, QUESTIONS = 64, 64
"""Of a gate whose chunk is not given: tokens, and the most questions about a response. A question
sends the whole sequence, so a token is sent half as often as a response asks."""

Engine = Literal["vllm", "sglang"]
ENGINES: tuple[str, ...] = get_args(Engine)
"""Whose servers can be followed and asked."""
Positive = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Seconds = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]


ELSEWHERE = "elsewhere"
"""Stands for a key that each recipe sets for itself."""


def recipe(default: Any, value: str) -> Any:
    """A field to which the recipes give another value than its default, a key of verl's mostly."""
    return Field(default, json_schema_extra={"recipe": value})


def require(condition: bool, key: str, found: Any, allowed: str) -> None:
    """Refuse a value in one sentence.

    Raises:
        ValueError: ``condition`` is false; names the key, what was found and what is allowed.
    """
    if not condition:
        raise ValueError(f"prune_opd.{key}: got {found!r}, allowed: {allowed}")


class Keys(BaseModel):
    """A group of keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # Hydra reads a folder named 7 as a number
    )

    def changed(self, **values: Any) -> Self:
        """The same with other values of some keys, checked anew."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**own | values)


class TeacherServerConfig(Keys):
    """The teacher as inference servers beside the trainer, where something needs it while responses
    are generated.

    They take devices of their own, ``replicas * tensor_model_parallel_size`` of them.
    """

    engine: str = recipe("vllm", "${actor_rollout_ref.rollout.name}")
    """What the servers run, ``vllm`` or ``sglang``."""
    replicas: Positive = 1
    """Servers; responses are shared out among them, each stays with one."""
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
    engine_kwargs: dict[str, Any] = {}
    """More arguments for the engine, as ``actor_rollout_ref.rollout.engine_kwargs.ENGINE``. They
    win over the keys above."""


class TeacherUrlConfig(Keys):
    """The teacher on inference servers that somebody else runs."""

    urls: list[str] = []
    """``http(s)://host:port`` of each server. All serve the same teacher."""
    api: Engine = "vllm"
    """``vllm``: ``vllm serve``, on its /v1/completions. ``sglang``: ``sglang.launch_server``, on
    its /generate."""
    model: str | None = None
    """Name under which they serve it. Default: ``teacher.path``."""
    api_key_env: str | None = None
    """Name of the environment variable with the API key, read where the trainer runs."""
    ca_file: str | None = None
    """File with certificates to trust beside the system's."""

    @field_validator("urls")
    @classmethod
    def _bare(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = urlsplit(url)
            bare = url == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc
            known = parts.scheme in ("http", "https") and parts.hostname and bare
            allowed = "http://host:port or https://host:port and nothing else"
            require(bool(known), "teacher.url.urls", url, allowed)
        return urls


class TeacherConfig(Keys):
    """The frozen model that scores responses.

    How the worker group holds it is verl's own:
    ``actor_rollout_ref.ref.fsdp_config.{model_dtype,param_offload}``,
    ``actor_rollout_ref.ref.log_prob_{micro_batch_size_per_gpu,use_dynamic_bsz,max_token_len_per_gpu}``.
    """

    path: str = Field("", validate_default=True, json_schema_extra={"recipe": None})
    """Required. Local folder or hub name of the teacher."""
    home: str = "worker_group"
    """Where it is. ``worker_group``: on the trainer's devices, as verl's reference model; scores
    any token. ``server``: on inference servers with devices of their own (``server.*``), which know
    their own top k and the sampled token, and score a response while others are still being
    generated; for strategies only_tch, intersection and sampled. ``url``: the same, on servers that
    somebody else runs (``url.*``)."""
    args: dict[str, Any] = {}
    """Parameters of a home of your own."""
    concurrency: Positive = 256
    """With servers: responses that are being scored at once, by all rollout workers together.
    Others wait their turn, so that a slow teacher does not pile up work."""
    deadline: Seconds = 600.0
    """With servers: seconds for an answer about a finished response. A gate has its own,
    ``gate.deadline``."""
    retries: Natural = 5
    """With servers: more questions about a response after one that failed or was not answered in
    time, 1, 2, 4, ... seconds later."""
    max_missing: Annotated[float, Ge(0), Lt(1)] = 0.01
    """With servers: share of a step's tokens that may lack the teacher's score. They are masked;
    above it the run stops, with a checkpoint."""
    temperature: Seconds = 1.0
    """Teacher logits are divided by it. The student's are divided by
    ``actor_rollout_ref.rollout.temperature``."""
    trust_remote_code: bool = False
    """As ``actor_rollout_ref.model.trust_remote_code``, for the teacher's model and tokenizer."""
    override_config: dict[str, Any] = recipe({}, "${actor_rollout_ref.model.override_config}")
    """As ``actor_rollout_ref.model.override_config``, for the teacher (``attn_implementation``,
    ...)."""
    server: TeacherServerConfig = TeacherServerConfig()
    """Its inference servers. Started with ``home=server``, or where the gate is on: then the
    teacher is in memory twice with ``home=worker_group``, once with ``home=server``."""
    url: TeacherUrlConfig = TeacherUrlConfig()
    """Servers that somebody else runs, with ``home=url``."""

    @field_validator("path", mode="before")
    @classmethod
    def _given(cls, path: Any) -> Any:
        require(bool(path), "teacher.path", path, "a folder or hub name of the teacher model")
        return path


class DriftConfig(Keys):
    """What counts as drift, and what it costs (METHOD: sections 1, 2)."""

    enable: bool = True
    """Multiply the reward by the reliability weight. False: events are measured, the loss is that
    of plain OPD."""
    metric: str = "overlap_ratio"
    """What counts as drift: ``overlap_ratio`` or ``teacher_top_p_accept``."""
    args: dict[str, Any] = {}
    """Parameters of a metric of your own."""
    threshold: Share = 0.7
    """γ: an overlap below it is an event. It depends on k: 0.7 asks for 12 of 16, or for 23 of
    32."""
    top_p: Share = 0.95
    """Nucleus of ``teacher_top_p_accept``: a sampled token outside it is an event."""
    w_drop: Annotated[float, Ge(0)] = 0.01
    """Weight lost per event: reliability reaches 0 at the ceil(1 / w_drop)-th. 0: never."""
    w_base: Annotated[float, Ge(0)] = 0.5
    """Weight added on every generated token. Not a floor: the weight runs from 1 + w_base down to
    w_base."""

    def build(self) -> DriftMetric:
        """The metric with its parameters.

        Raises:
            ValueError: see ``Registry.build``.
        """
        keys = self.model_dump(exclude={"enable", "metric", "args"})
        return METRICS.build(self.metric, self.args, "prune_opd.drift.args", keys)


class BudgetConfig(Keys):
    """How long a training response may become (METHOD: section 5). All lengths in tokens."""

    enable: bool = True
    """Move the limit after every batch. False: it stays at ``max``."""
    rule: str = "hits"
    """What moves it: ``hits``, the share of responses that stay reliable up to the limit."""
    args: dict[str, Any] = {}
    """Parameters of a rule of your own."""
    init: Positive | None = None
    """First limit. Default 1024, or ``max`` where that is smaller; the paper takes 2048 for a close
    teacher."""
    min: Positive | None = None
    """The limit never falls below it. Default 1024, or ``max`` where that is smaller."""
    max: Positive | None = recipe(None, ELSEWHERE)
    """The limit never rises above it, in baselines too. Default: the rollout's response length, at
    most 12288."""
    step: Positive = 100
    """Tokens by which the limit changes."""
    hit_ratio: Annotated[float, Ge(0), Le(1)] = 0.1
    """ρ: share of responses that must stay reliable up to the limit for it to grow."""
    margin: Natural = 100
    """Tokens before the limit from which a response counts as reaching it."""
    patience: Positive = 3
    """Batches in a row below ``hit_ratio`` until the limit shrinks."""

    def resolved(self, response_length: int) -> "BudgetConfig":
        """The same with its three lengths as numbers, for a rollout of ``response_length`` tokens.

        A default is lowered to fit; a value the user gave is never adjusted.

        Raises:
            ValueError: a given value does not fit.
        """
        rollout = f"the rollout's response length, {response_length} (data.max_response_length)"
        most = min(response_length, PAPER_MAX) if self.max is None else self.max
        require(most <= response_length, "budget.max", most, f"at most {rollout}")
        least = min(PAPER_MIN, most) if self.min is None else self.min
        require(least <= most, "budget.min", least, f"at most budget.max, {most}")
        init = max(least, min(PAPER_INIT, most)) if self.init is None else self.init
        bounds = f"from budget.min, {least}, to budget.max, {most}"
        require(least <= init <= most, "budget.init", init, bounds)
        return self.changed(init=init, min=least, max=most)

    @property
    def longest(self) -> int:
        """The largest limit; the lengths must be ``resolved``."""
        assert self.max is not None, "budget lengths are resolved at start"
        return self.max

    def build(self) -> Budget:
        """A budget at its start; its lengths must be ``resolved``.

        Raises:
            ValueError: see ``Registry.build``.
        """
        keys = self.model_dump(exclude={"enable", "rule", "args"})
        if not self.enable:
            keys |= {"init": self.max, "min": self.max}
        return BUDGETS.build(self.rule, self.args, "prune_opd.budget.args", keys)


class GateConfig(Keys):
    """Stopping a response while it is generated, once teacher and student have parted."""

    enable: bool = False
    """Start the teacher's servers and stop responses. Needs devices for ``teacher.server``."""
    kind: str = "cumulative"
    """The rule. ``cumulative``: reliability has reached 0 (``drift.w_drop``). ``windowed``: of the
    last ``window`` tokens a share above ``rate`` are events. ``consecutive``: ``run_length`` events
    in a row. ``relative``: the share of events in the last ``window`` tokens is more than
    ``increase`` above that in the first ``window``. ``never``: nothing is stopped; responses are
    scored while they grow, which hides the work of ``teacher.home=server``."""
    args: dict[str, Any] = {}
    """Parameters of a rule of your own."""
    min_tokens: Positive = 1
    """Tokens that a stopped response keeps in any case. Not ``budget.min``."""
    window: Positive = 128
    """Tokens; ``windowed`` and ``relative``."""
    rate: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Events per token; ``windowed``."""
    run_length: Positive = 16
    """Events; ``consecutive``."""
    increase: Annotated[float, Ge(0), Lt(1)] = 0.3
    """Events per token; ``relative``."""
    chunk: Positive | None = None
    """Tokens between two questions to the teacher. Small: stops sooner, asks more often. Default:
    64, doubled until a response at its limit asks at most 64 times: 128 for a limit above 4096, 256
    above 8192, 512 above 16384."""
    deadline: Seconds = 10.0
    """Seconds to wait for an answer. Past it the response goes on; the answer is waited for again
    at the next chunk."""
    retries: Natural = 2
    """Late, failed or useless answers a response bears. After one more it runs on to its limit
    without a gate."""

    def build(self, w_drop: float) -> GateRule:
        """The rule with its parameters.

        Raises:
            ValueError: see ``Registry.build``.
        """
        own = {"min_tokens", "window", "rate", "run_length", "increase"}
        keys = self.model_dump(include=own) | {"w_drop": w_drop}
        return GATES.build(self.kind, self.args, "prune_opd.gate.args", keys)

    def chunk_for(self, limit: float) -> int:
        """Tokens between two questions about a response of at most ``limit`` tokens."""
        if self.chunk is not None:
            return self.chunk
        chunk = SMALLEST_CHUNK
        while chunk * QUESTIONS < limit:
            chunk *= 2
        return chunk


class RecordsConfig(Keys):
    """What a run writes down beside verl's logs, for ``python -m recipe.prune_opd report``."""

    dir: str | None = recipe(None, "${trainer.default_local_dir}/records")
    """Folder, where a resumed run finds it again; null: no records."""
    every: Natural = 20
    """Steps from one look at single tokens to the next; the first step has one too. 0: none."""
    samples: Positive = 4
    """Responses that are kept token by token each time, from the least reliable to the most."""
    topk: Positive = 5
    """Candidates of each model kept per token, at most ``topk`` of the run."""

    def samples_at(self, step: int) -> bool:
        """Whether tokens of this step, counted from 1, are kept."""
        return self.every > 0 and (step == 1 or step % self.every == 0)


class PruneOPDConfig(Keys):
    """All of ``prune_opd.*``."""

    teacher: TeacherConfig
    topk: Positive = 16
    """k: candidates per position of each model; at most the smaller vocabulary."""
    strategy: str = "only_stu"
    """Which candidates are rewarded: ``only_stu``, ``only_tch``, ``intersection``, ``union``,
    ``union_intersection``, ``sampled``."""
    strategy_args: dict[str, Any] = {}
    """Parameters of a strategy of your own."""
    weighting: str = "student_p"
    """What weighs a candidate: ``student_p``, ``teacher_p``, ``none``. ``sampled`` ignores it."""
    weighting_args: dict[str, Any] = {}
    """Parameters of a weighting of your own."""
    loss_normaliser: Literal["generated", "reliable"] = "generated"
    """What the loss is divided by: ``generated`` tokens (the paper's), or the ``reliable`` ones
    among them (R > 0), whose number does not change when a response is stopped at R = 0."""
    dump_dir: str | None = None
    """Folder for the tensors behind every step (ids, log-probs, weights, advantages), one file per
    data-parallel rank, which all ranks of a sequence-parallel group share. Large."""
    drift: DriftConfig = DriftConfig()
    budget: BudgetConfig = BudgetConfig()
    gate: GateConfig = GateConfig()
    records: RecordsConfig = RecordsConfig()

    @model_validator(mode="after")
    def _buildable(self) -> "PruneOPDConfig":
        BUDGETS.find(self.budget.rule)  # built once its lengths are known
        rules, _ = self.rules, self.gate_rule
        if self.gate.enable:
            known = rules.metric.ranks_only or self.teacher.temperature == 1
            servers = "servers report probabilities at temperature 1"
            allowed = f"1 with gate.enable and drift.metric={self.drift.metric}: {servers}"
            require(known, "teacher.temperature", self.teacher.temperature, allowed)
            allowed = f"a metric of both top k alone with gate.enable, not of {rules.metric.needs}"
            require(not rules.metric.needs, "drift.metric", self.drift.metric, allowed)
        return self

    @cached_property
    def rules(self) -> Rules:
        """What ``prune`` goes by."""
        drift, key = self.drift, "prune_opd.weighting_args"
        weighting = WEIGHTINGS.build(self.weighting, self.weighting_args, key, {})
        key = "prune_opd.strategy_args"
        strategy = STRATEGIES.build(self.strategy, self.strategy_args, key, {})
        return Rules(drift.build(), drift.w_drop, drift.w_base, drift.enable, strategy, weighting)

    @cached_property
    def gate_rule(self) -> GateRule:
        """What stops a response."""
        return self.gate.build(self.drift.w_drop)

    def new_gate(self) -> Gate:
        """A gate for one response."""
        return Gate(self.gate_rule, self.gate.min_tokens)
