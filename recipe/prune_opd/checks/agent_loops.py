"""Agent loops that a run names: for all prompts, or each row of the data its own."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.prune_opd.config import PruneOPDConfig, shown

WRAPPER = "prune_opd"
"""Name of our agent loop in verl's registry, which is put around the others."""
AGENT_NAME = "agent_name"
"""Column by which a row names its agent loop."""
SINGLE_TURN = "single_turn_agent"
OF_VERL = (SINGLE_TURN, "tool_agent")
"""Those that verl registers; to look others up, its package is imported, which takes seconds."""
KEY = "actor_rollout_ref.rollout.agent.default_agent_loop"


def known_agent_loops(config: DictConfig) -> list[str]:
    """Names of the agent loops that a run can take, in order.

    Args:
        config: verl's composed configuration.
    """
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.utils.import_utils import resolve_config_path

    names, file = set(_agent_loop_registry), config.actor_rollout_ref.rollout.agent
    if file.agent_loop_config_path:
        loops: Any = OmegaConf.load(resolve_config_path(file.agent_loop_config_path))
        names |= {loop.name for loop in loops}
    return sorted(names - {WRAPPER})


def agent_loop_fault(config: DictConfig, name: Any) -> str | None:
    """Fault of a name, and what is allowed; None where there is an agent loop of it.

    Args:
        config: verl's composed configuration.
        name: of a row, or of the run.
    """
    if name in OF_VERL:
        return None
    known = known_agent_loops(config)
    if name in known:
        return None
    return (
        f"allowed: {', '.join(known)}, or one that is registered with verl in"
        " actor_rollout_ref.rollout.agent.agent_loop_config_path; the response limit is put around"
        " any"
    )


def check_agent_loop(config: DictConfig, prune_opd: PruneOPDConfig) -> None:
    """Check that there is the agent loop that a run names.

    Args:
        config: verl's composed configuration.
        prune_opd: the typed part of it.

    Raises:
        ValueError: there is none, or its responses cannot be cached.
    """
    name = config.actor_rollout_ref.rollout.agent.default_agent_loop
    fault = agent_loop_fault(config, name)
    if fault:
        raise ValueError(f"{KEY}: got {shown(name)}, {fault}")
    if prune_opd.semi.enable and name != SINGLE_TURN:
        raise ValueError(
            f"{KEY}: got {shown(name)}, allowed with prune_opd.semi.enable: {SINGLE_TURN}, because"
            " a cached response is one turn"
        )
