"""Tokens, FLOPs, memory and time of on-policy distillation, before a GPU is touched.

Give it the arguments of the training command you have in mind:

    python -m recipe.prune_opd estimate +recipe=prune_opd \\
        actor_rollout_ref.model.path=STUDENT prune_opd.teacher.path=TEACHER \\
        data.max_response_length=31744 prune_opd.budget.max=12288 \\
        data.train_batch_size=64 actor_rollout_ref.rollout.n=4 trainer.n_gpus_per_node=8 --steps 203

It reads the two model configurations (a local folder or a hub name; no weights) and compares plain
OPD, OPD under a short fixed limit, Prune-OPD, and Prune-OPD with the in-flight gate. Every number
that is not in the configuration is an option below. What you do not give is assumed, and listed as
such: give what you have measured. docs/estimate.md has the formulas and how far off they are.
"""

import argparse
import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.prune_opd.commands.terminal import console

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recipe.prune_opd.commands.estimate.costs import Shape
    from recipe.prune_opd.commands.estimate.run_costs import Values
    from recipe.prune_opd.config import PruneOPDConfig

RECIPE = "+recipe=prune_opd"
GUESSES: dict[str, tuple[float, str]] = {
    "steps": (
        203,
        "training steps; the paper's number, unless trainer.total_training_steps is set",
    ),
    "prompt_length": (200, "mean tokens of a prompt"),
    "length": (7200, "mean tokens of a response that no limit cuts; fits the public run"),
    "spread": (0.6, "standard deviation of the logarithm of that length; fits the public run"),
    "gate_saving": (
        0.23,
        "share of Prune-OPD's tokens that come after R = 0; measured on the public run",
    ),
    "mfu": (0.17, "share of --peak-tflops that scoring and update reach; fits the public run"),
    "peak_tflops": (989, "dense bf16 TFLOPS of a GPU; an H100's"),
    "bandwidth": (2680, "GB/s at which decoding reads memory; 80 % of an H100's"),
    "token_overhead": (
        2.6,
        "milliseconds of a decoding step besides reading memory; fits the public run",
    ),
    "step_overhead": (9.7, "seconds of a step that depend on no length; fits the public run"),
    "gpu_memory": (80, "GB of a GPU"),
}
"""Option -> its value where nobody gives one, and what it is. "Fits": see docs/estimate.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="CONFIG",
        help="arguments of verl.trainer.main_ppo, as typed",
    )
    for name, (value, meaning) in GUESSES.items():
        flag = "--" + name.replace("_", "-")
        help_ = f"{meaning} (assumed: {value:g})".replace("%", "%%")  # argparse formats it
        parser.add_argument(flag, type=_number, metavar="N", help=help_)
    parser.add_argument(
        "--mean-limit",
        type=_number,
        metavar="N",
        help=(
            "mean of prune_opd/current_max_response_length over a run of Prune-OPD (assumed: the"
            " limit grows by prune_opd.budget.step every fourth step, as in the public run)"
        ),
    )
    parser.add_argument(
        "--short", type=_number, metavar="N", help="the short fixed limit (default: the mean limit)"
    )
    parser.add_argument(
        "--decode-tokens-per-second",
        type=_number,
        metavar="N",
        help=(
            "tokens a second of one response while a full batch is decoded (assumed: from"
            " --bandwidth, --token-overhead, weights and cache)"
        ),
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables"
    )


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, allowed: a number >= 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Estimate and print.

    Raises:
        ValueError: the overrides do not compose, a setting is refused, or a model has no
            configuration.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        answer = estimate(compose(args.overrides), args)
    # An interpolation that leads nowhere: its message has three lines.
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        show(answer)
    return 0


def compose(overrides: list[str]) -> "DictConfig":
    """verl's configuration under the overrides, as its trainer would see it. The recipe may be left
    out.

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


# ------------------------------------------------------------------------------------------- inputs


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
OPTIONAL_COUNTS = (
    "trainer.total_training_steps",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
)
"""The same, which may be null."""
DTYPES = (
    "actor_rollout_ref.actor.fsdp_config.model_dtype",
    "actor_rollout_ref.ref.fsdp_config.model_dtype",
)
MOST_RESPONSES = 1_000_000
"""Responses of a step that are reckoned with, one by one."""
MOST_STEPS = 10_000_000
SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization"


def check_numbers(config: "DictConfig") -> None:
    """Refuse what cannot be reckoned with.

    Raises:
        ValueError: names the key.
    """
    from omegaconf import OmegaConf

    from recipe.prune_opd.commands.estimate.costs import BYTES

    for key in (*COUNTS, *OPTIONAL_COUNTS):
        value = OmegaConf.select(config, key)
        if (type(value) is not int or value < 1) and (value is not None or key in COUNTS):
            raise ValueError(f"{key}: got {value!r}, allowed: a whole number >= 1")
    for key in DTYPES:
        value = OmegaConf.select(config, key)
        if value not in BYTES:
            raise ValueError(f"{key}: got {value!r}, allowed: {', '.join(BYTES)}")
    responses = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    if responses > MOST_RESPONSES:
        raise ValueError(
            f"data.train_batch_size x actor_rollout_ref.rollout.n: got {responses:,}, allowed: at"
            f" most {MOST_RESPONSES:,}"
        )
    value = OmegaConf.select(config, SHARE)
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{SHARE}: got {value!r}, allowed: a number in (0, 1]")


def collect(
    config: "DictConfig", prune_opd: "PruneOPDConfig", args: argparse.Namespace
) -> "Values":
    """Everything the estimate needs to know, from the configuration, the options, or our
    guesses."""
    from recipe.prune_opd.commands.estimate.costs import ramp
    from recipe.prune_opd.commands.estimate.run_costs import Values

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
            values.add(
                name,
                guess if given is None else given,
                "assumed" if given is None else "given",
                meaning,
            )
    _check(values, "length", "mfu", "peak_tflops", "bandwidth", "gpu_memory")
    if args.mean_limit is None:
        mean = ramp(budget.limit, budget.max, budget.step, int(values["steps"]))
        values.add(
            "mean_limit", round(mean), "assumed", "grows by prune_opd.budget.step every fourth step"
        )
    else:
        values.add("mean_limit", min(args.mean_limit, budget.max), "given", "of a run of Prune-OPD")
    short = values["mean_limit"] if args.short is None else min(args.short, budget.max)
    values.add(
        "short", short, "the mean limit" if args.short is None else "given", "the short fixed limit"
    )
    if args.decode_tokens_per_second:
        values.add(
            "decode_tokens_per_second",
            args.decode_tokens_per_second,
            "given",
            "of one response, batch full",
        )
    _check(values, "mean_limit", "short")
    return values


def _check(values: "Values", *positive: str) -> None:
    for name in positive:
        if values[name] <= 0:
            raise ValueError(
                f"--{name.replace('_', '-')}: got {values[name]:g}, allowed: a number > 0"
            )
    if not 1 <= values["steps"] <= MOST_STEPS:
        raise ValueError(
            f"--steps: got {values['steps']:g}, allowed: a number from 1 to {MOST_STEPS:,}"
        )
    for name in ("mfu", "gate_saving"):
        if values[name] > 1:
            raise ValueError(
                f"--{name.replace('_', '-')}: got {values[name]:g}, allowed: a share of at most 1"
            )


# ------------------------------------------------------------------------------------- the estimate


def estimate(config: "DictConfig", args: argparse.Namespace) -> dict[str, Any]:
    """The whole answer, ready for JSON.

    Args:
        config: verl's composed configuration.
        args: options of the command.

    Raises:
        ValueError: see ``run``.
    """
    from recipe.prune_opd.checks.settings import check_settings
    from recipe.prune_opd.commands.estimate.footprint import memory
    from recipe.prune_opd.commands.estimate.run_costs import Step

    check_numbers(config)
    prune_opd = check_settings(config)
    model = config.actor_rollout_ref.model
    student = read_shape(
        "actor_rollout_ref.model.path", str(model.path), bool(model.trust_remote_code)
    )
    teacher = read_shape(
        "prune_opd.teacher.path", str(prune_opd.teacher.path), prune_opd.teacher.trust_remote_code
    )
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
        notes.append(
            "LoRA is not taken into account: gradients and optimizer are those of all parameters"
        )
    if prune_opd.teacher.serves:
        notes.append(
            f"teacher.home={prune_opd.teacher.home} is not taken into account: counted is a worker"
            " group's"
        )
    return {
        "models": {"student": _describe(student), "teacher": _describe(teacher)},
        "scenarios": [asdict(scenario) for scenario in scenarios],
        "memory": memory(config, prune_opd, student, teacher, values, scenarios[0]),
        "values": values.rows,
        "notes": notes,
    }


def read_shape(key: str, path: str, trust_remote_code: bool) -> "Shape":
    """Sizes of the model in a folder or under a hub name.

    Raises:
        ValueError: there is none, or none that can be counted; names the key and the path.
    """
    from recipe.prune_opd.commands.estimate import costs

    config = costs.read_config(key, path, trust_remote_code)
    try:
        shape = costs.model_shape(config)
    except (ValueError, TypeError, ZeroDivisionError) as error:  # of sizes that do not go together
        raise ValueError(f"{key}: {path}: {error}") from error
    if shape.experts > 1:
        raise ValueError(
            f"{key}: {path} is a mixture of {shape.experts} experts per layer (model_type"
            f" {config.model_type!r}), allowed: a dense model, all of whose parameters every token"
            " meets"
        )
    return shape


def _describe(shape: "Shape") -> dict[str, Any]:
    return asdict(shape) | {
        "matmul_parameters": shape.matmul,
        "cache_bytes_per_token": shape.cache_bytes,
    }


# --------------------------------------------------------------------------------------- for people


def show(answer: dict[str, Any]) -> None:
    """Tables of the answer."""
    terminal = console()
    for name, shape in answer["models"].items():
        terminal.print(
            f"{name}: {shape['parameters']:,} parameters, {shape['layers']} layers, vocabulary"
            f" {shape['vocabulary']:,}"
        )
    terminal.print(_scenarios(answer["scenarios"]))
    terminal.print(_parts(answer["scenarios"]))
    terminal.print(_memory(answer["memory"]))
    terminal.print(_values(answer["values"]))
    for note in answer["notes"]:
        terminal.print(f"Note: {note}.")


def _table(title: str, *columns: str, left: int = 1) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=i == 0)
    return table


def _scenarios(scenarios: list[dict[str, Any]]) -> Any:
    table = _table(
        "Whole run", "", "limit", "length", "M tokens", "EFLOP", "hours", "GPUs", "GPU h", "saved"
    )
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
        table.add_row(
            row["name"], *(f"{parts[name]:,.1f}" for name in names), f"{sum(parts.values()):,.1f}"
        )
    return table


def _memory(rows: list[dict[str, Any]]) -> Any:
    from recipe.prune_opd.commands.estimate.costs import readable

    table = _table("Memory of a GPU", "", "when", "size", "how", left=2)
    table.columns[3].justify = "left"
    for row in rows:
        table.add_row(row["what"], row["when"], readable(row["bytes"]), row["how"])
    return table


def _values(rows: list[dict[str, Any]]) -> Any:
    table = _table("What went in", "", "value", "from", "meaning")
    table.columns[2].justify = table.columns[3].justify = "left"
    for row in rows:
        style = "bold" if row["source"] == "assumed" else None
        table.add_row(row["name"], f"{row['value']:g}", row["source"], row["meaning"], style=style)
    return table
