"""Any agent loop is limited, gated and scored in training, and left as it is in validation."""

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopMetrics,
    AgentLoopOutput,
    DictConfigWrap,
    _agent_loop_registry,
)
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.config import GateConfig, PruneOPDConfig, TeacherConfig
from recipe.prune_opd.teacher.answers import NOTHING, SERVED_IDS
from recipe.prune_opd.teacher.client import SCORE_REPORT, TeachingClient
from recipe.prune_opd.training import agent_loop
from recipe.prune_opd.training.agent_loop import INNER, LIMIT, PrunedAgentLoop, TaughtOutput
from recipe.prune_opd.training.gated_response import GatedResponse

PROMPT = [900, 901]


class Engine:
    """A client whose engine gives tokens up to its limit, and ends a response for a reason."""

    def __init__(self, tokens: int = 3, stop_reason: str | None = None):
        self.tokens, self.stop_reason = list(range(tokens)), stop_reason
        self.asked: list[dict[str, Any]] = []

    async def generate(
        self,
        request_id: str,
        *,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        **more: Any,
    ) -> TokenOutput:
        self.asked.append({"prompt_ids": prompt_ids, **sampling_params, **more})
        most = sampling_params.get("max_tokens")
        return TokenOutput(token_ids=self.tokens[:most], stop_reason=self.stop_reason)


class Inner:
    """An agent loop of a user's: one turn, or one for each prompt of a list of outputs."""

    made: ClassVar[list["Inner"]] = []

    def __init__(self, trainer_config: Any, server_manager: Any, **given: Any):
        self.config, self.client, self.given = trainer_config.config, server_manager, given
        self.made.append(self)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        self.asked_for = kwargs
        prompts = kwargs.get("prompts")
        found = [await self.turn(sampling_params, prompt) for prompt in prompts or [PROMPT]]
        return found if prompts else found[0]

    async def turn(self, sampling_params: dict[str, Any], prompt: list[int]) -> AgentLoopOutput:
        output = await self.client.generate(
            "id", prompt_ids=prompt, sampling_params=sampling_params
        )
        tokens = [*output.token_ids, *self.tail]
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=tokens,
            response_mask=[1] * len(output.token_ids) + [0] * len(self.tail),
            response_logprobs=[0.0] * len(tokens),
            metrics=AgentLoopMetrics(),
        )

    tail: tuple[int, ...] = ()
    """Tokens of a tool, which has the last word."""


class Talkative(Inner):
    """Another of a user's, whose tool says more than there is room for."""

    tail = (7,) * 20


@pytest.fixture(autouse=True)
def loops(monkeypatch):
    """Both in verl's registry, and those that were made."""
    for name, loop in {"inner": Inner, "talkative": Talkative}.items():
        target = {"_target_": f"{__name__}.{loop.__name__}"}
        monkeypatch.setitem(_agent_loop_registry, name, target)
    Inner.made.clear()
    return Inner.made


def config_of(max_model_len: int | None = None) -> Any:
    rollout = {"response_length": 8, "max_model_len": max_model_len}
    return OmegaConf.create({"actor_rollout_ref": {"agent_loop": "inner", "rollout": rollout}})


def run(client: Any, config: Any = None, params: Any = None, **kwargs: Any) -> Any:
    """Output of the wrapper, made as verl's worker makes it."""
    given = DictConfigWrap(config or config_of())
    loop = PrunedAgentLoop(
        trainer_config=given, server_manager=client, tokenizer="T", tools="tools"
    )
    return asyncio.run(loop.run({"temperature": 1.0} if params is None else params, **kwargs))


def test_verls_worker_makes_the_wrapper_of_its_registry():
    target = _agent_loop_registry["prune_opd"]["_target_"]
    assert target == "recipe.prune_opd.training.agent_loop.PrunedAgentLoop"


# ---------------------------------------------------------------------------------- the loop within


def test_objects_that_a_loop_is_registered_with_are_made_for_every_response(monkeypatch, loops):
    """A list of its own, say, which it may change."""
    registered = {"_target_": f"{__name__}.Inner", "notes": {"_target_": "builtins.list"}}
    monkeypatch.setitem(_agent_loop_registry, "inner", registered)
    run(Engine(), **{LIMIT: 300})
    run(Engine(), **{LIMIT: 300})
    first, second = (loop.given["notes"] for loop in loops)
    assert first == second == []
    assert first is not second


def test_the_loop_within_is_the_runs_or_the_rows_own(loops):
    run(Engine(), **{LIMIT: 300})
    run(Engine(), **{LIMIT: 300, INNER: "talkative"})
    run(Engine())
    assert [type(loop) for loop in loops] == [Inner, Talkative, Inner]
    assert all(loop.given == {"tokenizer": "T", "tools": "tools"} for loop in loops)


def test_it_sees_its_rows_fields_and_none_of_ours(loops):
    run(Engine(), raw_prompt=["p"], session_id=3, **{LIMIT: 300, INNER: "inner"})
    run(Engine(), raw_prompt=["p"], priority=3)
    assert [loop.asked_for for loop in loops] == [
        {"raw_prompt": ["p"], "session_id": 3},
        {"raw_prompt": ["p"], "priority": 3},
    ]


def test_it_sees_the_limit_where_it_looks_for_its_length(loops):
    config = config_of()
    for limit in (3, np.int64(5), torch.tensor(3)):
        run(Engine(), config, **{LIMIT: limit})
    run(Engine(), config)
    found = [loop.config.actor_rollout_ref.rollout.response_length for loop in loops]
    assert found == [3, 5, 3, 8]
    assert loops[0].config is loops[2].config  # a copy of verl's takes a tenth of a second


@pytest.mark.parametrize("limit", [2, np.int64(2), torch.tensor(2)])
def test_a_training_prompt_is_limited(limit):
    shared, engine = {"temperature": 1.0, "max_tokens": 4096}, Engine()
    output = run(engine, params=shared, **{LIMIT: limit})
    assert engine.asked == [{"prompt_ids": PROMPT, "temperature": 1.0, "max_tokens": 2}]
    assert type(engine.asked[0]["max_tokens"]) is int
    assert output.response_ids == [0, 1]
    assert shared == {"temperature": 1.0, "max_tokens": 4096}, "one dict serves all samples"


@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])
def test_a_loop_may_ask_for_less(name):
    engine = Engine()
    run(engine, params={name: 1}, **{LIMIT: 2})
    assert engine.asked == [{"prompt_ids": PROMPT, "max_tokens": 1}]


def test_a_validation_prompt_is_not_limited():
    engine = Engine()
    run(engine, raw_prompt=["p"])
    assert engine.asked == [{"prompt_ids": PROMPT, "temperature": 1.0}]


def test_whatever_a_loop_returns_is_cut_to_the_limit():
    output = run(Engine(), **{LIMIT: 9, INNER: "talkative"})
    assert output.response_ids == [0, 1, 2, 7, 7, 7, 7, 7, 7]
    assert output.response_mask == [1, 1, 1] + [0] * 6
    assert len(output.response_logprobs) == 9


def test_a_list_of_outputs_is_a_list_and_each_has_the_limit():
    engine = Engine()
    prompts = [[1, 2], [3], [1, 2, 0, 1, 5]]
    first, other, on = run(engine, prompts=prompts, **{LIMIT: 4, INNER: "talkative"})
    assert [len(output.response_ids) for output in (first, other, on)] == [4, 4, 4]
    # The third goes on from the first, whose tokens, and those a tool said, are used up.
    assert [asked["max_tokens"] for asked in engine.asked] == [4, 4, 1]


# ------------------------------------------------------------------------------- gate and teaching


class Teaching(TeachingClient):
    """Notes what it is to teach, and with which rows in hand."""

    def __init__(self, home: str = "server", gate: bool = False):
        settings = PruneOPDConfig(
            teacher=TeacherConfig(path="T", home=home),
            strategy="intersection",
            gate=GateConfig(enable=gate),
        )
        super().__init__(
            Engine(),
            prune_opd=settings,
            teacher=None,
            vocab_size=9,
            teaches=home != "worker_group",
        )
        self.taught: list[tuple[Any, Any]] = []

    async def teach(self, output: Any, known: Any = None) -> dict[str, Any]:
        self.taught.append((output, known))
        output.extra_fields[SCORE_REPORT] = "report"
        return {SERVED_IDS: torch.zeros(len(output.response_ids), 2)}


@pytest.mark.parametrize("home", ["server", "worker_group"])
@pytest.mark.parametrize("training", [True, False])
def test_a_training_response_alone_is_scored_by_servers(home, training):
    client = Teaching(home)
    output = run(client, **({LIMIT: 300} if training else {}))
    assert len(client.taught) == (training and home == "server")
    if client.taught:
        assert client.taught[0][0].response_ids == output.response_ids
        assert client.taught[0][1] is NOTHING


def test_the_teachers_rows_are_fields_of_the_row_and_no_extra_fields():
    """verl hands the latter to the reward function."""
    output = run(Teaching(), **{LIMIT: 300})
    assert isinstance(output, AgentLoopOutput)
    assert set(output.extra_fields) == {SCORE_REPORT}
    fields = output.as_dict()
    assert fields[SERVED_IDS].shape == (3, 2)
    assert set(fields["extra_fields"]) == {SCORE_REPORT}
    output.reward_score = 0.5  # as verl's worker does
    assert output.as_dict()["rm_scores"].tolist() == [0, 0, 0.5]


def test_a_taught_output_is_otherwise_the_same():
    plain = asyncio.run(Inner(SimpleNamespace(config=None), Engine()).turn({}, PROMPT))
    taught = TaughtOutput.of(plain, {"rows": torch.ones(3)})
    told, rest = taught.as_dict(), plain.as_dict()
    assert told.pop("rows").tolist() == [1, 1, 1]
    assert told.keys() == rest.keys()
    assert all(torch.equal(told[key], rest[key]) for key in ("prompts", "responses"))
    assert taught.metrics == plain.metrics


def test_the_gate_is_for_training_responses_alone(monkeypatch):
    opened: list[Any] = []

    class Opened(agent_loop.Trajectory):
        async def _open(self, prompt_ids):
            monkeypatch.setattr(GatedResponse, "_answer", answer)
            opened.append(await super()._open(prompt_ids))
            return opened[-1]

    async def answer(self, request):
        return await request.ask(self.client)

    class Sequences:
        def sequence(self, *given):
            return self

        async def __aenter__(self):
            return SimpleNamespace()

        async def __aexit__(self, *error):
            pass

    monkeypatch.setattr(agent_loop, "Trajectory", Opened)
    client = Teaching(gate=True)
    client.teacher = Sequences()
    for _ in range(2):
        run(client, **{LIMIT: 300})
    run(Teaching(), **{LIMIT: 300})
    run(client)
    assert [type(one) is GatedResponse for one in opened] == [True, True, False]
    assert opened[0] is not opened[1]  # nothing is shared between responses


def test_an_error_of_the_rollout_is_not_taught():
    client = Teaching()

    async def generate(*given, **named):
        raise RuntimeError("engine died")

    client.client.generate = generate
    with pytest.raises(RuntimeError, match="engine died"):
        run(client, **{LIMIT: 300})
    assert not client.taught


# --------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("reason", "max_model_len", "tokens", "truncated"),
    [
        ("length", None, 3, True),  # SGLang: the context was full
        ("length", None, 8, True),
        ("stop", None, 8, False),  # it ended with the last token it had
        ("stop", 5, 3, False),
        ("completed", None, 3, False),  # vLLM: either
        ("completed", None, 8, True),
        ("completed", len(PROMPT) + 8, 3, False),
        ("completed", len(PROMPT) + 5, 5, True),  # the context was full
        ("completed", len(PROMPT) + 5, 4, False),
        (None, len(PROMPT) + 5, 5, True),
        (None, None, 8, True),
    ],
)
def test_the_engine_says_what_is_cut(reason, max_model_len, tokens, truncated):
    output = run(Engine(tokens, reason), config_of(max_model_len))
    assert output.extra_fields["truncated"] is truncated


@pytest.mark.parametrize(("tokens", "truncated"), [(3, False), (8, True)])
def test_validation_alone_says_how_long_a_response_is(tokens, truncated):
    assert run(Engine(tokens)).extra_fields == {
        agent_loop.TOKENS: tokens,
        agent_loop.TRUNCATED: truncated,
    }
    assert run(Engine(tokens), **{LIMIT: 8}).extra_fields == {}


def test_each_output_of_a_list_says_how_long_it_is():
    outputs = run(Engine(), prompts=[[1], [2]])
    assert [output.extra_fields[agent_loop.TOKENS] for output in outputs] == [3, 3]


def test_the_length_reaches_what_verl_dumps(monkeypatch, compose):
    """Through verl's reward manager, which loads our function from the configuration."""
    pytest.importorskip("math_verify")
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = compose("+recipe=prune_opd_eval", "prune_opd.teacher.path=T")
    extra = run(Engine(8)).extra_fields
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
