"""Drift weights in verl's own on-policy distillation: verl's top-k loss times the paper's L.

With ``distillation.distillation_loss.loss_mode=drift_weights`` verl trains on L_t times its forward
KL on the teacher's top k. Its logits pass counts how many of them the student's top k shares, on
FSDP, VeOmni and Megatron alike; nothing else of this package takes part.

Shapes: B sequences, T response positions.
"""

from dataclasses import dataclass
from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.trainer.distillation.losses import (
    DistillationLossSettings,
    compute_forward_kl_topk,
    register_distillation_loss,
)
from verl.workers.config import ActorConfig, DistillationConfig, DistillationLossConfig
from verl.workers.utils.padding import no_padding_2_padding

from recipe.prune_opd.checks.numbers import COUNT, NOT_NEGATIVE, SHARE
from recipe.prune_opd.method.drift import overlap_events, reliability

NAME = "drift_weights"
"""The loss in verl's registry, and the recipe."""


@dataclass
class DriftWeightsLossConfig(DistillationLossConfig):
    """Node ``distillation.distillation_loss`` of verl's configuration, with the weights' keys.

    Importing it registers the loss: every process that builds the node has both.
    """

    loss_mode: str = NAME
    topk: int | None = 16
    """k of both models."""
    threshold: float = 0.7
    """γ: an overlap below it is an event."""
    w_drop: float = 0.01
    """Weight lost per event."""
    w_base: float = 0.5
    """Weight added on every generated token."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: one is out of its range.
        """
        super().__post_init__()
        ranges = {"topk": COUNT, "threshold": SHARE, "w_drop": NOT_NEGATIVE, "w_base": NOT_NEGATIVE}
        for name, allowed in ranges.items():
            if not allowed.allows(getattr(self, name)):
                raise ValueError(
                    f"distillation.distillation_loss.{name}: got {getattr(self, name)!r}, allowed:"
                    f" {allowed.words}"
                )


@register_distillation_loss(DistillationLossSettings(names=[NAME], use_topk=True))
def drift_weighted_forward_kl(
    config: ActorConfig,
    distillation_config: DistillationConfig,
    model_output: dict[str, Tensor],
    data: TensorDict,
) -> tuple[Tensor, dict[str, Any]]:
    """Weigh verl's forward KL of each token by how far its response has drifted before.

    Args:
        config: verl's, of the actor.
        distillation_config: its ``distillation_loss`` is a ``DriftWeightsLossConfig``.
        model_output: jagged (B, prompt + response), what verl's top-k pass returned.
        data: the micro-batch.

    Returns:
        L times the losses, (B, T) float32, and what is logged.
    """
    losses, metrics = compute_forward_kl_topk(config, distillation_config, model_output, data)
    settings = distillation_config.distillation_loss
    assert isinstance(settings, DriftWeightsLossConfig)
    assert settings.topk is not None
    mask = data["response_mask"].bool()
    mask = mask.to_padded_tensor(False) if mask.is_nested else mask
    overlap = no_padding_2_padding(model_output["overlap_count"], data) / settings.topk
    events = overlap_events(overlap, mask, settings.threshold)
    found = reliability(events, mask, settings.w_drop, settings.w_base)
    shown = {
        "event_rate": events,
        "loss_weight": found.loss_weight,
        "zero_weight_ratio": found.weight == 0,
    }
    measures = {
        f"distillation/{name}": values[mask].float().mean().item() for name, values in shown.items()
    }
    return losses * found.loss_weight, metrics | measures
