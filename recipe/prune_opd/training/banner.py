"""Banner of the trainer at start: what is on, who grades, and what will be slow."""

import logging

from recipe.prune_opd.config import QUESTIONS, GateConfig, PruneOPDConfig, SemiConfig, TeacherConfig
from recipe.prune_opd.method.budget import Budget
from recipe.prune_opd.teacher.home import Home

logger = logging.getLogger(__name__)


def announce(prune_opd: PruneOPDConfig, home: Home, budget: Budget, grader: str | None) -> None:
    """Print the banner, and warn of a gate that asks too often.

    Args:
        prune_opd: the configuration.
        home: of the teacher.
        budget: at its start.
        grader: the reward function that takes the place of verl's, which does not know the data.
    """
    longest = prune_opd.budget.longest
    print(banner(prune_opd, home, budget), flush=True)
    if prune_opd.gate.enable and (warning := chunk_warning(prune_opd.gate, longest)):
        logger.warning(warning)
    if grader:
        print(f"  scores    {grader}, as verl's has no rule for this data", flush=True)


def banner(prune_opd: PruneOPDConfig, home: Home, budget: Budget) -> str:
    """Say what is on, a line each."""
    drift, teacher, given = prune_opd.drift, prune_opd.teacher, prune_opd.budget
    papers = f"w_drop = {drift.w_drop}, w_base = {drift.w_base}"
    weights = papers if drift.weights == "reliability" else str(prune_opd.rules.weights)
    mode = prune_opd.trainer_mode
    lines = {
        **({"trainer": mode} if mode != "sync" else {}),
        "teacher": f"{_teachers(teacher)} ({home}, temperature {teacher.temperature})",
        **({"student": "as the rollout reports it"} if prune_opd.student == "rollout" else {}),
        "reward": f"{prune_opd.strategy}, {prune_opd.weighting}, k = {prune_opd.topk}",
        "drift": str(prune_opd.rules.metric),
        "weights": weights if drift.enable else "off: plain OPD",
        "budget": str(budget) if given.enable else f"off: fixed at {given.longest} tokens",
        "gate": _gate(prune_opd, budget),
        **({"rollouts": _rollouts(prune_opd.semi, home)} if prune_opd.semi.enable else {}),
    }
    return "\n".join(["Prune-OPD", *(f"  {name:<9} {line}" for name, line in lines.items())])


def _teachers(teacher: TeacherConfig) -> str:
    several = ", ".join(f"{name}: {path}" for name, path in teacher.models.items())
    return f"{several}, by {teacher.key}" if several else teacher.path


def _gate(prune_opd: PruneOPDConfig, budget: Budget) -> str:
    gate = prune_opd.gate
    if not gate.enable:
        return "off: responses end by themselves or at the limit"
    longest = prune_opd.budget.longest
    first, last = gate.chunk_for(budget.limit), gate.chunk_for(longest)
    grows = f", {last} at a limit of {longest}" if last > first else ""
    return f"{prune_opd.gate_rule}, every {first} tokens{grows}"


def _rollouts(semi: SemiConfig, home: Home) -> str:
    scores = "with" if home.cacheable else "without"
    bounds = {"below": semi.overlap_below, "above": semi.overlap_above}
    given = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
    live = f"live once the overlap is {' or '.join(given)}" if given else "never live"
    return f"of the starting student, cached {scores} the teacher's scores in {semi.dir}; {live}"


def chunk_warning(gate: GateConfig, limit: int) -> str | None:
    """Say what is wrong with a given chunk that is small for responses of at most ``limit`` tokens.

    Small: more than twice the questions that a chosen one would ask at most.
    """
    asked = limit // gate.chunk_for(limit)
    if asked <= 2 * QUESTIONS:
        return None
    chosen = gate.changed(chunk=None).chunk_for(limit)
    return (
        f"prune_opd.gate.chunk: {gate.chunk} is small for responses of up to {limit} tokens: one"
        f" asks its teacher {asked} times, each time sends all tokens so far, and a token is sent"
        f" {asked // 2} times on average; null would take {chosen}"
    )
