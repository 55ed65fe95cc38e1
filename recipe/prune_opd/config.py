"""Keys of ``prune_opd.*``: typed, documented under each field, defaults are the paper's.

Invalid values cannot be built. ``conf/recipe/prune_opd_base.yaml`` beside this file shows the same
keys to Hydra.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from recipe.prune_opd.method.budget import ResponseBudget
from recipe.prune_opd.method.drift import DriftMetric, OverlapRatio, TeacherTopPAccept, spent_at
from recipe.prune_opd.method.gates import Consecutive, Cumulative, Gate, Never, Relative, Windowed
from recipe.prune_opd.method.pruning import Rules
from recipe.prune_opd.method.reward import SERVED, STRATEGIES, WEIGHTINGS

METRICS: dict[str, Callable[["DriftConfig"], DriftMetric]] = {
    "overlap_ratio": lambda drift: OverlapRatio(drift.threshold),
    "teacher_top_p_accept": lambda drift: TeacherTopPAccept(drift.top_p),
}
GATES = ("cumulative", "windowed", "consecutive", "relative", "never")
NORMALISERS = ("generated", "reliable")
HOMES = ("worker_group", "server", "url")
APIS = ENGINES = ("vllm", "sglang")
PAPER_MAX, PAPER_MIN, PAPER_INIT = 12288, 1024, 1024
SMALLEST_CHUNK, QUESTIONS = 64, 64
"""Of a gate whose chunk is not given: tokens, and the most questions about a response. A question
sends the whole sequence, so a token is sent half as often as a response asks."""


def require(condition: bool, key: str, found: Any, allowed: str) -> None:
    """Refuse a value in one sentence.

    Raises:
        ValueError: ``condition`` is false; names the key, what was found and what is allowed.
    """
    if not condition:
        raise ValueError(f"prune_opd.{key}: got {found!r}, allowed: {allowed}")


@dataclass
class TeacherServerConfig:
    """The teacher as inference servers beside the trainer, where something needs it while responses
    are generated.

    They take devices of their own, ``replicas * tensor_model_parallel_size`` of them.
    """

    engine: str = "vllm"
    """``vllm`` or ``sglang``. The recipe takes the rollout's,
    ``actor_rollout_ref.rollout.name``."""
    replicas: int = 1
    """Servers; responses are shared out among them."""
    tensor_model_parallel_size: int = 1
    """Devices of a server."""
    gpu_memory_utilization: float = 0.85
    """Share of a device's memory for weights and prefix cache, in (0, 1]."""
    dtype: str = "bfloat16"
    """Dtype of the weights. The recipe takes the rollout's, ``actor_rollout_ref.rollout.dtype``."""
    block_size: int = 16
    """Tokens per block of vLLM's prefix cache (SGLang's holds single tokens). A gate's chunk that
    is a multiple of it is scored without recomputing."""
    max_num_batched_tokens: int = 2048
    """Tokens a server runs through the model at once. Reporting log-probs costs it a row of logits
    for each."""
    enforce_eager: bool = True
    """No CUDA graphs: scoring is prefill, which they help little."""
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    """More arguments for the engine, as ``actor_rollout_ref.rollout.engine_kwargs.ENGINE``."""

    def __post_init__(self) -> None:
        for name in (
            "replicas",
            "tensor_model_parallel_size",
            "block_size",
            "max_num_batched_tokens",
        ):
            require(
                getattr(self, name) >= 1,
                f"teacher.server.{name}",
                getattr(self, name),
                "a whole number >= 1",
            )
        share = self.gpu_memory_utilization
        require(
            0 < share <= 1, "teacher.server.gpu_memory_utilization", share, "a number in (0, 1]"
        )


@dataclass
class TeacherUrlConfig:
    """The teacher on inference servers that somebody else runs."""

    urls: list[str] = field(default_factory=list)
    """``http(s)://host:port`` of each server. All serve the same teacher."""
    api: str = "vllm"
    """``vllm``: ``vllm serve``, on its /v1/completions. ``sglang``: ``sglang.launch_server``, on
    its /generate."""
    model: str | None = None
    """Name under which they serve it. Default: ``teacher.path``."""
    api_key_env: str | None = None
    """Name of the environment variable with the API key, read where the trainer runs."""
    ca_file: str | None = None
    """File with certificates to trust beside the system's."""

    def __post_init__(self) -> None:
        require(self.api in APIS, "teacher.url.api", self.api, ", ".join(APIS))
        for url in self.urls:
            parts = urlsplit(url)
            bare = (
                parts.hostname
                and url == f"{parts.scheme}://{parts.netloc}"
                and "@" not in parts.netloc
            )
            known = parts.scheme in ("http", "https") and bare
            require(
                bool(known),
                "teacher.url.urls",
                url,
                "http://host:port or https://host:port and nothing else",
            )


@dataclass
class TeacherConfig:
    """The frozen model that scores responses.

    How the worker group holds it is verl's own:
    ``actor_rollout_ref.ref.fsdp_config.{model_dtype,param_offload}``,
    ``actor_rollout_ref.ref.log_prob_{micro_batch_size_per_gpu,use_dynamic_bsz,max_token_len_per_gpu}``.
    """

    path: str | None = None
    """Required. Local folder or hub name of the teacher."""
    home: str = "worker_group"
    """Where it is. ``worker_group``: on the trainer's devices, as verl's reference model; scores
    any token. ``server``: on inference servers with devices of their own (``server.*``), which know
    their own top k and the sampled token, and score a response while others are still being
    generated; for strategies only_tch, intersection and sampled. ``url``: the same, on servers that
    somebody else runs (``url.*``)."""
    concurrency: int = 256
    """With servers: responses that are being scored at once, by all rollout workers together.
    Others wait their turn, so that a slow teacher does not pile up work."""
    deadline: float = 600.0
    """With servers: seconds for an answer about a finished response. A gate has its own,
    ``gate.deadline``."""
    retries: int = 5
    """With servers: more questions about a response after one that failed or was not answered in
    time, 1, 2, 4, ... seconds later."""
    max_missing: float = 0.01
    """With servers: share of a step's tokens in [0, 1) that may lack the teacher's score. They are
    masked; above it the run stops, with a checkpoint."""
    temperature: float = 1.0
    """Teacher logits are divided by it. The student's are divided by
    ``actor_rollout_ref.rollout.temperature``."""
    trust_remote_code: bool = False
    """As ``actor_rollout_ref.model.trust_remote_code``, for the teacher."""
    override_config: dict[str, Any] = field(default_factory=dict)
    """As ``actor_rollout_ref.model.override_config``, for the teacher (``attn_implementation``,
    ...)."""
    server: TeacherServerConfig = field(default_factory=TeacherServerConfig)
    """Its inference servers. Started with ``home=server``, or where the gate is on: then the
    teacher is in memory twice with ``home=worker_group``, once with ``home=server``."""
    url: TeacherUrlConfig = field(default_factory=TeacherUrlConfig)
    """Servers that somebody else runs, with ``home=url``."""

    def __post_init__(self) -> None:
        require(
            bool(self.path), "teacher.path", self.path, "a folder or hub name of the teacher model"
        )
        require(
            0 < self.temperature < math.inf, "teacher.temperature", self.temperature, "a number > 0"
        )
        require(self.home in HOMES, "teacher.home", self.home, ", ".join(HOMES))
        require(
            0 <= self.max_missing < 1, "teacher.max_missing", self.max_missing, "a number in [0, 1)"
        )
        require(
            self.concurrency >= 1, "teacher.concurrency", self.concurrency, "a whole number >= 1"
        )
        require(0 < self.deadline < math.inf, "teacher.deadline", self.deadline, "seconds > 0")
        require(self.retries >= 0, "teacher.retries", self.retries, "a whole number >= 0")
        missing = self.home == "url" and not self.url.urls
        require(
            not missing,
            "teacher.url.urls",
            [],
            "at least one http://host:port with teacher.home=url",
        )

    @property
    def serves(self) -> bool:
        """Whether it scores each response as soon as that is complete, and knows no more than its
        own top k."""
        return self.home != "worker_group"


@dataclass
class DriftConfig:
    """What counts as drift, and what it costs (METHOD: sections 3.1, 3.2)."""

    enable: bool = True
    """Multiply the reward by the reliability weight. False: events are measured, the loss is that
    of plain OPD."""
    metric: str = "overlap_ratio"
    """``overlap_ratio`` or ``teacher_top_p_accept``."""
    threshold: float = 0.7
    """γ in (0, 1]: an overlap below it is an event. It depends on k: 0.7 asks for 12 of 16, or for
    23 of 32."""
    top_p: float = 0.95
    """Nucleus of ``teacher_top_p_accept`` in (0, 1]: a sampled token outside it is an event."""
    w_drop: float = 0.01
    """Weight lost per event: reliability reaches 0 at the ceil(1 / w_drop)-th."""
    w_base: float = 0.5
    """Weight added on every generated token. Not a floor: the weight runs from 1 + w_base down to
    w_base."""

    def __post_init__(self) -> None:
        require(self.metric in METRICS, "drift.metric", self.metric, ", ".join(METRICS))
        require(0 < self.threshold <= 1, "drift.threshold", self.threshold, "a number in (0, 1]")
        require(0 < self.top_p <= 1, "drift.top_p", self.top_p, "a number in (0, 1]")
        require(0 <= self.w_drop < math.inf, "drift.w_drop", self.w_drop, "a number >= 0")
        require(0 <= self.w_base < math.inf, "drift.w_base", self.w_base, "a number >= 0")

    def build(self) -> DriftMetric:
        """The metric with its bound."""
        return METRICS[self.metric](self)


@dataclass
class BudgetConfig:
    """How long a training response may become (METHOD: section 3.4). All lengths in tokens."""

    enable: bool = True
    """Move the limit after every batch. False: it stays at ``max``."""
    init: int | None = None
    """First limit. Default 1024, or ``max`` where that is smaller; the paper takes 2048 for a close
    teacher."""
    min: int | None = None
    """The limit never falls below it. Default 1024, or ``max`` where that is smaller."""
    max: int | None = None
    """The limit never rises above it, in baselines too. Default: the rollout's response length, at
    most 12288."""
    step: int = 100
    """Change of the limit."""
    hit_ratio: float = 0.1
    """ρ in [0, 1]: share of responses that must stay reliable up to the limit for it to grow."""
    margin: int = 100
    """How far before the limit a response already counts as reaching it."""
    patience: int = 3
    """Batches in a row below ``hit_ratio`` until the limit shrinks."""

    def __post_init__(self) -> None:
        for name in ("init", "min", "max"):
            value = getattr(self, name)
            require(
                value is None or value >= 1, f"budget.{name}", value, "a whole number >= 1, or null"
            )
        require(self.step >= 1, "budget.step", self.step, "a whole number >= 1")
        require(0 <= self.hit_ratio <= 1, "budget.hit_ratio", self.hit_ratio, "a number in [0, 1]")
        require(self.margin >= 0, "budget.margin", self.margin, "a whole number >= 0")
        require(self.patience >= 1, "budget.patience", self.patience, "a whole number >= 1")

    def build(self, response_length: int) -> ResponseBudget:
        """The budget object for a rollout that can generate ``response_length`` tokens.

        A default is lowered to fit; a value the user gave is never adjusted.

        Raises:
            ValueError: a given value does not fit.
        """
        most = min(response_length, PAPER_MAX) if self.max is None else self.max
        require(
            most <= response_length,
            "budget.max",
            most,
            f"at most the rollout's response length, {response_length} (data.max_response_length)",
        )
        least = min(PAPER_MIN, most) if self.min is None else self.min
        require(least <= most, "budget.min", least, f"at most budget.max, {most}")
        init = max(least, min(PAPER_INIT, most)) if self.init is None else self.init
        require(
            least <= init <= most,
            "budget.init",
            init,
            f"from budget.min, {least}, to budget.max, {most}",
        )
        if not self.enable:
            least = init = most
        return ResponseBudget(
            init, least, most, self.step, self.hit_ratio, self.margin, self.patience
        )


@dataclass
class GateConfig:
    """Stopping a response while it is generated, once teacher and student have parted."""

    enable: bool = False
    """Needs devices for ``teacher.server``."""
    kind: str = "cumulative"
    """``cumulative``: reliability has reached 0 (``drift.w_drop``). ``windowed``: of the last
    ``window`` tokens a share above ``rate`` are events. ``consecutive``: ``run_length`` events in a
    row. ``relative``: the share of events in the last ``window`` tokens is more than ``increase``
    above that in the first ``window``. ``never``: nothing is stopped; responses are scored while
    they grow, which hides the work of ``teacher.home=server``."""
    min_tokens: int = 1
    """Tokens that a stopped response keeps in any case. Not ``budget.min``."""
    window: int = 128
    """Tokens; ``windowed`` and ``relative``."""
    rate: float = 0.5
    """Events per token in [0, 1); ``windowed``."""
    run_length: int = 16
    """Events; ``consecutive``."""
    increase: float = 0.3
    """Events per token in [0, 1); ``relative``."""
    chunk: int | None = None
    """Tokens between two questions to the teacher. Small: stops sooner, asks more often. Default:
    64, doubled until a response at its limit asks at most 64 times: 128 for a limit above 4096, 256
    above 8192, 512 above 16384."""
    deadline: float = 10.0
    """Seconds to wait for an answer. Past it the response goes on; the answer is waited for again
    at the next chunk."""
    retries: int = 2
    """Late, failed or useless answers a response bears. After one more it runs on to its limit
    without a gate."""

    def __post_init__(self) -> None:
        require(self.kind in GATES, "gate.kind", self.kind, ", ".join(GATES))
        for name in ("min_tokens", "window", "run_length"):
            require(
                getattr(self, name) >= 1, f"gate.{name}", getattr(self, name), "a whole number >= 1"
            )
        require(
            self.chunk is None or self.chunk >= 1,
            "gate.chunk",
            self.chunk,
            "a whole number >= 1, or null",
        )
        for name in ("rate", "increase"):
            require(
                0 <= getattr(self, name) < 1,
                f"gate.{name}",
                getattr(self, name),
                "a number in [0, 1)",
            )
        require(0 < self.deadline < math.inf, "gate.deadline", self.deadline, "seconds > 0")
        require(self.retries >= 0, "gate.retries", self.retries, "a whole number >= 0")

    def build(self, w_drop: float) -> Gate:
        """A gate for one response."""
        match self.kind:
            case "cumulative":
                return Cumulative(w_drop, self.min_tokens)
            case "windowed":
                return Windowed(self.window, self.rate, self.min_tokens)
            case "consecutive":
                return Consecutive(self.run_length, self.min_tokens)
            case "relative":
                return Relative(self.window, self.increase, self.min_tokens)
            case _:
                return Never(self.min_tokens)

    def chunk_for(self, limit: float) -> int:
        """Tokens between two questions about a response of at most ``limit`` tokens."""
        if self.chunk is not None:
            return self.chunk
        chunk = SMALLEST_CHUNK
        while chunk * QUESTIONS < limit:
            chunk *= 2
        return chunk

    def warning(self, limit: int) -> str | None:
        """What to say at start of a given chunk that is small for responses of at most ``limit``
        tokens.

        Small: more than twice the questions that a chosen one would ask at most.
        """
        asked = limit // self.chunk_for(limit)
        if asked <= 2 * QUESTIONS:
            return None
        return (
            f"prune_opd.gate.chunk: {self.chunk} is small for responses of up to {limit} tokens:"
            f" one asks its teacher {asked} times, each time sends all tokens so far, and a token"
            f" is sent {asked // 2} times on average; null would take"
            f" {replace(self, chunk=None).chunk_for(limit)}"
        )

    def check_reach(self, w_drop: float, longest: int) -> None:
        """Refuse a rule that could stop nothing.

        Raises:
            ValueError: the rule needs more than ``longest`` tokens to hold.
        """
        if self.kind == "never":
            return
        needed = {
            "cumulative": ("drift.w_drop", w_drop, spent_at(w_drop)),
            "windowed": ("gate.window", self.window, self.window),
            "consecutive": ("gate.run_length", self.run_length, self.run_length),
            "relative": ("gate.window", self.window, 2 * self.window),
        }
        allowed = f"a value with which {self.kind} can hold within budget.max, {longest} tokens"
        key, found, tokens = needed[self.kind]
        require(tokens <= longest, key, found, allowed)
        require(
            self.min_tokens < longest,
            "gate.min_tokens",
            self.min_tokens,
            f"less than budget.max, {longest}",
        )

    def describe(self, w_drop: float, budget: ResponseBudget) -> str:
        """The rule in force, for the banner."""
        rule = {
            "cumulative": f"w_drop = {w_drop}",
            "windowed": f"above {self.rate} events per token over {self.window} tokens",
            "consecutive": f"{self.run_length} events in a row",
            "relative": f"{self.increase} events per token above the first {self.window} tokens",
            "never": "stops nothing",
        }
        first, last = self.chunk_for(budget.limit), self.chunk_for(budget.max)
        grows = f", {last} at a limit of {budget.max}" if last > first else ""
        return f"{self.kind}, {rule[self.kind]}, every {first} tokens{grows}"


@dataclass
class RecordsConfig:
    """What a run writes down beside verl's logs, for ``python -m recipe.prune_opd report``."""

    dir: str | None = None
    """Folder. The recipe's is ``trainer.default_local_dir``/records, where a resumed run finds it
    again; null: no records."""
    every: int = 20
    """Steps from one look at single tokens to the next; the first step has one too. 0: none."""
    samples: int = 4
    """Responses that are kept token by token each time, from the least reliable to the most."""
    topk: int = 5
    """Candidates of each model kept per token, at most ``topk`` of the run."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "records.every", self.every, "a whole number >= 0")
        for name in ("samples", "topk"):
            require(
                getattr(self, name) >= 1,
                f"records.{name}",
                getattr(self, name),
                "a whole number >= 1",
            )

    def samples_at(self, step: int) -> bool:
        """Whether tokens of this step, counted from 1, are kept."""
        return self.every > 0 and (step == 1 or step % self.every == 0)


@dataclass
class PruneOPDConfig:
    """All of ``prune_opd.*``."""

    teacher: TeacherConfig
    drift: DriftConfig = field(default_factory=DriftConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    records: RecordsConfig = field(default_factory=RecordsConfig)
    topk: int = 16
    """k: candidates per position of each model."""
    strategy: str = "only_stu"
    """Which candidates are rewarded: only_stu, only_tch, intersection, union, union_intersection,
    sampled."""
    weighting: str = "student_p"
    """What weighs a candidate: student_p, teacher_p, none."""
    loss_normaliser: str = "generated"
    """What the loss is divided by: ``generated`` tokens (the paper's), or the ``reliable`` ones
    among them (R > 0), whose number does not change when a response is stopped at R = 0."""
    dump_dir: str | None = None
    """Folder for the tensors behind every step (ids, log-probs, weights, advantages), one file per
    data-parallel rank, which all ranks of a sequence-parallel group share. Large."""

    def __post_init__(self) -> None:
        require(self.topk >= 1, "topk", self.topk, "a whole number >= 1")
        require(self.strategy in STRATEGIES, "strategy", self.strategy, ", ".join(STRATEGIES))
        require(self.weighting in WEIGHTINGS, "weighting", self.weighting, ", ".join(WEIGHTINGS))
        require(
            self.loss_normaliser in NORMALISERS,
            "loss_normaliser",
            self.loss_normaliser,
            ", ".join(NORMALISERS),
        )
        if self.teacher.serves:
            self._check_home()
        if self.starts_servers:
            self._check_servers()
        if self.gate.enable:
            self._check_gate()

    @property
    def starts_servers(self) -> bool:
        """Whether the run has teacher servers of its own."""
        return self.gate.enable or self.teacher.home == "server"

    @property
    def needs(self) -> tuple[str, ...]:
        """Parts of ``Scores`` beyond both top k that the strategy reads."""
        return STRATEGIES[self.strategy].needs

    @property
    def rules(self) -> Rules:
        """What ``prune`` goes by."""
        drift = self.drift
        return Rules(
            drift.build(), drift.w_drop, drift.w_base, drift.enable, self.strategy, self.weighting
        )

    @property
    def asks_servers(self) -> bool:
        """Whether teacher servers are asked about responses, growing or finished."""
        return self.gate.enable or self.teacher.serves

    def _check_home(self) -> None:
        home = f"teacher.home={self.teacher.home}"
        require(
            self.strategy in SERVED,
            "strategy",
            self.strategy,
            f"{', '.join(SERVED)} with {home}, which cannot score the student's candidates",
        )
        require(
            self.teacher.temperature == 1,
            "teacher.temperature",
            self.teacher.temperature,
            f"1 with {home}: servers report probabilities at temperature 1",
        )
        ungated = self.teacher.home == "server" or not self.gate.enable
        require(
            ungated,
            "gate.enable",
            True,
            f"false with {home}: a gate needs servers that the run has started",
        )

    def _check_servers(self) -> None:
        engine = self.teacher.server.engine
        require(engine in ENGINES, "teacher.server.engine", engine, ", ".join(ENGINES))
        require(
            not self.teacher.trust_remote_code,
            "teacher.trust_remote_code",
            self.teacher.trust_remote_code,
            "false with gate.enable or teacher.home=server: verl starts teacher servers without it",
        )

    def _check_gate(self) -> None:
        drift, teacher = self.drift, self.teacher
        endless = self.gate.kind == "cumulative" and drift.w_drop == 0
        require(
            not endless,
            "drift.w_drop",
            drift.w_drop,
            "a number > 0 with gate.kind=cumulative, which waits for R = 0",
        )
        require(
            drift.metric == "overlap_ratio" or teacher.temperature == 1,
            "teacher.temperature",
            teacher.temperature,
            f"1 with gate.enable and drift.metric={drift.metric}: servers report probabilities at"
            " temperature 1",
        )

    def describe(self, budget: ResponseBudget) -> str:
        """What is on, for the banner at start."""
        drift, lines = self.drift, ["Prune-OPD"]
        event = (
            f"γ = {drift.threshold}"
            if drift.metric == "overlap_ratio"
            else f"top_p = {drift.top_p}"
        )
        weights = f"w_drop = {drift.w_drop}, w_base = {drift.w_base}"
        limit = f"{budget.limit} to start, {budget.min} to {budget.max}, step {budget.step}"
        homes = self.teacher.home.replace("_", " ")
        if self.gate.enable and self.teacher.home == "worker_group":
            homes += " and, for the gate, servers"
        lines.append(
            f"  teacher   {self.teacher.path} ({homes}, temperature {self.teacher.temperature})"
        )
        lines.append(f"  reward    {self.strategy}, {self.weighting}, k = {self.topk}")
        lines.append(f"  drift     {drift.metric}, {event}")
        lines.append(f"  weights   {weights if drift.enable else 'off: plain OPD'}")
        lines.append(
            f"  budget    {limit if self.budget.enable else f'off: fixed at {budget.max} tokens'}"
        )
        off = "off: responses end by themselves or at the limit"
        gate = self.gate.describe(drift.w_drop, budget) if self.gate.enable else off
        lines.append(f"  gate      {gate}")
        return "\n".join(lines)


def load_config(node: DictConfig) -> PruneOPDConfig:
    """Typed ``prune_opd.*`` out of the composed configuration.

    Args:
        node: the node ``prune_opd``.

    Raises:
        ValueError: a value is of the wrong type or outside what is allowed; names the key.
    """
    if not isinstance(node, DictConfig):
        raise ValueError(
            f"prune_opd: got {node!r}, allowed: the keys that +recipe=prune_opd brings"
        )
    for group in ("teacher", "teacher.server", "teacher.url", "drift", "budget", "gate", "records"):
        found = OmegaConf.select(node, group, default=DictConfig({}))
        require(isinstance(found, DictConfig), group, found, "a group of keys")
    try:
        given = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PruneOPDConfig), given))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = ".".join(
            part
            for part in ("prune_opd", str(error.full_key or "").removeprefix("prune_opd."))
            if part
        )
        reason = (
            "no value was given"
            if isinstance(error, MissingMandatoryValue)
            else str(error.msg).splitlines()[0]
        )
        raise ValueError(f"{key}: {reason}") from error
