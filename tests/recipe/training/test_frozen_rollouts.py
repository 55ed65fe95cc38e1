"""The trainer generates each prompt's rollouts once, and takes them from the cache in every step.

What is real: the mixin, the cache, verl's batches and sampler. verl's rollout is played here.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training import frozen_rollouts
from recipe.prune_opd.training.fields import LIMIT, SHARD, UID
from recipe.prune_opd.training.replayed_response import PLACES
from verl_ext.rollout.cache import CachedResponse, RolloutCache, prompt_key, write_shard

LONGEST, BATCH, SAMPLES = 50, 2, 2


def dataset(texts: str) -> list[dict[str, Any]]:
    """A row per letter; rows of the same letter have the same prompt."""
    turns = [[{"role": "user", "content": text}] for text in texts]
    return [{"raw_prompt": turn, "dummy_tensor": torch.zeros(1)} for turn in turns]


def key(text: str) -> str:
    return prompt_key([{"role": "user", "content": text}])


class Rollout:
    """verl's rollout and workers: every prompt gets responses, which are stored, but those to
    ``failing`` ones; ``killed_after`` batches the run ends."""

    def __init__(self, failing: str = "", killed_after: int | None = None):
        self.failing, self.killed_after = {key(text) for text in failing}, killed_after
        self.asked: list[list[str]] = []
        self.did: list[str] = []
        self.limits: set[int] = set()

    def submit(self, trainer: Any, batch: Any) -> int:
        if len(self.asked) == self.killed_after:
            raise KeyboardInterrupt
        self.asked.append(tu.get(batch, UID))
        self.limits |= set(batch[LIMIT].tolist())
        self.places = tu.get(batch, PLACES)
        return len(batch)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        assert batch_size == len(self.asked[-1])
        keys = [f"{uid}_{s}_0" for uid in self.asked[-1] for s in range(SAMPLES)]
        kept = [name for name in keys if name.split("_")[0] not in self.failing]
        tags = [{"response_len": 10, "seq_len": 12} for _ in kept]
        return KVBatchMeta(partition_id=partition_id, keys=kept, tags=tags), {}

    def store_rollouts(self, batch: KVBatchMeta) -> Any:
        self.did.append("store")
        responses = [_response(*name.split("_")[:2]) for name in batch.keys]
        if responses:
            write_shard(Path(f"{batch.extra_info[SHARD]}-rank0.safetensors"), responses)
        return batch.keys

    def compute_ref_log_prob(self, batch: KVBatchMeta) -> Any:
        self.did.append("score")
        return batch.keys

    def read_rollouts_id(self, folder: str) -> list[tuple[str, str | None]]:
        return [("node", RolloutCache(Path(folder), {}, {}).id)]

    def sleep_replicas(self) -> None:
        self.did.append("sleep")

    def update_weights(self, global_steps: int) -> None:
        assert global_steps == 0
        self.did.append("wake")


def _response(uid: str, sample: str) -> CachedResponse:
    tokens = np.arange(10, dtype=np.int32)
    return CachedResponse(uid, int(sample), tokens[:2], tokens)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A trainer of three steps of two prompts over the given rows, with a rollout."""
    monkeypatch.setattr(frozen_rollouts.tq, "kv_clear", lambda **given: None)
    monkeypatch.setattr(PPOTrainer, "_balance_batch", lambda self, batch, metrics: batch)
    monkeypatch.setattr(
        PPOTrainer, "_submit_batch_to_rollout", lambda self, batch: self.played.submit(self, batch)
    )

    def made(texts: str = "abcdef", rollout: Rollout | None = None, **settings: Any) -> Any:
        Trainer = type("Trainer", (frozen_rollouts.FrozenRollouts,), {})
        Trainer.__abstractmethods__ = frozenset()
        one = object.__new__(Trainer)
        semi = {"enable": True, "dir": str(tmp_path / "rollouts")} | settings.pop("semi", {})
        given = {"teacher": {"path": "T"}, "semi": semi, "budget": {"max": LONGEST}}
        strategy = settings.pop("strategy", "only_stu")
        one.prune_opd = PruneOPDConfig.model_validate(given | {"strategy": strategy})
        one.home = build_home(one.prune_opd)
        data = {"train_batch_size": BATCH, "shuffle": True, "seed": 1}
        rollout_node = {"n": SAMPLES, "calculate_log_probs": False}
        one.config = OmegaConf.create(
            {
                "data": data,
                "trainer": {"total_epochs": 1, "test_freq": -1} | settings.pop("node", {}),
                "actor_rollout_ref": {"rollout": rollout_node},
            }
        )
        one.train_dataset, one.global_steps = dataset(texts), 1
        one.steps_per_epoch, one.total_training_steps = len(texts) // BATCH, 3
        vars(one).update(settings)
        monkeypatch.setattr(frozen_rollouts, "made_by", lambda *given: ({"made": "so"}, {}))
        one.open_rollouts(one.config, SimpleNamespace(student=None, teachers=[None]))
        one.played = one.actor_rollout_wg = one.replay_buffer = one.checkpoint_manager = (
            rollout or Rollout()
        )
        return one

    return made


def submit(one: Any, texts: str) -> Any:
    batch = collate_fn(dataset(texts)) | {UID: np.array(list(texts), dtype=object)}
    batch = tu.get_tensordict(batch)
    batch[LIMIT] = torch.full((len(texts),), 20)
    one._submit_batch_to_rollout(batch)
    return one.played.places


def asked(one: Any) -> list[str]:
    return sorted(uid for batch in one.played.asked for uid in batch)


# ------------------------------------------------------------------------------- filling the cache


def test_every_prompt_is_generated_once_at_the_largest_limit(trainer):
    one = trainer()
    one.on_train_begin()
    assert asked(one) == sorted(map(key, "abcdef"))
    assert one.played.limits == {LONGEST}
    assert one.played.did == ["store"]  # four batches at once would be eight prompts
    assert one.cache.lacking(map(key, "abcdef"), SAMPLES) == []


def test_equal_prompts_share_their_rollouts(trainer):
    one = trainer("aabbca")
    one.on_train_begin()
    assert asked(one) == sorted(map(key, "abc"))


def test_of_less_than_an_epoch_only_what_is_used(trainer):
    one = trainer("abcdefghij", total_training_steps=2)
    one.on_train_begin()
    order = frozen_rollouts.create_rl_sampler(one.config.data, one.train_dataset)
    expected = ["abcdefghij"[row] for row in list(order)[:4]]
    assert asked(one) == sorted(map(key, expected))


def test_of_more_than_an_epoch_all_rows(trainer):
    # Three steps of two make an epoch of seven rows; which row is left out changes.
    one = trainer("abcdefg", total_training_steps=4, node={"total_epochs": 2})
    one.on_train_begin()
    assert asked(one) == sorted(map(key, "abcdefg"))


def test_a_prompt_with_an_image_is_refused_by_the_key_that_forbids_it(trainer):
    one = trainer()
    one.train_dataset[3]["raw_prompt"] = [{"role": "user", "content": [{"image": object()}]}]
    with pytest.raises(
        ValueError, match=r"^prune_opd\.semi\.enable: a prompt is not of text alone"
    ):
        one.on_train_begin()


def test_a_killed_fill_goes_on_where_it_stopped(trainer):
    texts, more = "abcdefghijklmnopqrst", {"total_training_steps": 10}
    first = trainer(texts, Rollout(killed_after=1), **more)
    with pytest.raises(KeyboardInterrupt):
        first.on_train_begin()
    (first.cache.folder / "000002-x-rank0.safetensors.partial").write_bytes(b"half a shard")
    second = trainer(texts, **more)
    second.on_train_begin()
    assert len(asked(first)) == frozen_rollouts.AT_ONCE * BATCH
    assert sorted(asked(first) + asked(second)) == sorted(map(key, texts))
    assert not list(second.cache.folder.glob("*.partial"))


def test_another_run_generates_only_what_its_own_prompts_lack(trainer):
    trainer("abcdef").on_train_begin()
    same, more = trainer("fedcba"), trainer("abcxyz")
    same.on_train_begin()
    more.on_train_begin()
    assert (asked(same), asked(more)) == ([], sorted(map(key, "xyz")))


def test_a_resumed_run_generates_nothing_even_where_something_is_gone(trainer):
    trainer().on_train_begin()
    resumed = trainer(global_steps=3)
    resumed.on_train_begin()
    assert asked(resumed) == []
    for shard in resumed.cache.folder.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(RuntimeError, match=r"6 of 6 prompts lack .* only the starting student"):
        trainer(global_steps=3).on_train_begin()


def test_a_prompt_that_always_fails_ends_the_run_and_not_before_the_others_are_kept(trainer):
    one = trainer(rollout=Rollout(failing="c"))
    with pytest.raises(RuntimeError, match=r"1 of 6 prompts lack .* the others are kept"):
        one.on_train_begin()
    again = trainer()
    again.on_train_begin()
    assert asked(again) == [key("c")]


@pytest.mark.parametrize(
    ("strategy", "did"), [("only_stu", ["store"]), ("sampled", ["sleep", "score", "wake", "store"])]
)
def test_scores_are_kept_where_they_stay_the_same(trainer, strategy, did):
    one = trainer(strategy=strategy)
    one.on_train_begin()
    assert one.played.did == did


def test_a_node_that_sees_another_folder_is_named(trainer, tmp_path):
    one = trainer()
    one.played.read_rollouts_id = lambda folder: [("node-7", None)]
    with pytest.raises(ValueError, match=r"semi\.dir: .* on node node-7 is not the folder"):
        one.on_train_begin()


def test_a_live_run_does_not_need_the_folder(trainer):
    one = trainer(global_steps=3)
    one.phase.frozen = False
    one.on_train_begin()
    assert asked(one) == []


# --------------------------------------------------------------------------------------- its steps


def test_a_step_is_sent_to_the_cache(trainer):
    one = trainer()
    one.on_train_begin()
    places = submit(one, "fa")
    assert len(places) == 2
    assert all(text.count(".safetensors") == SAMPLES for text in places)
    one.phase.frozen = False
    assert submit(one, "fa") is None


def test_a_step_is_in_the_order_of_the_data_however_its_responses_arrive(trainer):
    one = trainer()
    one.on_train_begin()
    submit(one, "fa")
    keys = ["a_1_0", "f_1_0", "a_0_0", "f_0_0"]
    tags = [{"of": key} for key in keys]
    batch = one._balance_batch(KVBatchMeta(partition_id="train", keys=keys, tags=tags), {})
    assert batch.keys == ["f_0_0", "f_1_0", "a_0_0", "a_1_0"]
    assert [tag["of"] for tag in batch.tags] == batch.keys
    one.phase.frozen = False
    live = KVBatchMeta(partition_id="train", keys=["x_1_0", "x_0_0"], tags=[{}, {}])
    assert one._balance_batch(live, {}).keys == ["x_1_0", "x_0_0"]


def test_a_prompt_without_rollouts_ends_the_run(trainer):
    one = trainer()
    one.on_train_begin()
    with pytest.raises(RuntimeError, match="step 1: 1 prompts have no rollouts"):
        submit(one, "az")


def test_a_response_that_could_not_be_read_ends_the_run(trainer, monkeypatch):
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: batch)
    one = trainer()
    tags = [{} for _ in range(BATCH * SAMPLES - 1)] + [{"is_padding": True}]
    batch = KVBatchMeta(partition_id="train", keys=list("abcd"), tags=tags)
    with pytest.raises(RuntimeError, match="1 of 4 cached responses could not be read"):
        one._compute_old_log_prob(batch, {})
    one.phase.frozen = False  # verl's own way with responses that failed
    assert one._compute_old_log_prob(batch, {}) is batch


@pytest.mark.parametrize(
    ("strategy", "frozen", "live"),
    [
        ("only_stu", "compute_ref_log_prob", "compute_ref_log_prob"),
        ("intersection", "read_served_scores", "compute_ref_log_prob"),
    ],
)
def test_cached_scores_are_read_and_others_computed(trainer, strategy, frozen, live):
    one = trainer(strategy=strategy)
    assert one.teacher_method == frozen
    one.phase.frozen = False
    assert one.teacher_method == live


def ended(one: Any, overlap: float) -> tuple[int | None, dict[str, float]]:
    tags = [{"response_len": 10}, {"response_len": 5}, {"response_len": 1, "is_padding": True}]
    batch = KVBatchMeta(partition_id="train", keys=list("abc"), tags=tags)
    metrics = {"prune_opd/overlap_ratio": overlap}
    generated = one.end_phase(batch, metrics)
    one.global_steps += 1
    found = {name.removeprefix("prune_opd/semi/"): value for name, value in metrics.items()}
    return generated, {name: found[name] for name in sorted(found) if "/" not in name}


def test_tokens_are_counted_where_they_are_generated(trainer, caplog):
    one = trainer(semi={"switch": "overlap", "overlap_below": 0.5})
    one.on_train_begin()
    filled = 6 * SAMPLES * 10
    frozen = {"cached_tokens": filled, "frozen": 1}
    assert ended(one, 0.6) == (filled, frozen | {"generated_tokens": filled, "staleness": 0})
    assert ended(one, 0.5) == (0, frozen | {"generated_tokens": 0, "staleness": 1})
    assert ended(one, 0.4) == (0, frozen | {"generated_tokens": 0, "staleness": 2})
    assert "step 3: the overlap is 0.400" in caplog.text
    caplog.clear()
    assert ended(one, 0.9) == (15, {"frozen": 0, "generated_tokens": 15, "staleness": 0})


def test_without_semi_nothing_is_changed(trainer):
    one = trainer(semi={"enable": False})
    one.on_train_begin()
    assert (asked(one), one.frozen, one.phase) == ([], False, None)
    assert submit(one, "ab") is None
    assert one.teacher_method == "compute_ref_log_prob"
    assert one.end_phase(None, {}) is None


def test_servers_are_woken_only_where_somebody_asks_them(trainer, monkeypatch):
    did: list[str] = []
    for name in ("on_sample_end", "on_step_end"):
        monkeypatch.setattr(PPOTrainer, name, lambda self, name=name: did.append(name))
    one = trainer(node={"test_freq": 3}, total_training_steps=5, curr_step_profile=False)
    seen = []
    for one.global_steps in range(1, 6):
        one.on_sample_end()
        one.phase.frozen = one.global_steps < 4
        one.on_step_end()
        seen.append(did.copy())
        did.clear()
    slept, woken = ["on_sample_end"], ["on_step_end"]
    # Asleep from the first step on; a validation after the third; live after the fourth.
    assert seen == [slept, [], woken, slept + woken, slept + woken]
