"""Any agent loop of verl's or of the user's, put under the method.

verl's workers are given this one for every prompt. It runs the loop that the row or the run names:
a training response under the budget's limit, with the gate, and scored by teacher servers, or one
out of the cache of Semi-OPD; a validation response as it would have been.
"""

import asyncio
import functools
from typing import Any, TypeAlias

import hydra
from omegaconf import Container, DictConfig, open_dict
from pydantic import PrivateAttr
from torch import Tensor
from typing_extensions import Self
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopOutput,
    DictConfigWrap,
    _agent_loop_registry,
    register,
)
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.checks.agent_loops import WRAPPER
from recipe.prune_opd.grading import TOKENS, TRUNCATED
from recipe.prune_opd.teacher.client import RoutingClient, TeachingClient
from recipe.prune_opd.training.fields import INNER, LIMIT, TEACHER
from recipe.prune_opd.training.replayed_response import PLACES, Replay
from recipe.prune_opd.training.trajectory import Trajectory

COPIES = 64
"""Configurations that a worker keeps, one for a limit: to copy one takes a tenth of a second."""

Outputs: TypeAlias = AgentLoopOutput | list[AgentLoopOutput]
"""verl takes either of an agent loop."""


class HeardGeneration:
    """The one method of ``LLMServerClient`` that agent loops call, and why the engine ended the
    last turn."""

    def __init__(self, client: Any):
        self._client = client
        self.stop_reason: str | None = None

    async def generate(self, *args: Any, **kwargs: Any) -> TokenOutput:
        """See ``LLMServerClient.generate``."""
        output = await self._client.generate(*args, **kwargs)
        self.stop_reason = output.stop_reason
        return output


class TaughtOutput(AgentLoopOutput):
    """An output with the teacher's rows, which become fields of its row and nothing else.

    verl hands ``extra_fields`` to the reward function, too: values of (response, K) tokens are no
    part of them.
    """

    _rows: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, output: AgentLoopOutput, rows: dict[str, Tensor]) -> Self:
        """The same output with rows, (R, K) or (R, K + 1) by their fields' names."""
        made = cls.model_construct(_fields_set=set(output.model_fields_set), **vars(output))
        made._rows = rows
        return made

    def as_dict(self) -> dict[str, Any]:
        """See ``AgentLoopOutput.as_dict``."""
        return super().as_dict() | self._rows


def is_cut(stop_reason: str | None, tokens: int, room: int) -> bool:
    """Tell whether a response was cut, as the engine says it.

    verl's SGLang server passes on ``stop`` and ``length``. Its vLLM server says ``completed`` for
    both, so there, and where nothing is said, a response counts as cut that fills its room.

    Args:
        stop_reason: of verl's ``TokenOutput``.
        tokens: of the response.
        room: most tokens that the engine could generate.
    """
    if stop_reason in ("stop", "length"):
        return stop_reason == "length"
    return tokens >= room


@register(WRAPPER)
class PrunedAgentLoop:
    """An agent loop around another, which it makes for every response anew, as verl would.

    Args:
        trainer_config: verl's configuration, wrapped.
        server_manager: client of the rollout servers.
        **given: what verl gives every agent loop beside these.
    """

    def __init__(self, trainer_config: DictConfigWrap, server_manager: Any, **given: Any):
        self.config, self.client, self.given = trainer_config.config, server_manager, given

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Outputs:
        """Run the loop within. See ``AgentLoopBase.run``.

        Args:
            sampling_params: see there.
            **kwargs: fields of the prompt's row. ``LIMIT`` makes it one of training.
        """
        own = (LIMIT, PLACES, INNER, TEACHER)
        limit, places, inner, teacher = (kwargs.pop(name, None) for name in own)
        name = inner or self.config.actor_rollout_ref.agent_loop
        if limit is None:
            return await self._validate(name, sampling_params, kwargs)
        client = self._client(teacher)
        client = client if places is None else Replay(places, kwargs["session_id"])
        async with Trajectory(client, limit) as trajectory:
            trajectory.loop = self._make(name, trajectory, limited(self.config, int(limit)))
            found = await trajectory.loop.run(sampling_params, **kwargs)
        outputs = found if isinstance(found, list) else [found]
        taught = await asyncio.gather(*(finish(output, trajectory) for output in outputs))
        return taught if isinstance(found, list) else taught[0]

    def _client(self, teacher: Any) -> Any:
        """Client that reaches the teacher of a row, given by its place among several."""
        routes = isinstance(self.client, RoutingClient)
        return self.client.of(int(teacher)) if routes else self.client

    def _make(self, name: str, client: Any, config: DictConfig) -> Any:
        registered = _agent_loop_registry[name]
        given = {"trainer_config": DictConfigWrap(config), "server_manager": client, **self.given}
        if any(isinstance(value, dict | list | Container) for value in registered.values()):
            return hydra.utils.instantiate(registered, **given)  # has objects of its own: anew
        return _made(_Same(registered))(**given)

    async def _validate(
        self, name: str, sampling_params: dict[str, Any], kwargs: dict[str, Any]
    ) -> Outputs:
        generation, rollout = HeardGeneration(self.client), self.config.actor_rollout_ref.rollout
        loop = self._make(name, generation, self.config)
        found: Outputs = await loop.run(sampling_params, **kwargs)
        for output in found if isinstance(found, list) else [found]:
            tokens, room = len(output.response_ids), rollout.response_length
            if rollout.max_model_len is not None:
                room = min(room, rollout.max_model_len - len(output.prompt_ids))
            # verl hands these to the reward function as part of extra_info; its dumps hold the
            # decoded text alone.
            output.extra_fields.update(
                {TOKENS: tokens, TRUNCATED: is_cut(generation.stop_reason, tokens, room)}
            )
        return found


async def finish(output: AgentLoopOutput, trajectory: Trajectory) -> AgentLoopOutput:
    """An output within its limit, reported on, and with the rows of teacher and student where
    servers give them."""
    known, client = trajectory.finish(output), trajectory.client
    rows: dict[str, Tensor] = {}
    if isinstance(client, Replay):
        rows = client.teach()
    elif isinstance(client, TeachingClient) and (client.teaches or client.student_tells):
        rows = await client.teach(output, known)
    return TaughtOutput.of(output, rows) if rows else output


def limited(config: DictConfig, limit: int) -> DictConfig:
    """verl's configuration for a rollout of ``limit`` tokens: loops look there for their length."""
    return _limited(_Same(config), limit)


class _Same:
    """Key of a cache: a configuration is itself, whatever it says."""

    def __init__(self, config: Any):
        self.config = config

    def __hash__(self) -> int:
        return id(self.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.config is self.config


@functools.lru_cache(maxsize=COPIES)
def _limited(same: _Same, limit: int) -> DictConfig:
    config = same.config.copy()
    with open_dict(config):
        config.actor_rollout_ref.rollout.response_length = limit
    return config


@functools.lru_cache(maxsize=COPIES)
def _made(same: _Same) -> functools.partial[Any]:
    """What makes a loop. Hydra merges all that it is given, for every response, which takes ten
    times as long as making the loop."""
    maker: functools.partial[Any] = hydra.utils.instantiate(same.config, _partial_=True)
    return maker
