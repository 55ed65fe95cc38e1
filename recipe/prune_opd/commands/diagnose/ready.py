"""Responses that the student has already written, read from a file, as docs/diagnose.md says."""

from typing import Any

from recipe.prune_opd.checks.data import is_chat
from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.commands.diagnose.arguments import Arguments
from recipe.prune_opd.commands.diagnose.questions import Question
from recipe.prune_opd.commands.files import json_lines
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.prompts import prompt_ids
from recipe.prune_opd.commands.pair.sampling import Rollout


def read_rollouts(args: Arguments, pair: Pair) -> tuple[list[Rollout], list[Question]]:
    """Read ``--rollouts``, one JSON object a line: responses, and the question of each.

    Args:
        args: file, longest response, settings of the chat template.
        pair: whose tokens they are.

    Raises:
        ValueError: the file is empty, or a line is not as it should be; names the line.
    """
    assert args.rollouts is not None
    rollouts, questions, numbers = [], [], dict[tuple[int, ...], int]()
    for where, row in json_lines("--rollouts: ", args.rollouts):
        if not isinstance(row, dict):
            raise ValueError(f"{where} holds {str(row)[:60]!r}, allowed: a JSON object")
        line = _Line(where, row, pair, args.template)
        prompt, response = line.prompt(), line.response()
        group = numbers.setdefault(tuple(prompt), len(numbers))
        rollouts.append(Rollout(group, prompt, response[: args.max_response_length]))
        questions.append(line.question(prompt))
    if not rollouts:
        raise ValueError(f"--rollouts: {args.rollouts} holds no responses")
    return rollouts, questions


class _Line:
    """Line of the file.

    Args:
        where: it is, for messages.
        row: what it holds.
        pair: whose tokens.
        template: settings of the chat template.
    """

    def __init__(self, where: str, row: dict[str, Any], pair: Pair, template: dict[str, Any]):
        self.where, self.row, self.template = where, row, template
        self.student: Model = pair.student
        self.vocabulary = pair.vocabulary

    def prompt(self) -> list[int]:
        """Ids of the prompt, at least one."""
        ids = self._ids("prompt")
        if ids is None and is_chat(self.row.get("prompt")):
            try:
                ids = prompt_ids(self.student, self.row["prompt"], self.template)
            except (TypeError, UnicodeError) as error:  # half a surrogate pair
                raise self._unknown("prompt", ", or as a list of messages in Unicode") from error
        if ids is None:
            raise self._unknown("prompt", ", or as a list of messages")
        if not ids:
            raise ValueError(f"{self.where} has an empty prompt, allowed: at least one token")
        return ids

    def response(self) -> list[int]:
        """Ids of the response, at least one, its end put behind a text that ended."""
        ids, student = self._ids("response"), self.student
        if ids is None:
            raise self._unknown("response")
        if "response_ids" not in self.row and self.row.get("ended", True) and student.ends:
            own = student.tokenizer.eos_token_id
            ids = [*ids, own if own in student.ends else min(student.ends)]
        if not ids:
            raise ValueError(f"{self.where} has an empty response, allowed: at least one token")
        return ids

    def question(self, prompt: list[int]) -> Question:
        """Question with what the line knows of its answer."""
        source, extra = self.row.get("data_source"), self.row.get("extra_info")
        return Question(
            prompt,
            source if isinstance(source, str) else None,
            self.row.get("ground_truth"),
            extra if isinstance(extra, dict) else None,
        )

    def _ids(self, name: str) -> list[int] | None:
        """Ids of ``name`` or of its text; None where neither is there."""
        if f"{name}_ids" in self.row:
            return self._known(f"{name}_ids")
        text = self.row.get(name)
        if not isinstance(text, str):
            return None
        try:
            return self.student.tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeError) as error:  # half a surrogate pair
            raise ValueError(
                f"{self.where}: got {name} = {text!r:.60}, allowed: text in Unicode"
            ) from error

    def _known(self, key: str) -> list[int]:
        """Ids as they are given, all of them known to both models."""
        ids, most = self.row[key], self.vocabulary
        if not (isinstance(ids, list) and all(type(i) is int and 0 <= i < most for i in ids)):
            raise ValueError(
                f"{self.where}, {key}: got {str(ids)[:60]}, allowed: a list of ids from 0 to"
                f" {most - 1}"
            )
        return ids

    def _unknown(self, name: str, more: str = "") -> ValueError:
        """Error for a line without ``name`` in a form that can be read."""
        keys = f"the keys {', '.join(self.row) or 'none'}"
        found = f"{name} = {str(self.row[name])[:60]!r}" if name in self.row else keys
        return ValueError(
            f"{self.where}: got {found}, allowed: {name}_ids as ids, or {name} as text{more}"
        )
