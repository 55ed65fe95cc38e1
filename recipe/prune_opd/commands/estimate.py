"""Tokens, FLOPs, memory and time of on-policy distillation, before a GPU is touched.

Give it the arguments of the training command you have in mind:

    python -m recipe.prune_opd estimate +recipe=prune_opd \\
        actor_rollout_ref.model.path=STUDENT prune_opd.teacher.path=TEACHER \\
        data.max_response_length=31744 prune_opd.budget.max=12288 \\
        data.train_batch_size=64 actor_rollout_ref.rollout.n=4 trainer.n_gpus_per_node=8 --steps 203

It reads the two model configurations (a local folder or a hub name; no weights) and compares plain OPD, OPD under a
short fixed limit, Prune-OPD, and Prune-OPD with the in-flight gate. Every number that is not in the configuration is
an option below. What you do not give is assumed, and listed as such: give what you have measured.
docs/estimate.md has the formulas and how far off they are.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe.prune_opd.analysis import costs
from recipe.prune_opd.check import check_settings
from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.reward import needs_student_on_teacher
from verl_ext.topk import ROWS_AT_A_TIME

GB, RECIPE = costs.GB, "+recipe=prune_opd"
GUESSES: dict[str, tuple[float, str]] = {
    "steps": (203, "training steps; the paper's number, unless trainer.total_training_steps is set"),
    "prompt_length": (200, "mean tokens of a prompt"),
    "length": (7200, "mean tokens of a response that no limit cuts; fits the public run"),
    "spread": (0.6, "standard deviation of the logarithm of that length; fits the public run"),
    "gate_saving": (0.23, "share of Prune-OPD's tokens that come after R = 0; measured on the public run"),
    "mfu": (0.17, "share of --peak-tflops that scoring and update reach; fits the public run"),
    "peak_tflops": (989, "dense bf16 TFLOPS of a GPU; an H100's"),
    "bandwidth": (2680, "GB/s at which decoding reads memory; 80 % of an H100's"),
    "token_overhead": (2.6, "milliseconds of a decoding step besides reading memory; fits the public run"),
    "step_overhead": (9.7, "seconds of a step that depend on no length; fits the public run"),
    "gpu_memory": (80, "GB of a GPU"),
}
"""Option -> its value where nobody gives one, and what it is. "Fits": see docs/estimate.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("overrides", nargs="+", metavar="CONFIG", help="arguments of verl.trainer.main_ppo, as typed")
    for name, (value, meaning) in GUESSES.items():
        flag = "--" + name.replace("_", "-")
        help_ = f"{meaning} (assumed: {value:g})".replace("%", "%%")  # argparse formats it
        parser.add_argument(flag, type=_number, metavar="N", help=help_)
    parser.add_argument(
        "--mean-limit",
        type=_number,
        metavar="N",
        help="mean of prune_opd/current_max_response_length over a run of Prune-OPD (assumed: the limit grows by "
        "prune_opd.budget.step every fourth step, as in the public run)",
    )
    parser.add_argument("--short", type=_number, metavar="N", help="the short fixed limit (default: the mean limit)")
    parser.add_argument(
        "--decode-tokens-per-second",
        type=_number,
        metavar="N",
        help="tokens a second of one response while a full batch is decoded (assumed: from --bandwidth, "
        "--token-overhead, weights and cache)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, allowed: a number >= 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Estimate and print.

    Raises:
        ValueError: the overrides do not compose, a setting is refused, or a model has no configuration.
    """
    try:
        answer = estimate(compose(args.overrides), args)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere: its message has three lines
        raise ValueError(" ".join(str(error).split())) from error
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        show(answer)
    return 0


def compose(overrides: list[str]) -> DictConfig:
    """verl's configuration under the overrides, as its trainer would see it. The recipe may be left out.

    Raises:
        ValueError: Hydra refuses one of them.
    """
    import hydra
    from hydra.errors import HydraException

    verl = find_spec("verl")
    assert verl is not None
    assert verl.submodule_search_locations
    folder = Path(verl.submodule_search_locations[0]) / "trainer" / "config"
    if not any(override.startswith("+recipe=") for override in overrides):
        overrides = [RECIPE, *overrides]
    try:
        with hydra.initialize_config_dir(str(folder), version_base=None):
            return hydra.compose("ppo_trainer", overrides)
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the overrides do not compose ({reason})") from error


# ------------------------------------------------------------------------------------------------ inputs


class Values:
    """Numbers by name, each with where it comes from."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._by_name: dict[str, Any] = {}

    def add(self, name: str, value: Any, source: str, meaning: str = "") -> Any:
        """Note a number and hand it back."""
        self.rows.append({"name": name, "value": value, "source": source, "meaning": meaning})
        self._by_name[name] = value
        return value

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]


COUNTS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.response_length",
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
)
"""Keys that are reckoned with, whole numbers; verl checks some of them, and only when it starts."""
SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization"


def check_numbers(config: DictConfig) -> None:
    """Refuse what cannot be reckoned with.

    Raises:
        ValueError: names the key.
    """
    for key in COUNTS:
        value = OmegaConf.select(config, key)
        if type(value) is not int or value < 1:
            raise ValueError(f"{key}: got {value!r}, allowed: a whole number >= 1")
    value = OmegaConf.select(config, SHARE)
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{SHARE}: got {value!r}, allowed: a number in (0, 1]")


def collect(config: DictConfig, prune_opd: PruneOPDConfig, args: argparse.Namespace) -> Values:
    """Everything the estimate needs to know, from the configuration, the options, or our guesses."""
    values, rollout, trainer = Values(), config.actor_rollout_ref.rollout, config.trainer
    budget = prune_opd.budget.build(rollout.response_length)
    read = "configuration"
    values.add("GPUs of the training", trainer.n_gpus_per_node * trainer.nnodes, read)
    values.add("prompts per step", config.data.train_batch_size, read)
    values.add("responses per prompt", rollout.n, read)
    values.add("longest prompt", config.data.max_prompt_length, read)
    values.add("limit", budget.max, read)
    values.add("k", prune_opd.topk, read)
    for name, (guess, meaning) in GUESSES.items():
        given = getattr(args, name)
        if name == "steps" and given is None and trainer.total_training_steps:
            values.add(name, trainer.total_training_steps, read, meaning)
        else:
            values.add(name, guess if given is None else given, "assumed" if given is None else "given", meaning)
    _check(values, "steps", "length", "mfu", "peak_tflops", "bandwidth", "gpu_memory")
    if args.mean_limit is None:
        mean = costs.ramp(budget.limit, budget.max, budget.step, int(values["steps"]))
        values.add("mean_limit", round(mean), "assumed", "grows by prune_opd.budget.step every fourth step")
    else:
        values.add("mean_limit", min(args.mean_limit, budget.max), "given", "of a run of Prune-OPD")
    short = values["mean_limit"] if args.short is None else min(args.short, budget.max)
    values.add("short", short, "the mean limit" if args.short is None else "given", "the short fixed limit")
    if args.decode_tokens_per_second:
        values.add("decode_tokens_per_second", args.decode_tokens_per_second, "given", "of one response, batch full")
    _check(values, "mean_limit", "short")
    return values


def _check(values: Values, *positive: str) -> None:
    for name in positive:
        if values[name] <= 0:
            raise ValueError(f"--{name.replace('_', '-')}: got {values[name]:g}, allowed: a number > 0")
    for name in ("mfu", "gate_saving"):
        if values[name] > 1:
            raise ValueError(f"--{name.replace('_', '-')}: got {values[name]:g}, allowed: a share of at most 1")


# ------------------------------------------------------------------------------------------------ the estimate


@dataclass
class Scenario:
    """One way to train. Sums are over the run; FLOPs and seconds by part are of one step."""

    name: str
    limit: float
    gpus: int
    response_length: float
    tokens: float
    scored_tokens: float
    flops_per_step: dict[str, float]
    seconds_per_step: dict[str, float]
    exaflops: float
    hours: float
    gpu_hours: float
    decode_tokens_per_second: float


def estimate(config: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The whole answer, ready for JSON.

    Args:
        config: verl's composed configuration.
        args: options of the command.

    Raises:
        ValueError: see ``run``.
    """
    check_numbers(config)
    prune_opd = check_settings(config)
    model = config.actor_rollout_ref.model
    student = read_shape("actor_rollout_ref.model.path", str(model.path), model.trust_remote_code)
    teacher = read_shape("prune_opd.teacher.path", str(prune_opd.teacher.path), prune_opd.teacher.trust_remote_code)
    values = collect(config, prune_opd, args)
    step = Step(config, prune_opd, student, teacher, values, args.decode_tokens_per_second)
    scenarios = [
        step.scenario("OPD", values["limit"]),
        step.scenario("OPD, short limit", values["short"]),
        step.scenario("Prune-OPD", values["mean_limit"]),
        step.scenario("Prune-OPD with gate", values["mean_limit"], gate=True),
    ]
    notes = ["validation, checkpoints and the start of the run take time that is not counted"]
    if model.lora_rank:
        notes.append("LoRA is not taken into account: gradients and optimizer are those of all parameters")
    if prune_opd.teacher.serves:
        notes.append(f"teacher.home={prune_opd.teacher.home} is not taken into account: counted is a worker group's")
    return {
        "models": {"student": _describe(student), "teacher": _describe(teacher)},
        "scenarios": [asdict(scenario) for scenario in scenarios],
        "memory": memory(config, prune_opd, student, teacher, values, scenarios[0]),
        "values": values.rows,
        "notes": notes,
    }


def read_shape(key: str, path: str, trust_remote_code: bool) -> costs.Shape:
    """Sizes of the model in a folder or under a hub name.

    Raises:
        ValueError: there is none, or none that can be counted; names the key and the path.
    """
    config = costs.read_config(key, path, trust_remote_code)
    try:
        return costs.model_shape(config)
    except ValueError as error:
        raise ValueError(f"{key}: {path}: {error}") from error


def _describe(shape: costs.Shape) -> dict[str, Any]:
    return asdict(shape) | {"matmul_parameters": shape.matmul, "cache_bytes_per_token": shape.cache_bytes}


class Step:
    """Cost of one training step under a limit."""

    def __init__(
        self,
        config: DictConfig,
        prune_opd: PruneOPDConfig,
        student: costs.Shape,
        teacher: costs.Shape,
        values: Values,
        decode_rate: float | None,
    ):
        self.student, self.teacher, self.values, self.decode_rate = student, teacher, values, decode_rate
        self.gpus: int = values["GPUs of the training"]
        self.responses: int = values["prompts per step"] * values["responses per prompt"]
        self.passes = 2 if needs_student_on_teacher(prune_opd.strategy) else 1
        # The forward pass is made once more where activations are recomputed for the gradient.
        self.update = 4 if config.actor_rollout_ref.model.enable_gradient_checkpointing else 3
        self.parallel: int = config.actor_rollout_ref.rollout.tensor_model_parallel_size
        self.utilization: float = config.actor_rollout_ref.rollout.gpu_memory_utilization
        server = prune_opd.teacher.server
        self.servers = server.replicas * server.tensor_model_parallel_size
        self.chunk = prune_opd.gate.chunk

    def scenario(self, name: str, limit: float, gate: bool = False) -> Scenario:
        """Tokens, FLOPs and time of a run at a constant limit."""
        lengths = costs.response_lengths(self.values["length"], self.values["spread"], limit, self.responses)
        kept = lengths * (1 - self.values["gate_saving"]) if gate else lengths
        made = np.minimum(kept + self.chunk, lengths) if gate else lengths  # generated until the abort arrives
        flops = self._flops(kept, made, gate)
        rate, slots = self._decode_rate(made)
        seconds = self._seconds(flops, self._iterations(made, limit, slots) / rate)
        steps, gpus = self.values["steps"], self.gpus + (self.servers if gate else 0)
        hours = steps * sum(seconds.values()) / 3600
        return Scenario(
            name=name,
            limit=limit,
            gpus=gpus,
            response_length=float(made.mean()),
            tokens=steps * float(made.sum()),
            scored_tokens=steps * float(kept.sum()),
            flops_per_step=flops,
            seconds_per_step=seconds,
            exaflops=steps * sum(flops.values()) / 1e18,
            hours=hours,
            gpu_hours=gpus * hours,
            decode_tokens_per_second=rate,
        )

    def _flops(self, kept: NDArray[np.float64], made: NDArray[np.float64], gate: bool) -> dict[str, float]:
        prompt = self.values["prompt_length"]
        student = costs.forward_flops(self.student, prompt + kept)
        return {
            "generate": costs.forward_flops(self.student, prompt + made),
            "score_student": self.passes * student,
            "score_teacher": costs.forward_flops(self.teacher, prompt + kept),
            "update": self.update * student,
            "gate": costs.forward_flops(self.teacher, prompt + made) if gate else 0.0,
        }

    def _seconds(self, flops: dict[str, float], generate: float) -> dict[str, float]:
        """The gate's teacher works beside generation, on its own devices, and adds nothing."""
        rate = self.gpus * self.values["peak_tflops"] * 1e12 * self.values["mfu"]
        seconds = {name: flops[name] / rate for name in ("score_student", "score_teacher", "update")}
        return {"generate": generate, **seconds, "fixed": self.values["step_overhead"]}

    def _iterations(self, made: NDArray[np.float64], limit: float, slots: float) -> float:
        """Decoding steps: as many as the longest response, or more where not all responses fit into the cache.

        A gate leaves the longest as it is: some response stays reliable up to the limit nearly always.
        """
        replicas = max(self.gpus // self.parallel, 1)
        return max(min(limit, self._longest(len(made))), float(made.sum()) / replicas / slots)

    def _decode_rate(self, made: NDArray[np.float64]) -> tuple[float, float]:
        """Tokens a second of one response, and how many responses a replica decodes at once."""
        slots = self.slots(float(made.mean()))
        if self.decode_rate:
            return self.decode_rate, slots
        context = self.values["prompt_length"] + float(made.mean()) / 2
        read = costs.weight_bytes(self.student, "bf16") + slots * context * self.student.cache_bytes
        milliseconds = read / self.parallel / (self.values["bandwidth"] * GB) * 1e3 + self.values["token_overhead"]
        return 1e3 / milliseconds, slots

    def _longest(self, responses: int) -> float:
        """Tokens of the longest of a batch under the full limit."""
        values = self.values
        return float(costs.response_lengths(values["length"], values["spread"], values["limit"], responses)[-1])

    def room(self) -> float:
        """Bytes a replica has for the cache of keys and values."""
        memory = self.values["gpu_memory"] * GB * self.utilization * self.parallel
        return memory - costs.weight_bytes(self.student, "bf16")

    def slots(self, length: float) -> float:
        """Responses that a replica decodes at once."""
        each = (self.values["prompt_length"] + length) * self.student.cache_bytes
        at_once = self.responses * self.parallel / self.gpus
        if self.room() < each:
            raise ValueError(
                "actor_rollout_ref.rollout.gpu_memory_utilization: the rollout's share of memory does not hold the "
                f"student and one response of {length:.0f} tokens, allowed: more memory (--gpu-memory), a larger share "
                "or a larger actor_rollout_ref.rollout.tensor_model_parallel_size"
            )
        return max(min(at_once, self.room() / each), 1.0)


# ------------------------------------------------------------------------------------------------ memory


Row = tuple[str, str, float, str]
"""What, when, bytes on a GPU, and how they come about."""


def memory(
    config: DictConfig,
    prune_opd: PruneOPDConfig,
    student: costs.Shape,
    teacher: costs.Shape,
    values: Values,
    plain: Scenario,
) -> list[dict[str, Any]]:
    """Bytes per GPU, by what holds them and when.

    Args:
        config: verl's composed configuration.
        prune_opd: the recipe's part of it, typed.
        student: its sizes.
        teacher: its sizes.
        values: see ``collect``.
        plain: OPD at the full limit, whose payload is the largest.
    """
    table = [
        *_training(config.actor_rollout_ref, student, values),
        *_teaching(config.actor_rollout_ref.ref, teacher, values),
        *_rollout(config.actor_rollout_ref.rollout, student, values),
        *_payload(prune_opd, plain.scored_tokens / values["steps"]),
        _gate(prune_opd, teacher),
    ]
    peak = sum(float(size) for _, when, size, _ in table if when in ("always", "update"))
    table.append(("peak of the update", "sum", peak, "rows `always` and `update`"))
    return [{"what": what, "when": when, "bytes": float(size), "how": how} for what, when, size, how in table]


def _rows(dynamic: bool, most: int, micro_batch: int | None, values: Values) -> int:
    """Tokens that go through a model at once."""
    return most if dynamic else (values["longest prompt"] + values["limit"]) * (micro_batch or 1)


def _training(config: DictConfig, student: costs.Shape, values: Values) -> list[Row]:
    """The student's weights, update and scoring pass."""
    actor, gpus = config.actor, values["GPUs of the training"]
    dtype = actor.fsdp_config.model_dtype
    rows = _rows(actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu, actor.ppo_micro_batch_size_per_gpu, values)
    weights, logits = costs.weight_bytes(student, dtype, gpus), rows * student.vocabulary * 2
    entropy = 0 if actor.entropy_from_logits_with_chunking else 2 * logits
    # Inputs of all layers and the inside of one; or the inside of all, 34 bytes per row, layer and unit.
    kept_layers = student.layers + 17 if config.model.enable_gradient_checkpointing else 17 * student.layers
    return [
        ("student's weights, sharded", "always", weights, f"{dtype} / {gpus} GPUs"),
        ("gradients, sharded", "update", weights, f"as the weights, {dtype}"),
        ("Adam's two moments, sharded", "always", 2 * weights, f"twice the weights, {dtype}"),
        ("gathered weights", "update", 2 * (student.root + 2 * student.layer), "bf16: embedding, head, two layers"),
        ("activations", "update", 2 * rows * student.hidden * kept_layers, f"bf16, {rows} rows"),
        ("logits", "update", logits, "rows x V x 2 bytes"),
        ("gradient of the logits", "update", logits, "the same"),
        ("float32 pieces of logits", "update", 4.0 * ROWS_AT_A_TIME * student.vocabulary, "1,024 x V x 4 bytes"),
        ("student's logits with entropy", "scoring", logits + entropy, "rows x V x 2, x 4 more for entropy"),
    ]


def _teaching(ref: DictConfig, teacher: costs.Shape, values: Values) -> list[Row]:
    """The teacher in the worker group."""
    rows = _rows(
        ref.log_prob_use_dynamic_bsz,
        ref.log_prob_max_token_len_per_gpu,
        ref.log_prob_micro_batch_size_per_gpu,
        values,
    )
    gpus, dtype = values["GPUs of the training"], ref.fsdp_config.model_dtype
    home = "CPU" if ref.fsdp_config.forward_only or ref.fsdp_config.param_offload else "always"
    weights = costs.weight_bytes(teacher, dtype, gpus)
    return [
        ("teacher's logits", "scoring", rows * teacher.vocabulary * 2, f"{rows} rows x V x 2 bytes"),
        ("teacher's weights, sharded", home, weights, f"{dtype} / {gpus} GPUs"),
    ]


def _rollout(rollout: DictConfig, student: costs.Shape, values: Values) -> list[Row]:
    """Weights and cache of the rollout's engine."""
    replica = rollout.tensor_model_parallel_size
    at_once = values["prompts per step"] * values["responses per prompt"] * replica / values["GPUs of the training"]
    weights, token = costs.weight_bytes(student, "bf16", replica), student.cache_bytes / replica
    everything = at_once * (values["prompt_length"] + values["limit"]) * token
    room = values["gpu_memory"] * GB * rollout.gpu_memory_utilization - weights
    return [
        ("rollout's weights", "rollout", weights, f"bf16 / {replica} GPUs"),
        ("cache of one token", "rollout", token, "2 x 2 x L x G x d bytes"),
        ("cache of all responses at the limit", "rollout", everything, "all in memory at once"),
        ("cache there is room for", "rollout", room, "share of memory less weights"),
    ]


def _payload(prune_opd: PruneOPDConfig, tokens: float) -> list[Row]:
    """Top-k blocks of a step."""
    scores, candidates = costs.payload_bytes(tokens, prune_opd.topk, prune_opd.strategy)
    return [
        ("top-k scores of a step, all GPUs", "CPU", scores, f"{tokens:,.0f} tokens, both models"),
        ("candidates of a step, all GPUs", "CPU", candidates, "ids, old log-probs, advantages"),
    ]


def _gate(prune_opd: PruneOPDConfig, teacher: costs.Shape) -> Row:
    """The teacher's copy on a server of its own."""
    parallel = prune_opd.teacher.server.tensor_model_parallel_size
    weights = costs.weight_bytes(teacher, "bf16", parallel)
    return ("teacher server of the gate", "gate", weights, f"bf16 / {parallel} GPUs of its own")


# ------------------------------------------------------------------------------------------------ for people


def show(answer: dict[str, Any]) -> None:
    """Tables of the answer."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)  # paths and settings may look like markup
    for name, shape in answer["models"].items():
        console.print(
            f"{name}: {shape['parameters']:,} parameters, {shape['layers']} layers, vocabulary {shape['vocabulary']:,}"
        )
    console.print(_scenarios(answer["scenarios"]))
    console.print(_parts(answer["scenarios"]))
    console.print(_memory(answer["memory"]))
    console.print(_values(answer["values"]))
    for note in answer["notes"]:
        console.print(f"Note: {note}.")


def _table(title: str, *columns: str, left: int = 1) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=i == 0)
    return table


def _scenarios(scenarios: list[dict[str, Any]]) -> Any:
    table = _table("Whole run", "", "limit", "length", "M tokens", "EFLOP", "hours", "GPUs", "GPU h", "saved")
    first = scenarios[0]
    for row in scenarios:
        table.add_row(
            row["name"],
            f"{row['limit']:,.0f}",
            f"{row['response_length']:,.0f}",
            f"{row['tokens'] / 1e6:,.1f}",
            f"{row['exaflops']:,.3g}",
            f"{row['hours']:,.1f}",
            f"{row['gpus']}",
            f"{row['gpu_hours']:,.0f}",
            "" if row is first else f"{1 - row['hours'] / first['hours']:.0%}",
        )
    return table


def _parts(scenarios: list[dict[str, Any]]) -> Any:
    names = list(scenarios[0]["seconds_per_step"])
    table = _table("Seconds of a step", "", *(name.replace("_", " ") for name in names), "all")
    for row in scenarios:
        parts = row["seconds_per_step"]
        table.add_row(row["name"], *(f"{parts[name]:,.1f}" for name in names), f"{sum(parts.values()):,.1f}")
    return table


def _memory(rows: list[dict[str, Any]]) -> Any:
    table = _table("Memory of a GPU", "", "when", "size", "how", left=2)
    table.columns[3].justify = "left"
    for row in rows:
        table.add_row(row["what"], row["when"], costs.readable(row["bytes"]), row["how"])
    return table


def _values(rows: list[dict[str, Any]]) -> Any:
    table = _table("What went in", "", "value", "from", "meaning")
    table.columns[2].justify = table.columns[3].justify = "left"
    for row in rows:
        style = "bold" if row["source"] == "assumed" else None
        table.add_row(row["name"], f"{row['value']:g}", row["source"], row["meaning"], style=style)
    return table
