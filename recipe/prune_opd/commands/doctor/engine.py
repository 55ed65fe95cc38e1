"""Finding about the rollout engine: its log-probs against those of transformers."""

from collections.abc import Sequence
from typing import Any

import torch

from recipe.prune_opd.checks.files import reason_of
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.doctor.arguments import Arguments
from recipe.prune_opd.commands.pair.engines import TITLES, Answer, Engine, ask, installed
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding
from recipe.prune_opd.commands.pair.sampling import Rollout, Sampling
from recipe.prune_opd.commands.pair.scoring import sampled_log_probs

NAME = "rollout engine"
CLOSE, FAR = 0.05, 0.5
"""Mean difference of log-probs: ordinary rounding up to the first, other weights or another model
from the second."""


def rollout_engine(
    model: Any, student: Model, prompts: Sequence[list[int]], args: Arguments
) -> Finding:
    """Start the rollout engine, and compare its log-probs with those of the same weights here.

    Args:
        model: the student in ``args.dtype``.
        student: where its weights are.
        prompts: ids that the engine answers.
        args: of the command.
    """
    if not args.engine:
        return Finding(NAME, SKIPPED, "not checked: --engine starts vLLM or SGLang and compares")
    title = "an engine"
    try:
        used = installed()
        title = TITLES[used]
        answers = _answers(used, model, student, prompts, args)
    except ImportError as error:
        change = "install one of them, or leave --engine out"
        return Finding(NAME, WARNING, f"neither vLLM nor SGLang can be imported ({error})", change)
    except Exception as error:  # whatever it is, the other findings are wanted
        change = "the rollout would end the same way: its log on standard error says more"
        return Finding(NAME, ERROR, f"{title} does not run: {reason_of(error)}", change)
    return compare(model, prompts, answers, title)


def _answers(
    used: str, model: Any, student: Model, prompts: Sequence[list[int]], args: Arguments
) -> list[Answer]:
    """Ask the engine. It takes most of a GPU: the student's other copy leaves it meanwhile."""
    model.to("cpu")
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
    engine = Engine(used, student.path, args.dtype, args.trust_remote_code)
    answers = ask(engine, prompts, Sampling(args.tokens, frozenset(student.ends)))
    model.to(args.device)
    return answers


def compare(
    model: Any, prompts: Sequence[list[int]], answers: Sequence[Answer], title: str
) -> Finding:
    """Compare an engine's log-probs of its own responses with the model's.

    Args:
        model: in transformers.
        prompts: ids.
        answers: of the engine to each.
        title: its name for a reader.
    """
    differences = torch.cat(
        [
            sampled_log_probs(model, Rollout(i, ids, answer.token_ids))
            - torch.tensor(answer.log_probs)
            for i, (ids, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
    ).abs()
    mean, most = float(differences.mean()), float(differences.max())
    evidence = (
        f"log-probs of {len(differences)} tokens by {title} differ by {mean:.3f} on average,"
        f" {most:.3f} at most"
    )
    if mean < CLOSE:
        return Finding(NAME, OK, evidence)
    change = (
        "the engine runs other weights or another precision than the trainer: compare dtype,"
        " quantisation, versions"
    )
    return Finding(NAME, WARNING if mean < FAR else ERROR, evidence, change)
