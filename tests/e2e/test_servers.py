"""Servers behind the gate agree with transformers, stop where the rule says, survive faults.

What is real: vLLM, Ray, verl's load balancer. Models are tiny.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import contract
import harness
import hydra
import numpy as np
import psutil
import pytest
import ray
import torch
from contract import assert_rows, log_probs_of
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from recipe.prune_opd.config import read_config
from recipe.prune_opd.method.drift import overlap_events, overlap_ratio, reliability
from recipe.prune_opd.records.tally import GATE_REPORT, GateReport
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.teacher.servers import follow_rollout, teacher_pool
from recipe.prune_opd.training.followed_response import ABORTED
from recipe.prune_opd.training.gated_response import DRIFT
from recipe.prune_opd.training.trajectory import Trajectory
from verl_ext.rollout.rotation import PATIENCE
from verl_ext.rollout.rows import At

pytestmark = pytest.mark.e2e

K, BLOCK, LIMIT, W_DROP = contract.K, 32, 160, 0.05
WIDE = 48
"""Most likely tokens of the teacher among which it looks for chosen ids."""
PARAMS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "logprobs": True,
    "max_tokens": LIMIT,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A student's server, three of a teacher, and both models in transformers."""
    from verl.single_controller.ray.base import RayResourcePool
    from verl.workers.rollout.llm_server import LLMServerManager

    folder = tmp_path_factory.mktemp("servers")
    harness.build_inputs(folder)
    overrides = [
        "+recipe=prune_opd",
        "+platform=cpu",
        f"actor_rollout_ref.rollout.name={harness.ENGINE}",
        f"actor_rollout_ref.model.path={folder / 'student'}",
        f"prune_opd.teacher.path={folder / 'noisy'}",
        "prune_opd.teacher.server.replicas=3",
        f"prune_opd.teacher.server.block_size={BLOCK}",
        f"prune_opd.teacher.server.wide_topk={WIDE}",
        f"prune_opd.drift.w_drop={W_DROP}",
        "prune_opd.gate.enable=true",
        "prune_opd.gate.chunk=32",
        "data.max_prompt_length=64",
        "data.max_response_length=512",
        f"prune_opd.budget.max={LIMIT}",
        "actor_rollout_ref.rollout.load_format=auto",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "trainer.n_gpus_per_node=3",
    ]
    defaults = Path(find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"
    with hydra.initialize_config_dir(str(defaults), version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    OmegaConf.resolve(config)
    prune_opd = read_config(config)
    follow_rollout(config, K)
    ray.init(num_cpus=32, num_gpus=8, include_dashboard=False, log_to_driver=False)
    try:
        pool = teacher_pool(config, prune_opd)
        resources = RayResourcePool(pool.nodes(3), use_gpu=True, max_colocate_count=2)
        starting = pool.start(config, resources, 3)
        rollout = LLMServerManager.create(config=config)
        manager = starting.result()
        teacher = pool.client(config, manager)
        client = TeachingClient(
            rollout.get_client(),
            prune_opd=prune_opd,
            teacher=teacher,
            vocab_size=len(harness.walk.VOCABULARY),
        )
        yield SimpleNamespace(
            client=client,
            teacher=teacher,
            new_teacher=lambda: pool.client(config, manager),
            replica=rollout.get_replicas()[0],
            teachers=manager.server_handles["default"],
            models={
                name: AutoModelForCausalLM.from_pretrained(folder / name).eval()
                for name in ("student", "noisy")
            },
        )
    finally:
        ray.shutdown()


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of one length."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = len(harness.walk.VOCABULARY)
    return torch.randint(10, vocabulary, (count, length), generator=generator).tolist()


async def follow(
    servers: SimpleNamespace, prompt: list[int], **params: Any
) -> tuple[Any, list[Any]]:
    """verl's output and the chunks on the way."""
    chunks = []
    async with servers.client.follow(
        uuid4().hex, prompt, PARAMS | params, topk=K, chunk=32
    ) as response:
        async for chunk in response:
            chunks.append(chunk)
    return response.output, chunks


@pytest.mark.parametrize(
    "params", [{}, {"top_p": 0.3}, {"temperature": 0.7, "top_k": 3}, {"max_tokens": 1}]
)
def test_a_followed_response_comes_with_the_unprocessed_top_k(servers, params) -> None:
    prompt = prompts(1, 37)[0]
    output, chunks = asyncio.run(follow(servers, prompt, **params))
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    assert tokens == list(output.token_ids)
    assert len(tokens) == (PARAMS | params)["max_tokens"]
    ends = np.cumsum([len(chunk.token_ids) for chunk in chunks]) + len(prompt)
    assert all(end % 32 == 0 for end in ends[:-1])
    log_probs = log_probs_of(servers.models["student"], prompt, tokens)
    rows = chunks[0].rows.join(*(chunk.rows for chunk in chunks))
    assert_rows(rows, log_probs)
    sampled = np.concatenate([chunk.sampled_log_probs for chunk in chunks])
    np.testing.assert_allclose(
        sampled, log_probs.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1), atol=1e-4
    )
    if not params:
        outside = [token not in row for token, row in zip(tokens, rows.ids.tolist(), strict=True)]
        assert any(outside)
        assert not all(outside)  # K candidates whether or not the sampled token is among them


def test_verls_own_generation_is_as_before(servers) -> None:
    prompt = prompts(1, 20)[0]
    greedy = PARAMS | {"temperature": 0.0}
    output = asyncio.run(
        servers.client.generate(uuid4().hex, prompt_ids=prompt, sampling_params=dict(greedy))
    )
    followed, _ = asyncio.run(follow(servers, prompt, temperature=0.0))
    assert output.token_ids == followed.token_ids
    np.testing.assert_allclose(output.log_probs, followed.log_probs, atol=1e-5)
    assert output.stop_reason == followed.stop_reason not in ABORTED


def test_an_aborted_response_keeps_what_it_has(servers) -> None:
    async def abort() -> tuple[Any, int]:
        tokens = 0
        async with servers.client.follow(
            uuid4().hex, prompts(1, 10)[0], dict(PARAMS), topk=K, chunk=8
        ) as response:
            async for chunk in response:
                tokens += len(chunk.token_ids)
                await response.abort()
        return response.output, tokens

    output, tokens = asyncio.run(abort())
    assert 0 < tokens == len(output.token_ids) < LIMIT
    assert output.stop_reason in ABORTED


@pytest.mark.parametrize("step", [1, 7, 32, 50, 64])
@pytest.mark.parametrize("length", [32, 45])
def test_a_growing_sequence_is_scored_as_in_one_pass(servers, step, length) -> None:
    """Prompts that fill cache blocks and prompts that do not; answers that end on a block and that
    do not."""
    prompt, response = prompts(1, length, seed=step)[0], prompts(1, 130, seed=100 + step)[0]

    async def grow() -> tuple[list[Any], int]:
        rows = []
        async with servers.teacher.sequence(
            len(prompt), K, len(harness.walk.VOCABULARY)
        ) as sequence:
            for end in [*range(step, len(response), step), len(response)]:
                rows.append(await sequence.score(prompt + response[:end], deadline=60))
        return rows, sequence.computed

    rows, computed = asyncio.run(grow())
    assert_rows(rows[0].join(*rows), log_probs_of(servers.models["noisy"], prompt, response))
    calls = -(-len(response) // step)
    block = {"vllm": BLOCK, "sglang": 1}[harness.ENGINE]
    assert computed <= len(prompt) + len(response) + calls * block
    if step % block == 0 and length % block == 0:
        assert computed <= len(prompt) + len(response)  # aligned to the blocks: nothing twice


@pytest.mark.parametrize("step", [1, 32, 50, 130])
def test_chosen_ids_are_scored_while_a_sequence_grows_and_in_one_piece(servers, step) -> None:
    """The last K of a row as the student might choose: some inside of the wide row, some not."""
    prompt, response = prompts(1, 45, seed=step)[0], prompts(1, 130, seed=200 + step)[0]
    log_probs = log_probs_of(servers.models["noisy"], prompt, response)
    order = log_probs.argsort(-1, descending=True)
    ids = order[:, WIDE - K : WIDE + K : 2].int().numpy()
    expected = log_probs.gather(1, torch.tensor(ids).long())

    async def grow() -> list[Any]:
        vocabulary, at = len(harness.walk.VOCABULARY), 0
        parts = []
        async with servers.teacher.sequence(len(prompt), K, vocabulary, WIDE) as sequence:
            for end in [*range(step, len(response), step), len(response)]:
                asked = prompt + response[:end]
                parts.append(await sequence.score(asked, 300, ids[at:end]))
                at = end
        whole = await servers.teacher.score(prompt + response, len(prompt), K, At(ids, WIDE))
        return [parts[0].join(*parts), whole.rows]

    for rows in asyncio.run(grow()):
        assert_rows(rows, log_probs)
        inside = ~rows.chosen.outside
        assert 0.4 < inside.mean() < 0.6
        np.testing.assert_allclose(rows.chosen.log_probs[inside], expected[inside], atol=1e-4)
        bound = log_probs.topk(WIDE).values[:, -1:].expand(-1, K).numpy()
        told = rows.chosen.log_probs[~inside]
        np.testing.assert_allclose(told, bound[~inside], atol=1e-4)
        assert (told >= expected.numpy()[~inside] - 1e-4).all()


def test_sequences_with_a_common_beginning_get_their_own_rows(servers) -> None:
    """The cache holds more of a sequence than was asked about it: the answer must not come out of
    that."""
    prompt, response = prompts(1, 32, seed=5)[0], prompts(1, 128, seed=6)[0]

    async def grow() -> list[Any]:
        async def one(begin: int) -> Any:
            async with servers.teacher.sequence(
                len(prompt), K, len(harness.walk.VOCABULARY)
            ) as sequence:
                ends = range(begin, len(response) + 1, 32)
                parts = [await sequence.score(prompt + response[:end], deadline=60) for end in ends]
            return parts[0].join(*parts)

        first = [await one(96), await one(32)]
        return first + await asyncio.gather(*(one(32) for _ in range(8)))

    log_probs = log_probs_of(servers.models["noisy"], prompt, response)
    for rows in asyncio.run(grow()):
        assert_rows(rows, log_probs)


@contract.each
def test_what_every_teacher_promises(servers, check) -> None:
    asyncio.run(check(servers.teacher, servers.models["noisy"], 64 + LIMIT))


def test_a_thousand_sequences_at_once(servers) -> None:
    many = prompts(1000, 20, seed=7)

    async def score(tokens: list[int]) -> int:
        async with servers.teacher.sequence(10, K, len(harness.walk.VOCABULARY)) as sequence:
            return len(await sequence.score(tokens, deadline=300))

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(score(tokens) for tokens in many))

    assert asyncio.run(all_of_them()) == [10] * 1000


def test_a_thousand_responses_at_once(servers) -> None:
    many = prompts(1000, 20, seed=8)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(follow(servers, prompt, max_tokens=4 + i % 8) for i, prompt in enumerate(many))
        )

    for i, (output, chunks) in enumerate(asyncio.run(all_of_them())):
        assert len(output.token_ids) == sum(len(chunk.token_ids) for chunk in chunks) == 4 + i % 8
        if i % 40 == 0:
            rows = chunks[0].rows.join(*(chunk.rows for chunk in chunks))
            assert_rows(
                rows, log_probs_of(servers.models["student"], many[i], list(output.token_ids))
            )


def test_a_prompt_beyond_the_context_is_an_error_that_says_so(servers) -> None:
    with pytest.raises(
        ValueError, match=r"Prompt length \(2000\) .* the model's maximum context length"
    ):
        asyncio.run(follow(servers, prompts(1, 2000)[0]))


def test_a_sequence_beyond_the_context_is_an_error_that_says_so(servers) -> None:
    async def score() -> None:
        async with servers.teacher.sequence(10, K, len(harness.walk.VOCABULARY)) as sequence:
            await sequence.score(prompts(1, 64 + LIMIT + 1)[0], deadline=60)

    with pytest.raises(
        ValueError, match=f"a sequence of {64 + LIMIT + 1} tokens, the engine's context allows"
    ):
        asyncio.run(score())


def gate_all(servers: SimpleNamespace, count: int, during: Any = None) -> list[Any]:
    """Gated responses to some prompts, with something happening meanwhile."""

    async def run() -> list[Any]:
        async def one(prompt: list[int]) -> Any:
            async with Trajectory(servers.client, PARAMS["max_tokens"]) as trajectory:
                trajectory.loop = SimpleNamespace()
                output = await trajectory.generate(
                    uuid4().hex, prompt_ids=prompt, sampling_params=dict(PARAMS)
                )
            # As verl's loop ends it.
            finished = AgentLoopOutput(
                prompt_ids=prompt,
                response_ids=output.token_ids,
                response_mask=[1] * len(output.token_ids),
                metrics=AgentLoopMetrics(),
            )
            trajectory.finish(finished)
            output.extra_fields |= finished.extra_fields
            return output

        tasks = [asyncio.create_task(one(prompt)) for prompt in prompts(count, 30, seed=11)]
        if during is not None:
            await during()
        return await asyncio.wait_for(asyncio.gather(*tasks), 300)

    return asyncio.run(run())


def assert_offline_rule(servers: SimpleNamespace, outputs: list[Any]) -> int:
    """Each response ends where METHOD's rule, on transformers' log-probs, ends it. Returns how many
    were stopped."""
    stopped = 0
    for prompt, output in zip(prompts(len(outputs), 30, seed=11), outputs, strict=True):
        report, tokens = output.extra_fields[GATE_REPORT], list(output.token_ids)
        student, teacher = (
            log_probs_of(servers.models[name], prompt, tokens).topk(K).indices
            for name in ("student", "noisy")
        )
        mask = torch.ones(1, len(tokens))
        events = overlap_events(overlap_ratio(student, teacher).unsqueeze(0), mask, 0.7)
        assert events[0].tolist() == report.events.tolist()
        kept = reliability(events, mask, W_DROP, 0.5).effective_length.item()
        assert kept == len(tokens), "the kept part must be reliable to its last token"
        if report.stopped:
            assert events.sum() == 19, "one event more spends the reliability"
            assert output.stop_reason == DRIFT
            stopped += 1
        else:
            assert len(tokens) == LIMIT
        assert len(output.log_probs) == len(tokens)
    return stopped


def test_gated_responses_stop_where_the_rule_says(servers) -> None:
    outputs = gate_all(servers, 16)
    assert assert_offline_rule(servers, outputs) > 0
    reports = [output.extra_fields[GATE_REPORT] for output in outputs]
    assert all(
        report.generated >= len(output.token_ids)
        for report, output in zip(reports, outputs, strict=True)
    )
    assert not any(report.late or report.failed for report in reports)


def test_a_weight_update_in_the_middle_interrupts_nobody(servers, monkeypatch) -> None:
    """verl aborts what is being generated, then lets it go on: the response continues, its event
    count with it."""

    asked = []
    follow = servers.client.follow
    monkeypatch.setattr(
        servers.client, "follow", lambda *args, **kw: asked.append(args[0]) or follow(*args, **kw)
    )

    async def update() -> None:
        for _ in range(3):
            await asyncio.sleep(0.15)
            await servers.replica.abort_all_requests()
            await servers.replica.resume_generation()

    outputs = gate_all(servers, 16, update)
    assert assert_offline_rule(servers, outputs) > 0
    assert len(asked) > len(set(asked)) == 16  # somebody was interrupted


def test_a_server_that_hangs_costs_time_and_nothing_else(servers) -> None:
    """Its questions are asked of the others once the deadline is over, and soon it gets none."""
    stopped = psutil.Process(
        ray.get(servers.teachers[2].__ray_call__.remote(lambda server: os.getpid()))
    )
    teacher, asked = servers.new_teacher(), contract.sequences(80)
    stopped.suspend()
    try:
        answers = asyncio.run(contract.score(teacher, asked, deadline=5, retries=2))
    finally:
        stopped.resume()
        # Its client has taken it out of the load balancer, too: the gate's tests go on with three.
        ray.get(teacher._load_balancer.add_servers.remote(teacher._servers))
    assert [report.missing for *_, report in answers] == [0] * len(asked)
    late = sum(report.late for *_, report in answers)
    assert PATIENCE <= late <= 16  # no more than were under way when it was given up
    assert len(teacher._rotation.names) == 2


def test_a_server_killed_while_it_scores_costs_nothing(servers) -> None:
    """The others take over: every response has its rows, and nobody computed one twice."""
    # Not in the cache: what is there is computed again.
    asked = [one for seed in range(100, 104) for one in contract.sequences(100, seed=seed)]

    async def main() -> list[Any]:
        task = asyncio.ensure_future(
            contract.score(servers.teacher, asked, concurrency=64, retries=1)
        )
        await asyncio.sleep(0.3)
        ray.kill(servers.teachers[2])
        return await task

    answers = asyncio.run(main())
    assert [report.missing for *_, report in answers] == [0] * len(asked)
    assert sum(report.failed for *_, report in answers) > 0  # some were under way
    assert all(
        report.computed <= len(prompt) + len(response)
        for (prompt, response), (*_, report) in zip(asked, answers, strict=True)
    )
    for (prompt, response), (rows, *_) in list(zip(asked, answers, strict=True))[::20]:
        assert_rows(rows, log_probs_of(servers.models["noisy"], prompt, response))


def test_teachers_killed_in_the_middle_cost_the_gate_and_nothing_else(servers) -> None:
    """One replica of two, then the other. Last test of the module: afterwards there is no
    teacher."""

    def kill(which: int) -> Callable[[], Awaitable[None]]:
        async def kill_soon() -> None:
            await asyncio.sleep(0.1)
            ray.kill(servers.teachers[which])

        return kill_soon

    def checked(outputs: list[Any]) -> list[GateReport]:
        reports = [output.extra_fields[GATE_REPORT] for output in outputs]
        for report, output in zip(reports, outputs, strict=True):
            assert report.stopped or len(output.token_ids) == LIMIT
            assert len(output.log_probs) == len(output.token_ids)
        return reports

    first = checked(gate_all(servers, 16, kill(0)))
    assert any(report.failed for report in first)
    # The next question, to the other, covers all tokens so far.
    assert not any(report.given_up for report in first)
    second = checked(gate_all(servers, 16, kill(1)))
    assert any(report.given_up for report in second)
    third = gate_all(servers, 4)
    assert all(report.given_up for report in checked(third))
    assert all(len(output.token_ids) == LIMIT for output in third)
