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

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from recipe.prune_opd.commands.arguments import NUMBER, several
from recipe.prune_opd.commands.estimate.configuration import check_numbers, compose
from recipe.prune_opd.commands.estimate.guesses import assumed
from recipe.prune_opd.commands.estimate.tables import show
from recipe.prune_opd.commands.terminal import as_json, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recipe.prune_opd.commands.estimate.costs import Shape
    from recipe.prune_opd.teacher.home import Home


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command. Of the numbers that may be assumed, ``guesses`` has the help."""

    overrides: Annotated[
        Positional[tuple[str, ...]],
        several(str, "arguments of verl.trainer.main_ppo", "CONFIG"),
        arg(help_behavior_hint=""),
    ]
    """arguments of verl.trainer.main_ppo, as typed"""
    steps: Annotated[float | None, NUMBER, assumed("steps")] = None
    prompt_length: Annotated[float | None, NUMBER, assumed("prompt_length")] = None
    length: Annotated[float | None, NUMBER, assumed("length")] = None
    spread: Annotated[float | None, NUMBER, assumed("spread")] = None
    gate_saving: Annotated[float | None, NUMBER, assumed("gate_saving")] = None
    mfu: Annotated[float | None, NUMBER, assumed("mfu")] = None
    peak_tflops: Annotated[float | None, NUMBER, assumed("peak_tflops")] = None
    bandwidth: Annotated[float | None, NUMBER, assumed("bandwidth")] = None
    token_overhead: Annotated[float | None, NUMBER, assumed("token_overhead")] = None
    step_overhead: Annotated[float | None, NUMBER, assumed("step_overhead")] = None
    gpu_memory: Annotated[float | None, NUMBER, assumed("gpu_memory")] = None
    mean_limit: Annotated[float | None, NUMBER, arg(help_behavior_hint="")] = None
    """mean of prune_opd/current_max_response_length over a run of Prune-OPD (assumed: the limit
    grows by prune_opd.budget.step every fourth step, as in the public run)"""
    short: Annotated[float | None, NUMBER, arg(help_behavior_hint="(default: the mean limit)")] = (
        None
    )
    """the short fixed limit"""
    decode_tokens_per_second: Annotated[float | None, NUMBER, arg(help_behavior_hint="")] = None
    """tokens a second of one response while a full batch is decoded (assumed: from --bandwidth,
    --token-overhead, weights and cache)"""
    json: bool = False
    """print one JSON object instead of tables"""


def run(args: Arguments) -> int:
    """Estimate and print.

    Raises:
        ValueError: the overrides do not compose, a setting is refused, or a model has no
            configuration.
    """
    from omegaconf.errors import OmegaConfBaseException

    from recipe.prune_opd.checks.kinds import unresolved

    try:
        answer = estimate(compose(list(args.overrides)), args)
    except OmegaConfBaseException as error:
        raise unresolved(error) from error
    if args.json:
        say(as_json(answer))
    else:
        show(answer)
    return 0


def estimate(config: "DictConfig", args: Arguments) -> dict[str, Any]:
    """Estimate a run: the whole answer, ready for JSON.

    Args:
        config: verl's composed configuration.
        args: options of the command.

    Raises:
        ValueError: a setting is refused, or a model has no configuration that can be counted.
    """
    from recipe.prune_opd.commands.estimate.footprint import memory
    from recipe.prune_opd.commands.estimate.run_costs import Step
    from recipe.prune_opd.commands.estimate.values import collect
    from recipe.prune_opd.config import require
    from recipe.prune_opd.training.preflight import check_values

    check_numbers(config)
    prune_opd, home = check_values(config)
    model, theirs = config.actor_rollout_ref.model, prune_opd.teacher
    allowed = "none with estimate, which counts one: the largest, as teacher.path"
    require(not theirs.models, "teacher.models", list(theirs.models), allowed)
    student = read_shape(
        "actor_rollout_ref.model.path", str(model.path), bool(model.trust_remote_code)
    )
    teacher = read_shape("prune_opd.teacher.path", str(theirs.path), theirs.trust_remote_code)
    values = collect(config, prune_opd, args)
    step = Step(config, prune_opd, student, teacher, values, args.decode_tokens_per_second)
    scenarios = [
        step.scenario("OPD", values["limit"]),
        step.scenario("OPD, short limit", values["short"]),
        step.scenario("Prune-OPD", values["mean_limit"]),
        step.scenario("Prune-OPD with gate", values["mean_limit"], gate=True),
    ]
    return {
        "models": {"student": _describe(student), "teacher": _describe(teacher)},
        "scenarios": [asdict(scenario) for scenario in scenarios],
        "memory": memory(config, prune_opd, student, teacher, values, scenarios[0]),
        "values": values.rows,
        "notes": _notes(config, home),
    }


def _notes(config: "DictConfig", home: "Home") -> list[str]:
    """Sentences about what was not counted."""
    notes = ["validation, checkpoints and the start of the run take time that is not counted"]
    if config.actor_rollout_ref.model.lora_rank:
        notes.append(
            "LoRA is not taken into account: gradients and optimizer are those of all parameters"
        )
    if not home.reference_model:
        notes.append(
            f"teacher.home={home.prune_opd.teacher.home} is not taken into account: counted is a"
            " worker group's"
        )
    return notes


def read_shape(key: str, path: str, trust_remote_code: bool) -> "Shape":
    """Read the sizes of the model in a folder or under a hub name.

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
