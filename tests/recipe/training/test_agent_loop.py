"""A training response is limited, gated and scored; a validation response never is."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.config import GateConfig, PruneOPDConfig, TeacherConfig


@pytest.fixture(scope="module")
def agent_loop():
    """Our module, as verl's plugin loads it."""
    import sys

    from verl.experimental.agent_loop import agent_loop

    registered = agent_loop._agent_loop_registry["prune_opd"]["_target_"]
    assert registered == "recipe.prune_opd.training.agent_loop.LimitedAgentLoop"
    return sys.modules["recipe.prune_opd.training.agent_loop"]


PROMPT = 2
"""Tokens of a prompt."""


class Engine:
    """A client whose engine ends a response for a reason."""

    def __init__(self, stop_reason: str | None, max_model_len: int | None = None):
        self.stop_reason, self.max_model_len = stop_reason, max_model_len

    async def generate(self, request_id: str, *, prompt_ids: list[int]) -> TokenOutput:
        return TokenOutput(token_ids=[], stop_reason=self.stop_reason)


def run(
    agent_loop,
    monkeypatch,
    sampling_params: dict[str, Any],
    manager: Any = None,
    tokens: int = 3,
    **kwargs,
) -> tuple:
    """Sampling parameters, other arguments and server manager of verl's loop, and what it
    returned."""
    seen = []
    output = SimpleNamespace(
        prompt_ids=[0] * PROMPT, response_ids=[0] * tokens, extra_fields={"turn_scores": []}
    )

    async def stock(self, sampling_params, **kwargs):
        if isinstance(manager, Engine):
            await self.server_manager.generate("id", prompt_ids=output.prompt_ids)
        seen.append((sampling_params, kwargs, self.server_manager, output))
        return output

    monkeypatch.setattr(agent_loop.SingleTurnAgentLoop, "run", stock)
    loop = object.__new__(agent_loop.LimitedAgentLoop)
    loop.server_manager, loop.response_length = manager, 8
    loop.rollout_config = SimpleNamespace(max_model_len=getattr(manager, "max_model_len", None))
    assert asyncio.run(loop.run(sampling_params, **kwargs)) is output
    return seen[0]


@pytest.mark.parametrize("limit", [300, np.int64(300)])
def test_a_training_prompt_is_limited(agent_loop, monkeypatch, limit):
    shared = {"temperature": 1.0, "max_tokens": 4096}
    params, kwargs, *_ = run(
        agent_loop, monkeypatch, shared, raw_prompt=["p"], **{agent_loop.LIMIT: limit}
    )
    assert params == {"temperature": 1.0, "max_tokens": 300}
    assert type(params["max_tokens"]) is int
    assert kwargs == {"raw_prompt": ["p"]}
    assert shared == {"temperature": 1.0, "max_tokens": 4096}, (
        "one dict serves all samples of a prompt"
    )


def test_a_validation_prompt_is_not(agent_loop, monkeypatch):
    shared = {"temperature": 1.0}
    params, kwargs, *_ = run(agent_loop, monkeypatch, shared, raw_prompt=["p"], priority=3)
    assert params == {"temperature": 1.0}
    assert kwargs == {"raw_prompt": ["p"], "priority": 3}


class Teaching:
    """A ``TeachingClient`` that notes what it is to teach, and with which rows in hand."""

    def __new__(cls, agent_loop, gate: bool, home: str):
        class Client(agent_loop.TeachingClient):
            def __init__(self):
                teacher = TeacherConfig(path="T", home=home)
                self.prune_opd = PruneOPDConfig(
                    teacher=teacher, strategy="intersection", gate=GateConfig(enable=gate)
                )
                self.teaches = home != "worker_group"
                self.taught: list[tuple[Any, Any]] = []

            async def teach(self, output: Any, known: Any = None) -> None:
                self.taught.append((output, known))

        return Client()


@pytest.mark.parametrize("home", ["worker_group", "server"])
def test_a_training_prompt_alone_goes_through_the_gate(agent_loop, monkeypatch, home):
    client, limited = Teaching(agent_loop, True, home), {agent_loop.LIMIT: 300}
    first, second = (run(agent_loop, monkeypatch, {}, client, **limited)[2] for _ in range(2))
    assert isinstance(first, agent_loop.GatedGeneration)
    assert first is not second  # nothing is shared between responses
    assert type(run(agent_loop, monkeypatch, {}, client)[2]) is agent_loop.HeardGeneration
    assert run(agent_loop, monkeypatch, {}, "verl's own", **limited)[2] == "verl's own"
    without = Teaching(agent_loop, False, "server")
    assert run(agent_loop, monkeypatch, {}, without, **limited)[2] is without


@pytest.mark.parametrize("gate", [True, False])
def test_a_training_response_alone_is_scored_by_servers(agent_loop, monkeypatch, gate):
    client = Teaching(agent_loop, gate, "server")
    run(agent_loop, monkeypatch, {}, client)
    assert not client.taught
    output = run(agent_loop, monkeypatch, {}, client, **{agent_loop.LIMIT: 300})[3]
    assert client.taught == [(output, None)]


def test_with_a_worker_group_nothing_is_scored_by_servers(agent_loop, monkeypatch):
    client = Teaching(agent_loop, True, "worker_group")
    run(agent_loop, monkeypatch, {}, client, **{agent_loop.LIMIT: 300})
    assert not client.taught


def test_rows_the_gate_has_asked_for_are_passed_on(agent_loop, monkeypatch):
    async def stock(self, sampling_params, **kwargs):
        self.server_manager.teacher_rows = "rows of this response"
        return "output"

    client = Teaching(agent_loop, True, "server")
    loop = object.__new__(agent_loop.LimitedAgentLoop)
    monkeypatch.setattr(agent_loop.SingleTurnAgentLoop, "run", stock)
    loop.server_manager = client
    asyncio.run(loop.run({}, **{agent_loop.LIMIT: 300}))
    assert client.taught == [("output", "rows of this response")]


def test_an_error_of_the_rollout_is_not_taught(agent_loop, monkeypatch):
    async def stock(self, sampling_params, **kwargs):
        raise RuntimeError("engine died")

    client = Teaching(agent_loop, False, "server")
    loop = object.__new__(agent_loop.LimitedAgentLoop)
    monkeypatch.setattr(agent_loop.SingleTurnAgentLoop, "run", stock)
    loop.server_manager = client
    with pytest.raises(RuntimeError, match="engine died"):
        asyncio.run(loop.run({}, **{agent_loop.LIMIT: 300}))
    assert not client.taught


@pytest.mark.parametrize(
    ("reason", "max_model_len", "tokens", "truncated"),
    [
        ("length", None, 3, True),  # SGLang: the context was full
        ("length", None, 8, True),
        ("stop", None, 8, False),  # it ended with the last token it had
        ("stop", 5, 3, False),
        ("completed", None, 3, False),  # vLLM: either
        ("completed", None, 8, True),
        ("completed", PROMPT + 8, 3, False),
        ("completed", PROMPT + 5, 5, True),  # the context was full
        ("completed", PROMPT + 5, 4, False),
        (None, PROMPT + 5, 5, True),
        (None, None, 8, True),
    ],
)
def test_the_engine_says_what_is_cut(
    agent_loop, monkeypatch, reason, max_model_len, tokens, truncated
):
    engine = Engine(reason, max_model_len)
    assert (
        run(agent_loop, monkeypatch, {}, engine, tokens=tokens)[3].extra_fields["truncated"]
        is truncated
    )


def test_verls_own_loop_asks_through_what_hears(agent_loop):
    """verl's loop itself, whose output has no room for the reason."""
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

    class Client:
        async def generate(self, request_id: str, **arguments: Any) -> TokenOutput:
            return TokenOutput(token_ids=[5, 6, 7], stop_reason="length")

    loop = object.__new__(agent_loop.LimitedAgentLoop)
    assert issubclass(agent_loop.LimitedAgentLoop, SingleTurnAgentLoop)
    loop.server_manager, loop.response_length, loop.processor = Client(), 8, None
    loop.rollout_config = SimpleNamespace(max_model_len=None, full_determinism=False)
    loop.mm_processor_kwargs = {}

    async def build(messages, **kwargs):
        return [1, 2]

    async def merge(prompt_ids, token_ids, *rest, **kwargs):
        return SimpleNamespace(token_ids=prompt_ids + token_ids), [1] * len(token_ids), None

    async def media(messages):
        return {}

    loop.ct_build_initial_tokens, loop.ct_merge_assistant_token, loop.process_multi_modal_info = (
        build,
        merge,
        media,
    )
    loop.build_sglang_video_payload = lambda videos, inputs: None
    output = asyncio.run(loop.run({}, raw_prompt=[{"role": "user", "content": "1+1"}]))
    assert output.response_ids == [5, 6, 7]
    assert (output.extra_fields["response_tokens"], output.extra_fields["truncated"]) == (3, True)


@pytest.mark.parametrize(("tokens", "truncated"), [(3, False), (8, True)])
def test_validation_alone_says_how_long_a_response_is(agent_loop, monkeypatch, tokens, truncated):
    extra = run(agent_loop, monkeypatch, {}, tokens=tokens)[3].extra_fields
    assert extra == {"turn_scores": [], agent_loop.TOKENS: tokens, agent_loop.TRUNCATED: truncated}
    limited = run(agent_loop, monkeypatch, {}, tokens=tokens, **{agent_loop.LIMIT: 8})[3]
    assert limited.extra_fields == {"turn_scores": []}


def test_the_length_reaches_what_verl_dumps(agent_loop, monkeypatch, compose):
    """Through verl's reward manager, which loads our function from the configuration."""
    pytest.importorskip("math_verify")
    import torch
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = compose("+recipe=prune_opd_eval", "prune_opd.teacher.path=T")
    extra = run(agent_loop, monkeypatch, {}, tokens=8)[3].extra_fields
    batch = TensorDict(
        {
            "responses": torch.ones(1, 8, dtype=torch.int64),
            "attention_mask": torch.ones(1, 10, dtype=torch.int64),
        },
        batch_size=1,
    )
    row = {
        "data_source": "AIME24",
        "reward_model": {"ground_truth": "025"},
        "extra_info": {"index": "AIME24-1"},
        "tool_extra_fields": extra,
    }
    data = DataProto(
        batch=batch,
        non_tensor_batch={key: np.array([value], dtype=object) for key, value in row.items()},
    )
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: r"so \boxed{25}")

    async def grade():
        return await NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config)).run_single(
            data
        )

    loop = asyncio.new_event_loop()
    monkeypatch.setattr(
        "verl.experimental.reward_loop.reward_manager.base.get_event_loop", lambda: loop
    )
    found = loop.run_until_complete(grade())
    assert found["reward_score"] == 1.0
    assert found["reward_extra_info"] == {
        "score": 1.0,
        "acc": True,
        "pred": "25",
        "unread": "",
        "data_source": "AIME24",
        "tokens": 8,
        "truncated": True,
    }
