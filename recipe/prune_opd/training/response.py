"""A response, turn by turn, under its limit: what an agent loop asks for, and what answers.

Shapes: T tokens of a response.
"""

from dataclasses import dataclass
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.teacher.answers import NOTHING, Known

LIMITS = ("max_tokens", "max_new_tokens")
"""Names that verl's servers know for the most tokens of an answer."""


@dataclass(frozen=True)
class Request:
    """Arguments of a ``LLMServerClient.generate``."""

    request_id: str
    prompt_ids: list[int]
    sampling_params: dict[str, Any]
    more: dict[str, Any]

    def limited(self, room: int) -> "Request":
        """The same for at most ``room`` tokens. One dict of sampling parameters is shared by all
        samples of a prompt: copied, not changed."""
        given = self.sampling_params
        most = min([room, *(given[name] for name in LIMITS if given.get(name) is not None)])
        rest = {name: value for name, value in given.items() if name not in LIMITS}
        return Request(self.request_id, self.prompt_ids, {**rest, "max_tokens": most}, self.more)

    async def ask(self, client: Any) -> TokenOutput:
        """The client's answer."""
        output: TokenOutput = await client.generate(
            self.request_id,
            prompt_ids=self.prompt_ids,
            sampling_params=self.sampling_params,
            **self.more,
        )
        return output


class Response:
    """A prompt and all that follows it: turns of the student, and what tools answered.

    Args:
        client: has the ``generate`` of verl's ``LLMServerClient``.
        prompt_ids: of the first turn.
        limit: most tokens behind the prompt, those of tools included.
    """

    stop: int | None = None
    """Tokens to keep, once the response was stopped."""

    def __init__(self, client: Any, prompt_ids: list[int], limit: int):
        self.client, self.prompt_ids, self.limit = client, prompt_ids, limit
        self.tokens: list[int] = []
        """Tokens behind the prompt, T so far."""
        self._asked = prompt_ids
        self._busy = False

    def goes_on(self, prompt_ids: list[int]) -> bool:
        """Tell whether a prompt asks for the next turn. The last answer may be missing in it, in
        part or whole: loops take tokens back where messages meet."""
        return not self._busy and prompt_ids[: len(self._asked)] == self._asked

    async def generate(self, request: Request) -> TokenOutput:
        """Generate a turn, with the tokens that the turns before it left.

        Args:
            request: whose prompt is the whole sequence so far.
        """
        given = request.prompt_ids[len(self.prompt_ids) :]
        room = self.limit - len(given)
        if room < 1:
            return TokenOutput(token_ids=[], stop_reason="length")
        self._take_up(request.prompt_ids, given)
        self._busy = True
        try:
            output = await self._answer(request.limited(room))
        finally:
            self._busy = False
        self.tokens += output.token_ids
        return output

    def _take_up(self, prompt_ids: list[int], given: list[int]) -> None:
        """Begin a turn behind the tokens ``given`` after the first prompt."""
        pairs = enumerate(zip(self.tokens, given, strict=False))
        changed = (at for at, (one, other) in pairs if one != other)
        self._forget(next(changed, min(len(self.tokens), len(given))))
        self._asked, self.tokens = prompt_ids, given

    def _forget(self, kept: int) -> None:
        """Forget what is known of tokens from ``kept`` on."""

    async def _answer(self, request: Request) -> TokenOutput:
        return await request.ask(self.client)

    def is_of(self, output: AgentLoopOutput) -> bool:
        """Tell whether an output of an agent loop is this response, as far as it was generated
        here: tools may have the last word, and a loop may cut."""
        tokens = output.response_ids
        same = tokens[: len(self.tokens)] == self.tokens[: len(tokens)]
        return same and output.prompt_ids == self.prompt_ids

    def report_on(self, output: AgentLoopOutput) -> Known:
        """Put what was found out while the response grew into an output's ``extra_fields``, and
        return what there is of rows."""
        return NOTHING


def cut(output: AgentLoopOutput, most: int) -> None:
    """Shorten an output of an agent loop to its first ``most`` response tokens."""
    if len(output.response_ids) <= most:
        return
    output.response_ids, output.response_mask = (
        output.response_ids[:most],
        output.response_mask[:most],
    )
    if output.response_logprobs is not None:
        output.response_logprobs = output.response_logprobs[:most]
    if output.routed_experts is not None:
        output.routed_experts = output.routed_experts[: len(output.prompt_ids) + most]
