"""The trainer's part in Semi-OPD: rollouts of the starting student are generated once, before the
first update, and trained on from then on. (arXiv:2610.11291)

Only where a response comes from changes. What is made of it, and the loss, are the same.
"""

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from tqdm import tqdm
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import create_rl_sampler
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from recipe.prune_opd.checks.inputs import Inputs
from recipe.prune_opd.checks.rollouts import made_by
from recipe.prune_opd.config import PruneOPDConfig
from recipe.prune_opd.method.phase import RolloutPhase
from recipe.prune_opd.teacher.home import Home
from recipe.prune_opd.training.fields import LIMIT, READS, SHARD, UID, stored_fields
from recipe.prune_opd.training.replayed_response import PLACES, write_places
from verl_ext.rollout.cache import PARTIAL, RolloutCache, prompt_key

logger = logging.getLogger(__name__)

AT_ONCE = 4
"""Training batches whose rollouts are generated at once: a long response keeps few others from
starting, and a run that is killed loses at most these."""


class FrozenRollouts(PPOTrainer):
    """Mixin below ``PruneOPD``: does nothing without ``prune_opd.semi.enable``."""

    prune_opd: PruneOPDConfig
    home: Home
    global_steps: int
    train_dataset: Any
    phase: RolloutPhase | None
    """None without Semi-OPD."""

    def open_rollouts(self, config: DictConfig, inputs: Inputs) -> None:
        """Open the cache, or begin it, and start frozen.

        Args:
            config: verl's composed configuration.
            inputs: of the run; a cache of another making has been refused.
        """
        self.phase, self._generated, self._cached_tokens, self._asleep = None, 0, 0, False
        self._order: dict[str, int] = {}
        """Of the prompts of a frozen step, by verl's name."""
        semi = self.prune_opd.semi
        if semi.enable:
            teacher = inputs.teachers[0] if self.home.cacheable else None
            making = made_by(config, self.prune_opd, inputs.student, teacher)
            self.cache = RolloutCache(Path(str(semi.dir)), *making)
            self.phase = semi.new_phase(self.cache.id)

    @property
    def frozen(self) -> bool:
        """Tell whether the responses of this step are cached ones."""
        return self.phase is not None and self.phase.frozen

    @property
    def teacher_method(self) -> str:
        """Name of the worker method that brings the teacher's scores in this step."""
        cached = self.frozen and self.home.cacheable
        return "read_served_scores" if cached else self.home.worker_method

    # -------------------------------------------------------------------------------------- filling

    def on_train_begin(self) -> None:
        """Generate what the cache lacks of the run's prompts."""
        super().on_train_begin()
        if self.frozen:
            self._refuse_unseen_folder()
            self._fill()

    def _refuse_unseen_folder(self) -> None:
        """Refuse a folder that is another one on some node.

        Raises:
            ValueError: names the node.
        """
        folder = self.cache.folder
        for node, found in self.actor_rollout_wg.read_rollouts_id(str(folder)):
            if found != self.cache.id:
                raise ValueError(
                    f"prune_opd.semi.dir: {folder} on node {node} is not the folder that the"
                    " trainer sees, allowed: one that all nodes share"
                )

    def _fill(self) -> None:
        """Go through the prompts that lack responses, until they have all or no pass helps.

        Raises:
            RuntimeError: a prompt lacks some, and cannot be given them.
            ValueError: a shard is damaged.
        """
        samples, rows, before = self.config.actor_rollout_ref.rollout.n, self._rows_by_key(), None
        self.cache.load()
        while lacking := self.cache.lacking(rows, samples):
            found = f"{len(lacking)} of {len(rows)} prompts lack responses in {self.cache.folder}"
            if self.global_steps > 1:
                raise RuntimeError(
                    f"{found}, and only the starting student could generate them: resume with the"
                    " folder and the data that the run began with, or start again"
                )
            if len(lacking) == before:
                raise RuntimeError(
                    f"{found}: they failed, or the teacher did not score them whole, see above;"
                    " the others are kept, and a new start goes on with these"
                )
            before = len(lacking)
            self._generate({key: rows[key] for key in lacking})
            self.cache.load()
        self._cached_tokens = self.cache.tokens(rows, samples)

    def _rows_by_key(self) -> dict[str, int]:
        """Key of each prompt that the run will train on -> a row of the dataset that holds it."""
        steps = min(
            self.total_training_steps, self.steps_per_epoch * self.config.trainer.total_epochs
        )
        one_epoch = steps <= self.steps_per_epoch
        # A second epoch may leave out other rows than the first: verl drops a batch that is not
        # full.
        count = steps * self.config.data.train_batch_size if one_epoch else len(self.train_dataset)
        # As verl makes the one whose order it trains in, so that nothing is drawn from that.
        order: Iterable[int] = create_rl_sampler(self.config.data, self.train_dataset)
        rows: dict[str, int] = {}
        for row in islice(order, count):
            rows.setdefault(_key(self.train_dataset[row]["raw_prompt"]), int(row))
        return rows

    def _generate(self, rows: dict[str, int]) -> None:
        for torn in self.cache.folder.glob(f"*{PARTIAL}"):  # of a run that was killed
            torn.unlink()
        keys, size = list(rows), AT_ONCE * self.config.data.train_batch_size
        with tqdm(total=len(keys), desc="Rollouts of the starting student") as bar:
            for start in range(0, len(keys), size):
                some = keys[start : start + size]
                self._generate_batch({key: rows[key] for key in some})
                bar.update(len(some))

    def _generate_batch(self, rows: dict[str, int]) -> None:
        """Have some prompts answered at the largest limit, scored where that can be kept, and
        stored by the workers."""
        columns = collate_fn([self.train_dataset[row] for row in rows.values()])
        prompts = tu.get_tensordict(columns | {UID: np.array(list(rows), dtype=object)})
        tu.assign_non_tensor_data(prompts, "global_steps", self.global_steps)
        prompts[LIMIT] = torch.full((len(rows),), self.prune_opd.budget.longest)
        super()._submit_batch_to_rollout(prompts)
        batch, _ = self.replay_buffer.sample(
            global_steps=self.global_steps, partition_id="train", batch_size=len(rows)
        )
        self._generated += sum(tag["response_len"] for tag in batch.tags)
        batch = self._balance_batch(batch, {})
        if self.home.cacheable:
            self._score(batch)
        batch.extra_info[SHARD] = str(self.cache.folder / self.cache.new_shard())
        log_probs = bool(self.config.actor_rollout_ref.rollout.calculate_log_probs)
        self._on_workers("store_rollouts", batch, stored_fields(self.home, log_probs))
        tq.kv_clear(keys=batch.keys, partition_id=batch.partition_id)

    def _score(self, batch: KVBatchMeta) -> None:
        """The teacher's own top k, once. In the worker group it takes turns with the rollout, as in
        a step."""
        in_turns = self.home.reference_model
        if in_turns:
            self.checkpoint_manager.sleep_replicas()
        method = self.home.worker_method
        self._on_workers(method, batch, READS[method](self.home))
        if in_turns:
            self.checkpoint_manager.update_weights(self.global_steps - 1)

    def _on_workers(self, method: str, batch: KVBatchMeta, fields: tuple[str, ...]) -> None:
        """Run a worker method that reads ``fields`` from TransferQueue and writes its results back
        to it."""
        batch.fields = list(fields)  # without it every worker would fetch every field
        done = getattr(self.actor_rollout_wg, method)(batch)
        if len(done) != len(batch):
            raise RuntimeError(f"{method} answered for {len(done)} of {len(batch)} responses")

    # ------------------------------------------------------------------------------------- training

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        if self.frozen:
            samples = self.config.actor_rollout_ref.rollout.n
            keys = [_key(prompt) for prompt in tu.get(batch, "raw_prompt")]
            if lacking := self.cache.lacking(keys, samples):
                raise RuntimeError(
                    f"step {self.global_steps}: {len(lacking)} prompts have no rollouts in"
                    f" {self.cache.folder}: is the order of the data not the one that its seed"
                    " gives?"
                )
            places = [write_places(self.cache.places(key, samples)) for key in keys]
            tu.assign_non_tensor_stack(batch, PLACES, places)
            self._order = {uid: number for number, uid in enumerate(tu.get(batch, UID))}
        return super()._submit_batch_to_rollout(batch)

    def _balance_batch(
        self, batch: KVBatchMeta, metrics: dict[str, Any], *given: Any, **named: Any
    ) -> KVBatchMeta:
        """A batch has the order in which its responses arrived. Cached ones are put in that of the
        data, so that a resumed run makes the same mini-batches of them."""
        if self.frozen and self._order:
            rows = range(len(batch))
            batch.reorder(sorted(rows, key=lambda row: self._place_in_step(batch.keys[row])))
        return super()._balance_batch(batch, metrics, *given, **named)

    def _place_in_step(self, key: str) -> tuple[int, int]:
        uid, sample, _ = key.split("_")
        return self._order[uid], int(sample)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        if self.frozen:
            config = self.config
            real = sum(not tag.get("is_padding", False) for tag in batch.tags)
            wanted = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
            # verl goes on without a response whose agent loop failed.
            if real != wanted:
                raise RuntimeError(
                    f"step {self.global_steps}: {wanted - real} of {wanted} cached responses could"
                    f" not be read from {self.cache.folder}, see the errors above"
                )
        return super()._compute_old_log_prob(batch, metrics)

    def end_phase(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> int | None:
        """Log the phase of a step that has been judged, and say whether the next is live.

        Args:
            batch: of the step.
            metrics: of the step; gets those of Semi-OPD.

        Returns:
            Tokens generated for the step, where these are not those of its responses.
        """
        if self.phase is None:
            return None
        real = [tag for tag in batch.tags if not tag.get("is_padding", False)]
        generated = 0 if self.frozen else sum(tag["response_len"] for tag in real)
        generated, self._generated = generated + self._generated, 0
        overlap = metrics["prune_opd/overlap_ratio"]
        metrics.update(
            {
                "prune_opd/semi/frozen": float(self.frozen),
                "prune_opd/semi/generated_tokens": float(generated),
                "prune_opd/semi/staleness": float(self.global_steps - 1 if self.frozen else 0),
            }
        )
        if self.frozen:
            metrics["prune_opd/semi/cached_tokens"] = float(self._cached_tokens)
        if self.phase.update(overlap):
            logger.warning(
                f"step {self.global_steps}: the overlap is {overlap:.3f}, beyond the bound of"
                " prune_opd.semi: rollouts are live from the next step on"
            )
        return generated

    # ------------------------------------------------------------------------------ rollout servers

    def on_sample_end(self) -> None:
        """Put the rollout servers to sleep, unless nobody has woken them."""
        if not self._asleep or self.curr_step_profile:
            super().on_sample_end()
        self._asleep = self.frozen

    def on_step_end(self) -> None:
        """Send the weights to the rollout servers, where they are needed before the next ones."""
        if self._asleep and self.frozen and not self._validates():
            return
        self._asleep = False
        super().on_step_end()

    def _validates(self) -> bool:
        step, every = self.global_steps, self.config.trainer.test_freq
        return every > 0 and (step % every == 0 or step >= self.total_training_steps)


def _key(messages: Any) -> str:
    try:
        return prompt_key(messages)
    except ValueError as error:
        raise ValueError(f"prune_opd.semi.enable: {error}, allowed: prompts of text") from error
