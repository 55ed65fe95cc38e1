"""Numbers that an estimate is made of, each with where it comes from."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from recipe.prune_opd.commands.estimate.costs import ramp
from recipe.prune_opd.commands.estimate.guesses import GUESSES
from recipe.prune_opd.config import BudgetConfig, PruneOPDConfig

if TYPE_CHECKING:
    from recipe.prune_opd.commands.estimate.command import Arguments

READ, GIVEN, ASSUMED = "configuration", "given", "assumed"
"""Sources of a number."""
MOST_STEPS, MOST_SPREAD = 10_000_000, 10


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


def collect(config: DictConfig, prune_opd: PruneOPDConfig, args: "Arguments") -> Values:
    """Gather what the estimate needs, from the configuration, the options, or our guesses.

    Args:
        config: verl's composed configuration.
        prune_opd: the recipe's part of it, typed.
        args: options of the command.

    Raises:
        ValueError: a number is one that cannot be reckoned with; names the option.
    """
    values, rollout, trainer = Values(), config.actor_rollout_ref.rollout, config.trainer
    values.add("GPUs of the training", trainer.n_gpus_per_node * trainer.nnodes, READ)
    values.add("prompts per step", config.data.train_batch_size, READ)
    values.add("responses per prompt", rollout.n, READ)
    values.add("longest prompt", config.data.max_prompt_length, READ)
    values.add("limit", prune_opd.budget.longest, READ)
    values.add("k", prune_opd.topk, READ)
    for name, (guess, meaning) in GUESSES.items():
        given = getattr(args, name)
        if given is not None:
            values.add(name, given, GIVEN, meaning)
        elif name == "steps" and trainer.total_training_steps:
            values.add(name, trainer.total_training_steps, READ, meaning)
        else:
            values.add(name, guess, ASSUMED, meaning)
    _check_positive(values, "length", "mfu", "peak_tflops", "bandwidth", "gpu_memory")
    _check_bounds(values)
    _add_limits(values, prune_opd.budget, args)
    if args.decode_tokens_per_second:
        rate, meaning = args.decode_tokens_per_second, "of one response, batch full"
        values.add("decode_tokens_per_second", rate, GIVEN, meaning)
    return values


def _add_limits(values: Values, budget: BudgetConfig, args: "Arguments") -> None:
    """Add the mean limit of Prune-OPD and the short fixed one it is compared with."""
    start, longest = budget.build().limit, budget.longest
    if args.mean_limit is None:
        mean = ramp(start, longest, budget.step, int(values["steps"]))
        growth = "grows by prune_opd.budget.step every fourth step"
        values.add("mean_limit", round(mean), ASSUMED, growth)
    else:
        values.add("mean_limit", min(args.mean_limit, longest), GIVEN, "of a run of Prune-OPD")
    if args.short is None:
        values.add("short", values["mean_limit"], "the mean limit", "the short fixed limit")
    else:
        values.add("short", min(args.short, longest), GIVEN, "the short fixed limit")
    _check_positive(values, "mean_limit", "short")


def _check_positive(values: Values, *names: str) -> None:
    for name in names:
        if values[name] <= 0:
            raise ValueError(f"{_option(name)}: got {values[name]:g}, allowed: a number > 0")


def _check_bounds(values: Values) -> None:
    if not 1 <= values["steps"] <= MOST_STEPS:
        raise ValueError(
            f"--steps: got {values['steps']:g}, allowed: a number from 1 to {MOST_STEPS:,}"
        )
    if values["spread"] > MOST_SPREAD:
        raise ValueError(
            f"--spread: got {values['spread']:g}, allowed: a number of at most {MOST_SPREAD}"
        )
    for name in ("mfu", "gate_saving"):
        if values[name] > 1:
            raise ValueError(
                f"{_option(name)}: got {values[name]:g}, allowed: a share of at most 1"
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
