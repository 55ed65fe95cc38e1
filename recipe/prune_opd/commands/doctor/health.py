"""Findings about a pair of models and its data, in the order they are told."""

from recipe.prune_opd.commands.doctor.arguments import Arguments
from recipe.prune_opd.commands.doctor.prompts import chat_template, prompts, tokenization
from recipe.prune_opd.commands.doctor.stored import memory, padding, stored_dtype
from recipe.prune_opd.commands.doctor.weights import weights
from recipe.prune_opd.commands.pair.findings import Finding
from recipe.prune_opd.commands.pair.fit import context, end_tokens, token_ids, vocabulary
from recipe.prune_opd.commands.pair.models import Pair, check_device


def examine(args: Arguments) -> list[Finding]:
    """Look for everything.

    Args:
        args: the pair, its data, and what the run is to be.

    Raises:
        ValueError: a path holds no model configuration with tokenizer, or there is no such device.
    """
    check_device(args.device)
    pair = Pair.read(args.student, args.teacher, args.trust_remote_code)
    data, messages, kinds = prompts(pair.student, args)
    first = messages[:3]
    findings = [
        vocabulary(pair, args.topk),
        token_ids(pair),
        tokenization(pair, messages),
        end_tokens(pair),
        padding(pair.student),
        chat_template(pair, first + [kind for kind in kinds if kind not in first], args.template),
        context(pair, args.longest),
        data,
        stored_dtype(pair, args.dtype),
        memory(pair, args),
    ]
    return findings + weights(pair, first, args)
