"""verl's training engines that show their logits, the keys of each, and how it groups ranks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.kinds import GROUP, look_up
from recipe.prune_opd.checks.models import Model, check_split
from recipe.prune_opd.checks.numbers import ACTOR, COUNT, FROM_MINUS_ONE, REF, Range, check_ranges
from recipe.prune_opd.checks.settings import Setting, check_allowed
from recipe.prune_opd.config import shown

PADDED = "rows of padded logits would not match the candidates"
LORA = "actor_rollout_ref.model.lora_rank"
ROUTES = "verl records and replays routes in its own passes alone"


def both(name: str, allowed: tuple[object, ...], why: str) -> tuple[Setting, Setting]:
    """Setting of student and teacher."""
    return Setting(f"{ACTOR}.{name}", allowed, why), Setting(f"{REF}.{name}", allowed, why)


@dataclass(frozen=True)
class Engine:
    """Keys of an engine, each below ``actor_rollout_ref.actor`` and ``.ref`` alike."""

    name: str
    """verl's name of its keys, ``model_engine``."""
    group: str
    """Group of its own keys."""
    sequence: tuple[str, ...]
    """Ranks that share a sequence; of several keys the first above 1 counts."""
    numbers: Mapping[str, Range]
    """Keys that need a number, with those of ``sequence``, ``parts`` and ``shared``."""
    settings: tuple[Setting, ...]
    """Keys that need one of a few values."""
    package: str = "torch"
    """Module that it stands on."""
    parts: tuple[str, ...] = ()
    """Ranks that share a model's layers or columns: they get the same responses."""
    shards: str | None = None
    """Ranks that share parameters, where it is not -1, for all."""
    shared: tuple[str, ...] = ()
    """Keys that student and teacher must have alike: verl groups the ranks once, for both."""

    def sequence_parallel_size(self, model: DictConfig) -> int:
        """Ranks that share a sequence.

        Args:
            model: the node ``actor_rollout_ref.actor`` or ``.ref``.
        """
        sizes = (OmegaConf.select(model, key) for key in self.sequence)
        return int(next((size for size in sizes if size > 1), 1))

    def model_parallel_size(self, model: DictConfig) -> int:
        """Ranks that get the same responses. See ``sequence_parallel_size``."""
        parts = (OmegaConf.select(model, key) for key in self.parts)
        return int(self.sequence_parallel_size(model) * math.prod(parts))

    def shards_of(self, model: DictConfig) -> int:
        """Ranks that share parameters; -1: all. See ``sequence_parallel_size``."""
        return -1 if self.shards is None else int(OmegaConf.select(model, self.shards))

    @property
    def model_parallel(self) -> str:
        """Keys whose product ``model_parallel_size`` is."""
        return " x ".join((*self.parts, self.sequence[0]))


FSDP = Engine(
    name="dp",
    group="fsdp_config",
    sequence=("ulysses_sequence_parallel_size", "fsdp_config.ulysses_sequence_parallel_size"),
    shards="fsdp_config.fsdp_size",
    numbers={
        "ulysses_sequence_parallel_size": COUNT,
        "fsdp_config.ulysses_sequence_parallel_size": COUNT,
        "fsdp_config.fsdp_size": FROM_MINUS_ONE,
    },
    settings=both("pad_to_length", (False,), PADDED),
)
VEOMNI = Engine(
    name="veomni",
    group="veomni",
    package="veomni",
    sequence=("veomni.ulysses_parallel_size",),
    shards="veomni.fsdp_size",
    shared=("veomni.ulysses_parallel_size", "veomni.fsdp_size", "veomni.expert_parallel_size"),
    numbers={
        "veomni.ulysses_parallel_size": COUNT,
        "veomni.fsdp_size": FROM_MINUS_ONE,
        "veomni.expert_parallel_size": COUNT,
    },
    settings=(
        *both("veomni.pad_to_length", (False,), PADDED),
        *both("veomni.router_replay.mode", ("disabled",), ROUTES),
        Setting(LORA, (0,), "verl's engine makes no adapter, and would train all weights"),
    ),
)
SIZES = tuple(f"megatron.{name}_model_parallel_size" for name in ("tensor", "pipeline", "expert"))
MEGATRON = Engine(
    name="megatron",
    group="megatron",
    package="megatron.core",
    sequence=("megatron.context_parallel_size",),
    parts=SIZES[:2],
    shared=(
        *SIZES,
        "megatron.context_parallel_size",
        "megatron.expert_tensor_parallel_size",
        "megatron.virtual_pipeline_model_parallel_size",
    ),
    numbers=dict.fromkeys((*SIZES, "megatron.context_parallel_size"), COUNT),
    settings=(
        *both("megatron.use_mbridge", (True,), "verl's engine has no other way to load a model"),
        *both("megatron.pad_to_length", (False,), PADDED),
        *both(
            "megatron.dynamic_context_parallel",
            (False,),
            "verl's engine then shows no logits to a loss",
        ),
        *both("megatron.router_replay.mode", ("disabled",), ROUTES),
        *both(
            "megatron.override_transformer_config.fp8",
            (None, False),
            "rows are then padded in another way than the candidates",
        ),
        Setting(LORA, (0,), "Megatron's adapters are set by actor_rollout_ref.model.lora.rank"),
        Setting(
            f"{REF}.megatron.forward_only",
            (True,),
            "Megatron would hold gradients and an optimizer's state for a teacher that never steps",
        ),
    ),
)
LAYERS = "num_hidden_layers"
CONTIGUOUS = ("deepseek_v4",)
"""Types of models whose sequences verl's Megatron engine shares out in another way."""
TRAINING_ENGINES = {"fsdp": FSDP, "fsdp2": FSDP, "veomni": VEOMNI, "megatron": MEGATRON}
"""Engines by ``actor_rollout_ref.actor.strategy``."""


def engine_of(config: DictConfig) -> Engine:
    """Engine that student and teacher are trained and held by."""
    return TRAINING_ENGINES[config.actor_rollout_ref.actor.strategy]


def check_engine(config: DictConfig) -> Engine:
    """Check the engine's own keys, each by itself.

    Args:
        config: verl's composed configuration, its ``strategy`` an allowed one.

    Raises:
        ValueError: the first key that is not allowed, what it holds, what is allowed and why.
    """
    engine = engine_of(config)
    names = tuple(name for name, other in TRAINING_ENGINES.items() if other is engine)
    alike = Setting(f"{REF}.strategy", names, "student and teacher share the engine's groups")
    check_allowed(config, (alike,), "prune_opd")
    for model in (ACTOR, REF):
        if not GROUP.holds(found := look_up(config, f"{model}.{engine.group}")):
            raise ValueError(
                f"{model}.{engine.group}: got {shown(found)}, allowed: {GROUP.words}; the keys of"
                f" an engine come with verl's model_engine={engine.name}"
            )
    check_ranges(config, numbers_of(engine))
    check_allowed(config, engine.settings, "prune_opd")
    return engine


def check_package(config: DictConfig) -> None:
    """Check that the engine is installed in this process's environment, where the trainer runs.

    Raises:
        ValueError: names the engine and what it lacks.
    """
    package = engine_of(config).package
    if find_spec(package.partition(".")[0]) is None or find_spec(package) is None:
        raise ValueError(
            f"{ACTOR}.strategy: got {config.actor_rollout_ref.actor.strategy!r}, which needs the"
            f" module {package} on every node"
        )


def numbers_of(engine: Engine) -> dict[str, Range]:
    """Full names of an engine's keys that need a number."""
    return {
        f"{model}.{key}": allowed
        for model in (ACTOR, REF)
        for key, allowed in engine.numbers.items()
    }


def check_shared(config: DictConfig) -> None:
    """Check that student and teacher, in one process, group ranks alike.

    Raises:
        ValueError: the teacher's key, what it holds and what the student's does.
    """
    for key in engine_of(config).shared:
        student, teacher = (look_up(config, f"{model}.{key}") for model in (ACTOR, REF))
        if student != teacher:
            raise ValueError(
                f"{REF}.{key}: got {shown(teacher)}, allowed: {shown(student)}, as"
                f" {ACTOR}.{key}, because verl groups the ranks once, for both"
            )


def check_model(config: DictConfig, part: str, model: Model) -> None:
    """Check that Megatron's ranks can share a model; other engines share parameters alone.

    Args:
        config: verl's composed configuration.
        part: "actor" or "ref".
        model: that this part holds.

    Raises:
        ValueError: names the key, the model and what of it cannot be shared.
    """
    if engine_of(config) is not MEGATRON:
        return
    node, key = config.actor_rollout_ref[part].megatron, f"actor_rollout_ref.{part}.megatron"
    check_split(f"{key}.tensor_model_parallel_size", node.tensor_model_parallel_size, model)
    stages, layers = node.pipeline_model_parallel_size, getattr(model.config, LAYERS, None)
    given = [name for name in node.override_transformer_config if "pipeline" in str(name)]
    if layers is not None and layers % stages and not given:
        raise ValueError(
            f"{key}.pipeline_model_parallel_size: got {stages}, allowed: a divisor of the {layers}"
            f" layers of {model.path}, or {key}.override_transformer_config with a layout"
        )
    if node.context_parallel_size > 1 and model.config.model_type in CONTIGUOUS:
        raise ValueError(
            f"{key}.context_parallel_size: got {node.context_parallel_size}, allowed with a model"
            f" of type {model.config.model_type}: 1, because verl then shares out sequences in one"
            " piece each, and the candidates in two"
        )
