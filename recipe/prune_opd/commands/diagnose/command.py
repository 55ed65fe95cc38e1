"""Fit of a teacher to a student, before a training: where the two part, what it would save.

    python -m recipe.prune_opd diagnose STUDENT TEACHER --data train.parquet --max-response-length
    2048 --out report

STUDENT and TEACHER are local folders or hub names. The student answers some prompts of the data,
both models score the answers, and what is printed says how far their most likely tokens overlap, on
which tokens they part, how long responses stay reliable, and how many tokens training would
generate under which settings, with settings to paste. It needs the weights of both models, one
after the other, and uses a GPU where there is one.

Up to --prompts x --samples x --max-response-length tokens are sampled. On a CPU begin small:

    python -m recipe.prune_opd diagnose STUDENT TEACHER --data train.parquet --prompts 8
    --max-response-length 192

Responses that the student has already written can be taken instead with --rollouts FILE.jsonl, one
object a line: {"prompt": TEXT or MESSAGES, "response": TEXT} or {"prompt_ids": [...],
"response_ids": [...]}.

Whether the teacher's signal survives drift is told from the answers that it still reaches, where
the data has them (give the run's reward function with --reward-function), from another teacher
(--other-teacher) and from right solutions (--solutions).

docs/diagnose.md explains every number, and what the verdicts rest on.
"""

from recipe.prune_opd.commands.diagnose.arguments import Arguments


def run(args: Arguments) -> int:
    """Diagnose the pair and print.

    Raises:
        ValueError: an argument, a file or a model is not as it should be; names which.
    """
    args.check()
    # Both import torch, and the help of a command does without.
    from recipe.prune_opd.commands.diagnose.examination import diagnose
    from recipe.prune_opd.commands.diagnose.output import check_place, page_file, show, write
    from recipe.prune_opd.commands.terminal import as_json, say

    if args.out is not None:
        check_place(args.out)
    found = diagnose(args)
    # Printed first: where the disk is full, what was computed is not lost with the files.
    if args.json:
        say(as_json(found.answer))
    else:
        show(found.answer)
    if args.out is not None:
        write(found, args.out)
        if not args.json:
            say(f"\n{page_file(args.out)}")
    return 0
