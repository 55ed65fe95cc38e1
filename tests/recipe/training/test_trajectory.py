"""verl's own tool agent under the limit and the gate: tools' tokens use the limit up, and are
nothing to the gate; behind a stop no tool is called.

The loop, its tool parser and its merging of messages are verl's. The servers are scripted.
"""

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopMetrics,
    AgentLoopOutput,
    DictConfigWrap,
    ToolListWrap,
)
from verl.tools.tool_registry import load_all_tools
from verl.workers.rollout.replica import TokenOutput

from recipe.prune_opd.config import (
    DriftConfig,
    GateConfig,
    PruneOPDConfig,
    TeacherConfig,
    TeacherServerConfig,
)
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport
from recipe.prune_opd.teacher.answers import NOTHING, SERVED_IDS, SERVED_LOG_PROBS
from recipe.prune_opd.teacher.client import SCORE_REPORT, TeachingClient
from recipe.prune_opd.training.agent_loop import LIMIT, PrunedAgentLoop
from recipe.prune_opd.training.response import Response, cut
from recipe.prune_opd.training.trajectory import Trajectory
from verl_ext.rollout.client import ScoringClient
from verl_ext.rollout.rows import Chunk, Score, TopKRows

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS.parent / "examples" / "pairs"))
import walk  # noqa: E402

TOOL = TESTS / "e2e" / "tool.py"
K = 4
WORDS = {word: number for number, word in enumerate(walk.VOCABULARY)}
TOLD = "5 5 <assistant>"
"""The tool's answer and the beginning of the next turn, behind the word of its role."""


def ids(text: str) -> list[int]:
    return [WORDS[word] for word in text.split()]


TOLD_IDS = [WORDS["<unk>"], *ids(TOLD)]
"""What the template makes of a tool's message: its role is no word of the vocabulary."""
FIRST, SECOND, LAST = ids("#1 3 + 5 ;"), ids("#2 8 + 1 ;"), ids("answer #2 <eos>")
"""Turns of the student; the tool is called where one ends with a semicolon."""


def rows_of(*places: int, drifted: bool = False) -> TopKRows:
    """Rows that tell their places in the sequence; all have the same ids, but where drifted."""
    found = np.tile(np.arange(K, dtype=np.int32) + 1000 * drifted, (len(places), 1))
    falling = np.log([0.6, 0.3, 0.06, 0.04]) - np.array(places).reshape(-1, 1) / 1000
    return TopKRows(found, falling.astype(np.float32))


class Servers(TeachingClient):
    """A student that says its turns, one a request, and a teacher that parts from it at words of
    ``drifted``, counted over the student's tokens."""

    def __init__(self, turns: list[list[int]], drifted: set[int], **settings: Any):
        gate = GateConfig(enable=settings.pop("gate", True), chunk=2, deadline=5)
        drift = DriftConfig(w_drop=0.5, scope=settings.pop("scope", "response"))
        wide = settings.pop("wide", 0)
        server = TeacherServerConfig(engine="vllm", wide_topk=wide)
        config = PruneOPDConfig(
            teacher=TeacherConfig(path="T", home="server", server=server),
            drift=drift,
            gate=gate,
            topk=K,
            strategy="only_stu" if wide else "intersection",
        )
        super().__init__(SimpleNamespace(), prune_opd=config, teacher=self, vocab_size=2000)
        self.turns, self.drifted = list(turns), drifted
        self.requests: list[tuple[list[int], dict[str, Any]]] = []
        self.questions: list[tuple[int, int]] = []
        self.opened, self.said, self.whole = 0, 0, 0

    async def generate(self, request_id, *, prompt_ids, sampling_params, **more):
        self.requests.append((list(prompt_ids), sampling_params))
        tokens = self.turns.pop(0)[: sampling_params["max_tokens"]]
        return TokenOutput(token_ids=tokens, log_probs=[0.5] * len(tokens), stop_reason="completed")

    @asynccontextmanager
    async def follow(self, request_id, prompt_ids, sampling_params, topk, chunk, **more):
        self.requests.append((list(prompt_ids), sampling_params))
        tokens = self.turns.pop(0)[: sampling_params["max_tokens"]]
        self.places = getattr(self, "places", {}) | {
            len(prompt_ids) + at: self.said + at for at in range(len(tokens))
        }
        self.said += len(tokens)
        yield Followed(tokens, chunk)

    @asynccontextmanager
    async def sequence(self, prompt_length, topk, vocab_size, wide=0):
        self.opened += 1
        client = ScoringClient(None, None, {})

        async def acquire(request_id, **extra):
            return "s", SimpleNamespace(score=SimpleNamespace(remote=self.score_tail))

        client._acquire_server, client._release_server = acquire, lambda *given, **named: None
        async with client.sequence(prompt_length, topk, vocab_size, wide) as sequence:
            yield sequence

    async def score_tail(self, token_ids, start, topk, sequence_id, private, at=None):
        self.questions.append((start, len(token_ids)))
        parts = [
            rows_of(place, drifted=self.places.get(place) in self.drifted)
            for place in range(start, len(token_ids) + 1)
        ]
        rows = TopKRows.join(*parts)
        tail = len(token_ids) - start
        told = rows[:-1].narrowed(topk, at)
        return Score(told, np.zeros(tail, np.float32), tail, rows[-1:])

    async def score(self, token_ids, start, topk, at=None):
        self.whole += 1
        rows = rows_of(*range(start, len(token_ids))).narrowed(topk, at)
        return Score(rows, np.zeros(len(rows), np.float32), len(token_ids))

    @property
    def config(self):
        agent = SimpleNamespace(num_workers=1)
        return SimpleNamespace(
            actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(agent=agent))
        )


class Followed:
    """Stands for ``FollowedResponse``."""

    def __init__(self, tokens: list[int], chunk: int):
        self.tokens, self.chunk, self.output = tokens, chunk, None
        self.aborted = False

    async def __aiter__(self):
        said = 0
        while said < len(self.tokens) and not self.aborted:
            part = self.tokens[said : said + self.chunk]
            said += len(part)
            yield Chunk(part, rows_of(*part), np.full(len(part), 0.5, np.float32))
            await asyncio.sleep(0)
        self.output = TokenOutput(
            token_ids=self.tokens[:said],
            stop_reason="aborted" if self.aborted else "completed",
            extra_fields={"global_steps": 1},
        )

    async def abort(self):
        self.aborted = True


@pytest.fixture(scope="module")
def config(compose):
    """verl's, for its tool agent with our tool."""
    composed = compose(
        "+recipe=prune_opd",
        "prune_opd.teacher.path=T",
        "data.max_prompt_length=128",
        "data.max_response_length=96",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        "actor_rollout_ref.rollout.multi_turn.format=walk",
        "+actor_rollout_ref.agent_loop=tool_agent",
    )
    OmegaConf.resolve(composed)
    return composed


@pytest.fixture
def called():
    """Numbers that the tool was called with."""
    load_all_tools(None, str(TOOL))
    module = next(one for one in sys.modules.values() if getattr(one, "__file__", "") == str(TOOL))
    module.CALLED.clear()
    return module.CALLED


def run(config, client: Any, limit: int | None = 40) -> AgentLoopOutput:
    """verl's tool agent within ours."""
    loop = PrunedAgentLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=client,
        tokenizer=walk.build_tokenizer(),
        processor=None,
        hf_model_type="llama",
        dataset_cls=object,
        data_config=DictConfigWrap(config.data),
        tools=ToolListWrap(load_all_tools(None, str(TOOL))),
    )
    given = {} if limit is None else {LIMIT: limit}
    prompt = [{"role": "user", "content": "start 3 add 5 1 2 from #1"}]
    params = {"temperature": 1.0, "logprobs": True}
    return asyncio.run(loop.run(params, raw_prompt=prompt, **given))


def by_hand(*turns: list[int]) -> tuple[list[int], list[int]]:
    """Tokens and mask of turns with the tool's answers between them."""
    tokens, mask = list(turns[0]), [1] * len(turns[0])
    for turn in turns[1:]:
        tokens += TOLD_IDS + turn
        mask += [0] * len(TOLD_IDS) + [1] * len(turn)
    return tokens, mask


# -------------------------------------------------------------------------------------- the limit


@pytest.mark.parametrize("gate", [True, False])
def test_a_response_within_the_limit_is_verls(config, called, gate):
    servers = Servers([FIRST, SECOND, LAST], set(), gate=gate)
    output = run(config, servers)
    assert (output.response_ids, output.response_mask) == by_hand(FIRST, SECOND, LAST)
    assert len(output.response_logprobs) == len(output.response_ids)
    assert output.num_turns == 6
    assert called == [5, 5]


@pytest.mark.parametrize("gate", [True, False])
def test_what_tools_said_is_taken_from_the_limit(config, called, gate):
    servers = Servers([FIRST, SECOND, LAST], set(), gate=gate)
    output = run(config, servers, limit=16)
    tokens, mask = by_hand(FIRST, SECOND)
    assert (output.response_ids, output.response_mask) == (tokens[:14], mask[:14])
    assert [params["max_tokens"] for _, params in servers.requests] == [16, 16 - 5 - len(TOLD_IDS)]
    # The tool's answer would not have fitted: verl ends the response without it.
    assert called == [5, 5]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("limit", [3, 5])
def test_at_the_limit_no_tool_is_called(config, called, gate, limit):
    output = run(config, Servers([FIRST, SECOND], set(), gate=gate), limit)
    assert (output.response_ids, output.response_mask) == (FIRST[:limit], [1] * limit)
    assert called == []


def test_validation_has_verls_length_and_no_gate(config, called):
    class Plain(Servers):
        async def generate(self, request_id, *, prompt_ids, sampling_params, **more):
            assert "max_tokens" not in sampling_params
            tokens = self.turns.pop(0)
            return TokenOutput(token_ids=tokens, log_probs=[0.5] * len(tokens), stop_reason="stop")

    output = run(config, Plain([FIRST, SECOND, LAST], {0, 1}), limit=None)
    assert (output.response_ids, output.response_mask) == by_hand(FIRST, SECOND, LAST)
    assert GATE_REPORT not in output.extra_fields
    assert output.extra_fields["response_tokens"] == len(output.response_ids)


# --------------------------------------------------------------------------------------- the gate


def report_of(output: AgentLoopOutput) -> GateReport:
    return output.extra_fields[GATE_REPORT]


def test_events_are_the_students_alone_over_all_turns(config, called):
    servers = Servers([FIRST, SECOND, LAST], {7})
    report = report_of(run(config, servers))
    assert report.events.tolist() == [token == 7 for token in range(13)]
    assert (report.stopped, report.generated) == (False, 13)
    assert servers.opened == 1  # one sequence for all turns


def test_what_tools_said_is_never_scored(config, called):
    servers = Servers([FIRST, SECOND, LAST], set())
    output = run(config, servers)
    prompt, mask = len(output.prompt_ids), np.array(output.response_mask, dtype=bool)
    asked = {at - prompt for begin, end in servers.questions for at in range(begin, end)}
    assert asked <= set(np.flatnonzero(mask).tolist())
    rows = output.as_dict()
    assert np.isneginf(rows[SERVED_LOG_PROBS][~mask].numpy()).all()
    assert (rows[SERVED_IDS][~mask] == -1).all()
    expected = rows_of(*(prompt + np.flatnonzero(mask)))
    np.testing.assert_array_equal(rows[SERVED_LOG_PROBS][mask].numpy(), expected.log_probs)
    assert not servers.whole  # the gate had asked for all of it
    assert set(output.extra_fields) >= {GATE_REPORT, SCORE_REPORT}
    assert not {SERVED_IDS, SERVED_LOG_PROBS} & set(output.extra_fields)


def test_behind_the_stop_no_tool_is_called_and_no_token_follows(config, called):
    """R is 0 at the second event, in the middle of a turn that ends with a call."""
    servers = Servers([FIRST, SECOND, LAST], {1, 3})
    output = run(config, servers)
    assert (output.response_ids, output.response_mask) == (FIRST[:3], [1] * 3)
    assert len(output.response_logprobs) == 3
    assert report_of(output).stopped
    assert report_of(output).events.tolist() == [False, True, False]
    assert called == []
    assert len(servers.requests) == 1


def test_a_call_that_is_kept_whole_before_the_stop_is_not_made(config, called):
    """The cut turn holds a semicolon, and so a call, before the token at which it is stopped."""
    turn = ids("#1 3 ; 4 4 4 4")
    output = run(config, Servers([turn, LAST], {4, 5}))
    assert output.response_ids == turn[:5]
    assert called == []


def test_events_of_an_earlier_turn_count_in_a_later_one(config, called):
    servers = Servers([FIRST, SECOND, LAST], {0, 7})
    output = run(config, servers)
    tokens, mask = by_hand(FIRST, SECOND[:2])
    assert (output.response_ids, output.response_mask) == (tokens, mask)
    assert report_of(output).events.tolist() == [True] + [False] * 6
    assert called == [5]
    assert len(servers.requests) == 2


def test_with_the_turns_scope_they_do_not(config, called):
    servers = Servers([FIRST, SECOND, LAST], {0, 7}, scope="turn")
    assert not report_of(run(config, servers)).stopped
    servers = Servers([FIRST, SECOND, LAST], {0, 7, 8}, scope="turn")
    output = run(config, servers)
    assert output.response_ids == by_hand(FIRST, SECOND[:3])[0]
    assert report_of(output).stopped


def test_a_stop_at_the_first_token_of_a_turn_leaves_the_tool_no_last_word(config, called):
    output = run(config, Servers([FIRST, SECOND, LAST], {4, 5}))
    assert (output.response_ids, output.response_mask) == (FIRST, [1] * 5)
    assert report_of(output).events.tolist() == [False] * 4 + [True]


def test_a_teacher_that_is_gone_costs_the_gate_of_all_turns(config, called):
    class Gone(Servers):
        async def score_tail(self, token_ids, start, *rest):
            self.questions.append((start, len(token_ids)))
            raise RuntimeError("gone")

    servers = Gone([FIRST, SECOND, LAST], {0, 1, 2, 3})
    output = run(config, servers)
    report = report_of(output)
    assert output.response_ids == by_hand(FIRST, SECOND, LAST)[0]
    assert (report.given_up, report.failed, report.generated) == (True, 3, 13)
    assert len(servers.questions) == 3
    assert servers.whole == 1  # scored at its end, as without a gate


# ------------------------------------------------------------------------ the student's candidates


@pytest.mark.parametrize("drifted", [set(), {1, 3}, {6, 9}])
@pytest.mark.parametrize("gate", [True, False])
def test_the_rollouts_candidates_go_with_every_token_of_the_student(config, called, gate, drifted):
    """Whether the teacher is asked while the response grows or at its end, and where it is cut."""
    servers = Servers([FIRST, SECOND, LAST], drifted if gate else set(), gate=gate, wide=K)
    output = run(config, servers)
    prompt, mask = len(output.prompt_ids), np.array(output.response_mask, dtype=bool)
    fields = output.as_dict()
    own_ids, student_ids = fields[SERVED_IDS].tensor_split(2, -1)
    assert (student_ids[mask] == torch.arange(K)).all()
    assert (fields[SERVED_IDS][~mask] == -1).all()
    assert np.isneginf(fields[SERVED_LOG_PROBS][~mask].numpy()).all()
    own, told = fields[SERVED_LOG_PROBS].tensor_split(2, -1)
    expected = rows_of(*(prompt + np.flatnonzero(mask))).log_probs
    np.testing.assert_array_equal(own[mask].numpy(), expected)
    # Where they have drifted the teacher has none of the student's: the bound, its smallest.
    outside = (own_ids[mask] >= 1000).numpy()
    expected = np.where(outside, expected[:, -1:], expected)
    np.testing.assert_array_equal(told[mask].numpy(), expected)
    report = output.extra_fields[SCORE_REPORT]
    assert (report.candidates, report.outside) == (mask.sum() * K, outside.sum())
    assert (servers.whole, servers.opened) == ((0, 1) if gate else (1, 0))
    assert len(output.response_logprobs) == len(output.response_ids)


def test_a_gate_that_was_given_up_leaves_them_to_ask_at_the_end(config, called):
    class Gone(Servers):
        async def score_tail(self, *question):
            raise RuntimeError("gone")

    servers = Gone([FIRST, SECOND, LAST], set(), wide=K)
    output = run(config, servers)
    mask = np.array(output.response_mask, dtype=bool)
    assert (output.as_dict()[SERVED_IDS][mask][:, K:] == torch.arange(K)).all()
    assert servers.whole == 1


# --------------------------------------------------------------------------------- without the loop


def ended(response: Response, tokens: list[int], mask: list[int]) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=response.prompt_ids,
        response_ids=tokens,
        response_mask=mask,
        metrics=AgentLoopMetrics(),
    )


async def follow(servers: Servers, *prompts: list[int]) -> tuple[Trajectory, list[TokenOutput]]:
    """Turns that a loop of the user's might ask for."""
    async with Trajectory(servers, 40) as trajectory:
        trajectory.loop = SimpleNamespace()
        found = [
            await trajectory.generate("r", prompt_ids=prompt, sampling_params={})
            for prompt in prompts
        ]
    return trajectory, found


def test_tokens_that_a_loop_takes_back_are_forgotten():
    """As some models' templates want it where a tool's message begins."""
    servers = Servers([[21, 22, 23], [31, 32]], {2, 4})
    trajectory, outputs = asyncio.run(follow(servers, [1, 2], [1, 2, 21, 22, 90, 91]))
    (response,) = trajectory.responses
    # The event of the third, which was taken back, would have stopped the response at the last.
    assert [output.token_ids for output in outputs] == [[21, 22, 23], [31, 32]]
    output = ended(response, [21, 22, 90, 91, 31, 32], [1, 1, 0, 0, 1, 1])
    rows = trajectory.finish(output).teacher
    assert report_of(output).events.tolist() == [False, False, False, True]
    expected = rows_of(2, 3, 6, 7).log_probs
    np.testing.assert_array_equal(rows.log_probs[[0, 1, 4, 5]], expected)


def test_what_a_loop_adds_behind_the_stop_is_cut_off():
    """One that looks for its length elsewhere calls the tool all the same."""
    servers = Servers([[21, 22, 23, 24]], {1, 2})
    trajectory, _ = asyncio.run(follow(servers, [1, 2]))
    output = ended(trajectory.responses[0], [21, 22, 90, 90], [1, 1, 0, 0])
    rows = trajectory.finish(output).teacher
    assert (output.response_ids, output.response_mask, len(rows)) == ([21, 22], [1, 1], 2)


def test_a_loop_that_masks_tokens_out_has_no_events_there():
    servers = Servers([[21, 22, 23]], {1})
    trajectory, _ = asyncio.run(follow(servers, [1, 2]))
    output = ended(trajectory.responses[0], [21, 22, 23], [1, 0, 1])
    rows = trajectory.finish(output).teacher
    assert report_of(output).events.tolist() == [False, False]
    assert np.isneginf(rows.log_probs).all(1).tolist() == [False, True, False]


def test_a_response_that_the_loop_rewrote_has_no_report():
    servers = Servers([[21, 22, 23]], {1})
    trajectory, _ = asyncio.run(follow(servers, [1, 2]))
    output = ended(trajectory.responses[0], [21, 99, 23], [1, 1, 1])
    assert trajectory.finish(output) is NOTHING
    assert GATE_REPORT not in output.extra_fields


def test_another_prompt_begins_another_response_and_a_stop_ends_all():
    servers = Servers([[21, 22], [31, 32, 33], [41]], {3, 4})
    trajectory, outputs = asyncio.run(follow(servers, [1, 2], [5], [1, 2, 21, 22, 90]))
    assert [output.token_ids for output in outputs] == [[21, 22], [31, 32], []]
    first, second = (
        ended(response, output.token_ids, [1, 1])
        for response, output in zip(trajectory.responses, outputs, strict=False)
    )
    for output in (first, second):
        trajectory.finish(output)
    assert (report_of(first).stopped, report_of(second).stopped) == (False, True)
    assert servers.opened == 2


def test_two_turns_at_once_are_two_responses():
    class Slow(Servers):
        async def generate(self, *given, **named):
            await asyncio.sleep(0)
            return await super().generate(*given, **named)

    async def body() -> Trajectory:
        async with Trajectory(Slow([[21], [22]], set(), gate=False), 40) as trajectory:
            turns = (
                trajectory.generate("r", prompt_ids=[1, 2], sampling_params={}) for _ in range(2)
            )
            await asyncio.gather(*turns)
        return trajectory

    responses = asyncio.run(body()).responses
    assert [response.tokens for response in responses] == [[21], [22]]


def test_a_full_response_gets_no_more_tokens():
    servers = Servers([[21], [22]], set(), gate=False)
    _, (_, output) = asyncio.run(follow(servers, [1, 2], [1, 2, *range(40)]))
    assert (output.token_ids, output.stop_reason) == ([], "length")
    assert len(servers.requests) == 1


def test_cut_shortens_all_that_has_the_responses_length():
    output = ended(SimpleNamespace(prompt_ids=[1, 2]), [3, 4, 5], [1, 1, 0])
    output.response_logprobs, output.routed_experts = [0.1, 0.2, 0.3], np.arange(5)
    cut(output, 3)
    assert len(output.response_ids) == 3
    cut(output, 1)
    assert (output.response_ids, output.response_mask, output.response_logprobs) == (
        [3],
        [1],
        [0.1],
    )
    assert output.routed_experts.tolist() == [0, 1, 2]
