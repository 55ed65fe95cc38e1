"""A training response out of the cache of Semi-OPD, in the place of one that is generated."""

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.teacher.answers import served
from verl_ext.rollout.cache import CachedResponse, Place, read_response

PLACES = "prune_opd_places"
"""Batch field, text: where the cached responses to a prompt are, by their number."""
REPLAYED = "completed"
"""Stop reason that verl's vLLM server gives a response."""

OF_THE_START = {"min_global_steps": 0, "max_global_steps": 0}
"""Versions of the weights that generated it, as verl's client reports them; verl logs their age."""


def write_places(places: Sequence[Place]) -> str:
    """``PLACES`` of a prompt: a list of lists would not stay one on the way."""
    return json.dumps(places)


class Replay:
    """The one method of ``LLMServerClient`` that agent loops call, answered out of the cache.

    Args:
        places: ``PLACES`` of the prompt.
        sample: number of the response.
    """

    def __init__(self, places: str, sample: int):
        self._place = Place(*json.loads(places)[sample])
        self._response: CachedResponse | None = None

    async def generate(
        self,
        request_id: str,
        *,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        **kwargs: Any,
    ) -> TokenOutput:
        """See ``LLMServerClient.generate``; ``max_tokens`` must be given. A longer response is cut
        there, as it would have been by the rollout.

        Raises:
            ValueError: the file is damaged, or holds the response to other tokens.
        """
        found = read_response(self._place)
        if found.prompt.tolist() != list(prompt_ids):
            raise ValueError(
                f"{self._place.file}, response {self._place.row} is to a prompt of other tokens: is"
                " the agent loop of your own, or does the chat template depend on the date?"
            )
        self._response = found.first(sampling_params["max_tokens"])
        log_probs = self._response.log_probs
        wanted = sampling_params.get("logprobs") and log_probs is not None
        return TokenOutput(
            token_ids=self._response.tokens.tolist(),
            log_probs=log_probs.tolist() if wanted and log_probs is not None else None,
            stop_reason=REPLAYED,
            extra_fields=dict(OF_THE_START),
        )

    def teach(self) -> dict[str, Tensor]:
        """The teacher's cached rows, if there are any, as its servers would answer."""
        assert self._response is not None
        response = self._response
        if response.teacher is None:
            return {}
        return served(response.tokens.tolist(), response.teacher, response.teacher_sampled)
