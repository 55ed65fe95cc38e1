"""What cannot go with ``+recipe=drift_weights``, asked before Ray starts.

docs/drift_weights.md lists every refusal.
"""

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.checks.numbers import ACTOR, COUNT
from recipe.prune_opd.checks.settings import SHOW_LOGITS, Setting, check_allowed

LOSS = "distillation.distillation_loss"
TARGET = "recipe.prune_opd.training.drift_weights.DriftWeightsLossConfig"

DRIFT_WEIGHTS_SETTINGS = (
    Setting("distillation.enabled", (True,), "the weights are those of verl's distillation loss"),
    Setting(f"{LOSS}._target_", (TARGET,), "the weights' keys are this class's"),
    Setting(f"{LOSS}.loss_mode", ("drift_weights",), "verl's other losses are not weighted"),
    Setting(
        f"{ACTOR}.strategy",
        SHOW_LOGITS,
        "verl counts the overlap on the logits of these engines alone",
    ),
    Setting(
        "actor_rollout_ref.model.use_fused_kernels",
        (False,),
        "fused kernels never show the logits",
    ),
    Setting(
        f"{ACTOR}.pad_to_length",
        (False, None),
        "verl's top-k pass takes no padded logits",
    ),
)


def check_drift_weights(config: DictConfig) -> None:
    """Check verl's configuration, and build its ``distillation`` node as verl will.

    Args:
        config: verl's composed configuration.

    Raises:
        ValueError: the first key that is not allowed, what it holds, what is allowed and why; or
            verl's own words.
    """
    from verl.utils.config import omega_conf_to_dataclass

    check_allowed(config, DRIFT_WEIGHTS_SETTINGS, "drift_weights")
    for name in ("n_gpus_per_node", "nnodes"):
        if not COUNT.allows(found := config.distillation[name]):
            raise ValueError(
                f"distillation.{name}: got {found!r}, allowed: {COUNT.words}, because the teacher"
                " has devices of its own"
            )
    _check_teachers(config.distillation.teacher_models)
    try:
        omega_conf_to_dataclass(config.distillation)
    except InstantiationException as error:
        raise ValueError(str(error.__cause__)) from error


def _check_teachers(models: DictConfig) -> None:
    """Each teacher needs its files, and with several its key."""
    names = [str(name) for name in models if len(models) == 1 or name != "teacher_model"]
    for name in names:
        for key in ("model_path", "key")[: 1 if len(names) == 1 else 2]:
            if not OmegaConf.select(models, f"{name}.{key}"):
                raise ValueError(
                    f"distillation.teacher_models.{name}.{key}: got no value, allowed: a text"
                )
