"""The trainer of Prune-OPD: one of verl's, with a teacher, pruned rewards and a moving response
limit."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.workers.rollout.llm_server import LLMServerClient

from recipe.prune_opd.checks.attention import warn_of_slow_log_probs
from recipe.prune_opd.checks.batches import warn_of_empty_responses
from recipe.prune_opd.checks.files import local_path
from recipe.prune_opd.records.metrics import summarise, summarise_gate, summarise_scores
from recipe.prune_opd.records.recorder import Recorder, Sample
from recipe.prune_opd.records.tally import Tally
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.teacher.servers import follow_rollout
from recipe.prune_opd.training.agent_loop import LIMIT
from recipe.prune_opd.training.banner import announce
from recipe.prune_opd.training.checkpoint import Frozen, load_state, save_state
from recipe.prune_opd.training.fields import (
    ERRORS,
    MODEL_FIELDS,
    POSITIONS,
    READS,
    SUMS,
    TEACHER_IDS,
    TOP_K_FIELDS,
    UPDATE_FIELDS,
    advantage_fields,
    check_lengths,
    part_fields,
)
from recipe.prune_opd.training.frozen_rollouts import FrozenRollouts
from recipe.prune_opd.training.preflight import PruningTrainer, check_files, check_values
from recipe.prune_opd.training.worker import PruneOPDWorker, counted_tokens, scores_of
from verl_ext import compat

logger = logging.getLogger(__name__)


class PruneOPD(FrozenRollouts, PruningTrainer, PPOTrainer):
    """Mixin over one of verl's trainers: its reference model is the teacher.

    A trainer of the user's own is ``class Mine(PruneOPD, TheirTrainer)`` with verl's
    ``register_trainer``, ``TheirTrainer`` being synchronous.

    Args:
        config: verl's composed configuration with the node ``prune_opd``.

    Raises:
        ValueError: bad input, see ``recipe.prune_opd.training.preflight``.
    """

    train_dataloader: Any
    tokenizer: Any

    def __init__(self, config: DictConfig):
        compat.check()
        self.prune_opd, self.home = check_values(config)
        inputs = check_files(config, self.prune_opd, self.home)
        self.teacher_vocab_size = inputs.teacher.vocab_size
        warn_of_slow_log_probs(config)
        warn_of_empty_responses(config)
        self.budget = self.prune_opd.budget.build()
        self._hand_on(config, inputs.reward_function)
        self.open_rollouts(config, inputs)
        self._data_before: tuple[int, Any] = (0, None)
        """A step, and the dataloader's state before it."""
        self._checkpoint: tuple[int, Path | None] = (0, None)
        """The newest checkpoint of this run, saved or loaded: its step and its folder."""
        super().__init__(config)
        self.use_reference_policy = True
        recorded = self.prune_opd.records.dir
        self.recorder = Recorder(self.prune_opd, lambda: self.tokenizer) if recorded else None
        announce(self.prune_opd, self.home, self.budget, inputs.reward_function)

    def _hand_on(self, config: DictConfig, reward_function: str | None) -> None:
        """Put into the configuration what the workers are to know."""
        lengths = self.prune_opd.budget.model_dump(include={"init", "min", "max"})
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.verl_mode
            config.prune_opd.budget = OmegaConf.merge(config.prune_opd.budget, lengths)
            config.actor_rollout_ref.prune_opd = config.prune_opd
            config.actor_rollout_ref.teacher_vocab_size = self.teacher_vocab_size
            config.actor_rollout_ref.model.path = local_path(config.actor_rollout_ref.model.path)
            if reward_function:
                config.reward.custom_reward_function.path = reward_function
            if self.prune_opd.gate.enable:
                follow_rollout(config, self.prune_opd.topk)

    # ------------------------------------------------------------------------------------- teacher

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        # One colocated worker for student and teacher, with LoRA too, where verl would use the
        # actor as reference.
        both, alone = Role.ActorRolloutRef, Role.ActorRollout
        role, other = (both, alone) if self.home.reference_model else (alone, both)
        self.role_worker_mapping.pop(other, None)
        self.mapping.pop(other, None)
        self.role_worker_mapping[role] = ray.remote(PruneOPDWorker)
        self.mapping[role] = "global_pool"
        self.teacher_pool = self.home.pool(self.config)
        if self.teacher_pool:
            nodes = self.teacher_pool.nodes(self.config.trainer.n_gpus_per_node)
            self.resource_pool_manager.resource_pool_spec["teacher_pool"] = nodes
            self.mapping[Role.TeacherModel] = "teacher_pool"

    def on_init_end(self) -> None:
        """Start the teacher's servers, on devices of their own."""
        super().on_init_end()
        self.teacher_servers = None
        if self.teacher_pool:
            pool = self.resource_pool_manager.get_resource_pool(Role.TeacherModel)
            self.teacher_servers = self.teacher_pool.start(
                self.config, pool, self.config.trainer.n_gpus_per_node
            )

    def get_llm_client(self) -> LLMServerClient:
        """verl's client of the rollout servers, or one that also reaches the teacher's."""
        teacher = self.home.client(self.config, self.teacher_servers)
        if teacher is None:
            return super().get_llm_client()
        return self.llm_server_manager.get_client(
            TeachingClient,
            prune_opd=self.prune_opd,
            teacher=teacher,
            vocab_size=self.teacher_vocab_size,
            teaches=not self.home.reference_model,
        )

    # --------------------------------------------------------------------------------------- steps

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        if "agent_name" in batch:
            raise ValueError(
                "data: rows name their agent_name, which would bypass the response limit; remove"
                " the column"
            )
        tu.assign_non_tensor_stack(batch, LIMIT, self.budget.limits(len(batch)))
        return super()._submit_batch_to_rollout(batch)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch.fields = list(MODEL_FIELDS)  # as in ``_on_workers``
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """The teacher's pass or its servers' answers, and one more pass of the student where the
        strategy needs it."""
        method = self.teacher_method
        self._on_workers(method, batch, READS[method](self.home))
        if "student_on_teacher" in self.prune_opd.rules.needs:
            batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
            self._on_workers("compute_student_on_teacher", batch, (*MODEL_FIELDS, TEACHER_IDS))
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Pruned advantages on the workers; here only a tally of the responses, and the next
        limit."""
        limit = self.budget.limit
        check_lengths(batch.tags, tu.get(self._fetch(batch, [LIMIT]), LIMIT), limit)
        batch.extra_info["global_steps"] = self.global_steps
        self._on_workers("compute_pruned_advantage", batch, advantage_fields(self.home))
        tally = self._tally(batch)
        metrics.update(summarise(tally))
        if not self.home.reference_model:
            metrics.update(summarise_scores(tally))
        if not (self.home.reference_model or self.frozen):
            self._refuse_missing(metrics, self._last_error(batch, tally, "score"))
        if self.prune_opd.gate.enable:
            metrics.update(summarise_gate(tally))
            self._warn_of_faults(metrics, self._last_error(batch, tally, "gate"))
        generated = self.end_phase(batch, metrics)
        # A response of which nothing was scored says nothing about the limit.
        scored = tally.column("effective_length")[tally.column("tokens") > 0]
        # Here and not at the end of the step: verl saves its checkpoint before that.
        metrics.update(self.budget.update(scored.tolist()))
        self.prune_opd.budget.check(self.budget)
        if self.recorder:
            # Before the step's checkpoint, so that a step a resumed run stands on is there.
            limits, fetch = (limit, self.budget.limit), partial(self._samples, batch)
            self.recorder.write(self.global_steps, tally, limits, fetch, generated)
        return batch

    def _tally(self, batch: KVBatchMeta) -> Tally:
        """The real responses' tally, put together of what the workers wrote."""
        found = self._fetch(batch, [SUMS, POSITIONS])
        # TransferQueue may answer with jagged tensors.
        rows, positions = (torch.stack(found[name].unbind()) for name in (SUMS, POSITIONS))
        return Tally(rows, positions, self.prune_opd.budget.longest)

    def _last_error(self, batch: KVBatchMeta, tally: Tally, of: str) -> str:
        """Text of the last late or failed question about the last response that had one, else
        empty.

        Args:
            batch: of the step.
            tally: of its real responses.
            of: whose questions, ``gate`` or ``score``.
        """
        faults = tally.column(f"{of}_late") + tally.column(f"{of}_failed")
        rows = faults.nonzero().flatten().tolist()
        if not rows:
            return ""
        (errors,) = tu.get(self._fetch(batch, [ERRORS], rows[-1:]), ERRORS)
        return str(errors.get(of, ""))

    def _samples(self, batch: KVBatchMeta, rows: list[int]) -> list[Sample]:
        """Some responses token by token: few enough to come here."""
        needed = part_fields(self.prune_opd.rules.drift_needs)
        fields = ["prompts", "responses", "response_mask", *TOP_K_FIELDS, *needed]
        fetched = self._fetch(batch, fields, rows)
        unbound = {name: values.unbind() for name, values in fetched.items()}
        found = []
        for row in range(len(rows)):
            data = {name: values[row].unsqueeze(0) for name, values in unbound.items()}
            found.append(Sample(data["prompts"][0], scores_of(data), counted_tokens(data)))
        return found

    def _warn_of_faults(self, metrics: dict[str, Any], error: str) -> None:
        """Warn of answers to the gate that came late or not at all."""
        late, failed, given_up = (
            metrics[f"prune_opd/gate/{n}"] for n in ("late_answers", "failed_answers", "given_up")
        )
        if late + failed:
            logger.warning(
                f"step {self.global_steps}: the teacher was late {late:.0f} times and failed"
                f" {failed:.0f} times, {given_up:.0f} responses went on without a gate; {error}"
            )

    def _refuse_missing(self, metrics: dict[str, Any], error: str) -> None:
        """Warn of scores that the teacher failed to give; stop where too many are missing.

        Raises:
            RuntimeError: more than ``teacher.max_missing``; a checkpoint of the state before this
                step has been saved.
        """
        late, failed, missing = (
            metrics[f"prune_opd/teacher/{n}"]
            for n in ("late_answers", "failed_answers", "missing_ratio")
        )
        error = error or "rows that are not finite"
        allowed = self.prune_opd.teacher.max_missing
        if missing > allowed:
            raise RuntimeError(
                f"step {self.global_steps}: {missing:.1%} of the tokens lack the teacher's score,"
                f" allowed: prune_opd.teacher.max_missing={allowed:.1%}; {late:.0f} answers were"
                f" late, {failed:.0f} failed, the last error: {error}; {self._save_before_step()}"
            )
        if late + failed + missing:
            logger.warning(
                f"step {self.global_steps}: the teacher was late {late:.0f} times and failed"
                f" {failed:.0f} times, {100 * missing:.2f}% of the tokens have no score; {error}"
            )

    def _fetch(
        self, batch: KVBatchMeta, fields: list[str], rows: list[int] | None = None
    ) -> TensorDict:
        """Fields of the real responses, or of some of them by their indices."""
        tagged = zip(batch.keys, batch.tags, strict=True)
        keys = [key for key, tag in tagged if not tag.get("is_padding", False)]
        return tq.kv_batch_get(
            keys=keys if rows is None else [keys[row] for row in rows],
            partition_id=batch.partition_id,
            select_fields=fields,
        )

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch.fields = list(UPDATE_FIELDS)
        return super()._update_actor(batch, metrics)

    # ---------------------------------------------------------------------------------- checkpoints

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """Remembers where the data was before the step; before the first there is nothing to go
        back to."""
        if self.train_dataloader_it is not None and self._data_before[0] != self.global_steps:
            self._data_before = self.global_steps, self.train_dataloader.state_dict()
        return super()._next_train_batch(num_prompts)

    def _save_before_step(self) -> str:
        """Save the state before the current step, whose batch did not touch it, and say where it
        is."""
        before = self.global_steps - 1
        if before == 0:
            return "no step has been trained yet, start again"
        if self._checkpoint[0] != before:
            self.global_steps, self.train_dataloader = before, Frozen(self._data_before[1])
            self._save_checkpoint()
        return (
            f"the state before this step is in {self._checkpoint[1]}, where the run goes on when it"
            " is started again (trainer.resume_mode=auto)"
        )

    def _save_checkpoint(self) -> None:
        """The budget's state goes in first: verl's last act is the file that declares the
        checkpoint complete."""
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        save_state(folder, self.budget, self.phase)
        super()._save_checkpoint()
        self._checkpoint = self.global_steps, folder

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        trainer = self.config.trainer
        folder = trainer.resume_from_path
        if trainer.resume_mode == "auto":
            folder = find_latest_ckpt_path(os.path.abspath(trainer.default_local_dir))
        load_state(Path(folder), self.budget, self.phase)
        self._checkpoint = self.global_steps, Path(folder)


@register_trainer("prune_opd")
class PruneOPDTrainer(PruneOPD, PPOTrainerSync):
    """verl's synchronous trainer with Prune-OPD."""
