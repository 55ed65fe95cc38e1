"""A cached response goes through verl's agent loop as a generated one would, cut at the limit."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopMetrics,
    AgentLoopOutput,
    DictConfigWrap,
    _agent_loop_registry,
)

from recipe.prune_opd.teacher.answers import SERVED_IDS, SERVED_LOG_PROBS
from recipe.prune_opd.training.agent_loop import LIMIT, PrunedAgentLoop
from recipe.prune_opd.training.fields import (
    ROLLOUT_LOG_PROBS,
    SHARD,
    STORED,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    TEACHER_SAMPLED,
)
from recipe.prune_opd.training.replayed_response import PLACES, Replay, write_places
from recipe.prune_opd.training.rollout_writer import RolloutWriter, responses_of
from verl_ext.rollout.cache import CachedResponse, RolloutCache, read_response, write_shard
from verl_ext.rollout.rows import TopKRows

PROMPT, TOKENS = [7, 8], [11, 12, 13]
IDS = np.array([[11, 1], [2, 3], [13, 4]], np.int32)
LOG_PROBS = np.array([[-0.1, -3], [-1, -2], [-0.5, -4]], np.float32)
SAMPLED = np.array([-0.1, -5, -0.5], np.float32)


@pytest.fixture
def places(tmp_path) -> str:
    """Three responses to one prompt: without scores, with the teacher's top k, and with the sampled
    tokens' too."""
    cache = RolloutCache(tmp_path, {}, {})
    prompt, tokens = np.array(PROMPT, np.int32), np.array(TOKENS, np.int32)
    own, rows = np.array([-1, -2, -3], np.float32), TopKRows(IDS, LOG_PROBS)
    for sample, scores in enumerate([(None, None), (rows, None), (rows, SAMPLED)]):
        file = tmp_path / f"00000{sample}-x-rank0.safetensors"
        write_shard(file, [CachedResponse("p", sample, prompt, tokens, own, *scores)])
    cache.load()
    return write_places(cache.places("p", 3))


def generate(places: str, sample: int = 0, prompt=PROMPT, **params):
    replay = Replay(places, sample)
    params = {"max_tokens": 8} | params
    output = asyncio.run(replay.generate("id", prompt_ids=prompt, sampling_params=params))
    return output, replay.teach()


@pytest.mark.parametrize(("limit", "kept"), [(8, 3), (3, 3), (2, 2), (1, 1)])
def test_a_response_is_cut_at_the_limit(places, limit, kept):
    output, fields = generate(places, 2, max_tokens=limit, logprobs=True)
    assert output.token_ids == TOKENS[:kept]
    assert output.log_probs == [-1, -2, -3][:kept]
    assert output.stop_reason not in ("abort", "aborted")  # verl would go on with it
    assert len(fields[SERVED_IDS]) == len(fields[SERVED_LOG_PROBS]) == kept


def test_log_probs_are_given_where_they_are_asked_for(places):
    assert generate(places, logprobs=False)[0].log_probs is None


def test_scores_look_as_those_of_teacher_servers(places):
    assert generate(places, 0)[1] == {}
    plain, sampled = generate(places, 1)[1], generate(places, 2)[1]
    assert plain[SERVED_IDS].tolist() == IDS.tolist()
    torch.testing.assert_close(plain[SERVED_LOG_PROBS], torch.tensor(LOG_PROBS))
    assert sampled[SERVED_IDS][:, 0].tolist() == TOKENS
    torch.testing.assert_close(sampled[SERVED_LOG_PROBS][:, 0], torch.tensor(SAMPLED))
    assert sampled[SERVED_IDS][:, 1:].tolist() == IDS.tolist()


def test_its_age_is_known_to_verl(places):
    fields = generate(places)[0].extra_fields
    assert (fields["min_global_steps"], fields["max_global_steps"]) == (0, 0)


def test_another_prompt_is_refused(places):
    with pytest.raises(ValueError, match="is to a prompt of other tokens"):
        generate(places, prompt=[7, 9])


class Loop:
    """Stands for verl's of a single turn."""

    def __init__(self, trainer_config, server_manager):
        self.server_manager = server_manager

    async def run(self, sampling_params, **kwargs):
        assert kwargs == {"session_id": 2, "raw_prompt": ["p"]}
        output = await self.server_manager.generate(
            "id", prompt_ids=PROMPT, sampling_params=sampling_params
        )
        return AgentLoopOutput(
            prompt_ids=PROMPT,
            response_ids=output.token_ids,
            response_mask=[1] * len(output.token_ids),
            metrics=AgentLoopMetrics(),
        )


def test_the_agent_loop_asks_the_cache_and_nobody_else(places, monkeypatch):
    monkeypatch.setitem(_agent_loop_registry, "loop", {"_target_": f"{__name__}.Loop"})
    node = {"agent_loop": "loop", "rollout": {"response_length": 8}}
    config = OmegaConf.create({"actor_rollout_ref": node})
    loop = PrunedAgentLoop(trainer_config=DictConfigWrap(config), server_manager=None)
    given = {LIMIT: 2, PLACES: places, "session_id": 2, "raw_prompt": ["p"]}
    output = asyncio.run(loop.run({"temperature": 1.0}, **given))
    assert output.response_ids == TOKENS[:2]
    assert output.as_dict()[SERVED_IDS].shape == (2, 3)


# ------------------------------------------------------------------------------------------ storing


def jagged(*rows) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def batch(missing: bool = False) -> TensorDict:
    """A response, and a padding row."""
    scores = LOG_PROBS.copy()
    if missing:
        scores[1] = -np.inf
    columns = {
        "prompts": jagged(PROMPT, [0, 0, 0]),
        "responses": jagged(TOKENS, [0]),
        "response_mask": jagged([1, 1, 1], [0]),
        ROLLOUT_LOG_PROBS: jagged([-1.0, -2.0, -3.0], [0.0]),
        TEACHER_IDS: jagged(IDS.tolist(), [[0, 0]]),
        TEACHER_LOG_PROBS: jagged(scores.tolist(), [[0.0, 0.0]]),
        TEACHER_SAMPLED: jagged(SAMPLED.tolist(), [0.0]),
        "uid": NonTensorStack("key", "padkey"),
        "session_id": NonTensorStack(1, 0),
    }
    return TensorDict(columns, batch_size=2)


def writer(answers: bool = True) -> RolloutWriter:
    made = RolloutWriter()
    engine = SimpleNamespace(is_mp_src_rank_with_outputs=lambda: answers)
    made.actor, made.rank = SimpleNamespace(engine=engine), 3
    return made


def test_a_worker_writes_what_is_real(tmp_path):
    data = batch()
    data[SHARD] = str(tmp_path / "000001-x")
    stored = RolloutWriter.store_rollouts.__wrapped__(writer(), data)
    assert stored[STORED].tolist() == [True, False]
    cache = RolloutCache(tmp_path, {}, {})
    cache.load()
    (place,) = (cache._places["key", 1],)
    assert place.file.endswith("000001-x-rank3.safetensors")
    found = read_response(place)
    assert (found.prompt.tolist(), found.tokens.tolist()) == (PROMPT, TOKENS)
    assert found.log_probs.tolist() == [-1, -2, -3]
    assert found.teacher.ids.tolist() == IDS.tolist()
    np.testing.assert_array_equal(found.teacher.log_probs, LOG_PROBS)
    np.testing.assert_array_equal(found.teacher_sampled, SAMPLED)


def test_a_response_that_was_not_scored_whole_is_not_kept():
    assert responses_of(batch(missing=True)) == [None, None]
    unscored = batch(missing=True).exclude(TEACHER_IDS, TEACHER_LOG_PROBS, TEACHER_SAMPLED)
    assert responses_of(unscored)[0].teacher is None


def test_one_rank_of_a_group_writes_for_all(tmp_path):
    assert RolloutWriter.store_rollouts.__wrapped__(writer(False), batch()) is None
    assert not list(tmp_path.iterdir())
