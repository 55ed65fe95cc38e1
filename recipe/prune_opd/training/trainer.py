"""The trainer of Prune-OPD: one of verl's, with a teacher, pruned rewards and a moving response
limit."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from typing_extensions import Self
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.utils import tensordict_utils as tu

from recipe.prune_opd.checks.agent_loops import AGENT_NAME, WRAPPER
from recipe.prune_opd.checks.attention import warn_of_slow_log_probs
from recipe.prune_opd.checks.batches import warn_of_empty_responses
from recipe.prune_opd.checks.files import local_path
from recipe.prune_opd.records.metrics import (
    summarise,
    summarise_gate,
    summarise_scores,
    summarise_task,
    summarise_teachers,
)
from recipe.prune_opd.records.recorder import Recorder, Sample
from recipe.prune_opd.records.tally import Tally
from recipe.prune_opd.teacher.servers import follow_rollout
from recipe.prune_opd.training.banner import announce
from recipe.prune_opd.training.faults import TopKMass, refuse_missing, warn_of_gate
from recipe.prune_opd.training.fields import (
    ERRORS,
    INNER,
    LIMIT,
    MODEL_FIELDS,
    POSITIONS,
    READS,
    STEP,
    SUMS,
    TEACHER,
    TEACHER_IDS,
    TOP_K_FIELDS,
    UPDATE_FIELDS,
    advantage_fields,
    check_lengths,
    counted_tokens,
    part_fields,
    row_teachers,
    scores_of,
    served_fields,
    student_fields,
)
from recipe.prune_opd.training.frozen_rollouts import FrozenRollouts
from recipe.prune_opd.training.modes import find_trainer, mode_of, stands_on, with_method
from recipe.prune_opd.training.names import PruningTrainer
from recipe.prune_opd.training.preflight import check_files, check_values
from recipe.prune_opd.training.saving import Saving
from recipe.prune_opd.training.teacher_servers import TeacherServers
from recipe.prune_opd.training.watch import Watch, watched
from verl_ext import compat

STUDENT_ROLES = (Role.Actor, Role.ActorRolloutRef, Role.ActorRollout)
"""Roles that verl may give the student, the first that there is."""


class PruneOPD(TeacherServers, FrozenRollouts, Saving, PruningTrainer):
    """Mixin over one of verl's trainers, or one of the user's own: its reference model is the
    teacher. Calls ``super()`` in every hook that it overrides.

    Args:
        config: verl's composed configuration with the node ``prune_opd``.

    Raises:
        ValueError: bad input, see ``recipe.prune_opd.training.preflight``.
    """

    tokenizer: Any

    def __init__(self, config: DictConfig):
        compat.check()
        self.prune_opd, self.home = check_values(config)
        inputs = check_files(config, self.prune_opd, self.home)
        self.teacher_vocab_sizes = [teacher.vocab_size for teacher in inputs.teachers]
        warn_of_slow_log_probs(config)
        warn_of_empty_responses(config)
        self.budget = self.prune_opd.budget.build()
        self._hand_on(config, inputs.reward_function)
        self.open_rollouts(config, inputs)
        self._tallies: list[Tally] = []
        self._mass = TopKMass()
        super().__init__(config)
        recorded = self.prune_opd.records.dir
        self.recorder = Recorder(self.prune_opd, lambda: self.tokenizer) if recorded else None
        announce(self.prune_opd, self.home, self.budget, inputs.reward_function)

    def _hand_on(self, config: DictConfig, reward_function: str | None) -> None:
        """Put into the configuration what verl and the workers are to know."""
        lengths = self.prune_opd.budget.model_dump(include={"init", "min", "max"})
        with open_dict(config):
            config.trainer.v1.trainer_mode = mode_of(type(self))
            config.prune_opd.budget = OmegaConf.merge(config.prune_opd.budget, lengths)
            config.prune_opd.task_reward.coef = self.prune_opd.task_reward.coef
            config.actor_rollout_ref.prune_opd = config.prune_opd
            config.actor_rollout_ref.teacher_vocab_size = min(self.teacher_vocab_sizes)
            # The wrapper in the place of the agent loop, and that within.
            agent = config.actor_rollout_ref.rollout.agent
            config.actor_rollout_ref.agent_loop = agent.default_agent_loop
            agent.default_agent_loop = WRAPPER
            config.actor_rollout_ref.model.path = local_path(config.actor_rollout_ref.model.path)
            if reward_function:
                config.reward.custom_reward_function.path = reward_function
            if self.home.follows:
                follow_rollout(config, self.prune_opd.topk)
            if self.prune_opd.student == "rollout":
                config.actor_rollout_ref.rollout.calculate_log_probs = True
                config.algorithm.rollout_correction.bypass_mode = True

    # ------------------------------------------------------------------------------------- teacher

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        # The trainer's own role for the student stays, with a worker that holds the teacher, too.
        role = next(one for one in STUDENT_ROLES if one in self.role_worker_mapping)
        self.role_worker_mapping[role] = with_method(self.role_worker_mapping[role])

    def on_init_end(self) -> None:
        """verl's, and the reference model is the teacher."""
        super().on_init_end()
        # Only now: verl would have looked for a reference worker of its own.
        self.use_reference_policy, self.ref_policy_wg = True, self.actor_rollout_wg

    # --------------------------------------------------------------------------------------- steps

    def on_train_begin(self) -> None:
        """Watch the processes of the run, see ``Watch``."""
        deadline = self.prune_opd.deadline or math.inf
        self.watch = Watch(watched(self), lambda: self.global_steps, deadline)
        self.watch.start()
        super().on_train_begin()

    def on_train_end(self) -> None:
        """Its end is not to be taken for a fault."""
        super().on_train_end()
        self.watch.close()

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        if self.prune_opd.teacher.models:
            batch[TEACHER] = row_teachers(batch, self.prune_opd.teacher)
        if AGENT_NAME in batch:
            batch.rename_key_(AGENT_NAME, INNER)
        # A tensor: verl keeps it with the prompt, and a resumed run generates under it.
        batch[LIMIT] = torch.tensor(self.budget.limits(len(batch)))
        return super()._submit_batch_to_rollout(batch)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> KVBatchMeta:
        """verl's step, at whose end the limit moves: once, however many updates it has."""
        self._tallies = []
        batch = super().step(metrics, timing_raw)
        # Here and not in ``on_step_end``: verl saves its checkpoint before that.
        self._end_step(batch, Tally.join(*self._tallies), metrics)
        return batch

    def _end_step(self, batch: KVBatchMeta, tally: Tally, metrics: dict[str, Any]) -> None:
        """Log a step, move the limit, and write the step down.

        Args:
            batch: of all of its updates.
            tally: of the batch's real responses.
            metrics: of the step.
        """
        limit = self.budget.limit
        metrics.update(self._summary(tally))
        self._mass.look(self.global_steps, metrics["prune_opd/student_topk_mass"])
        generated = self.end_phase(batch, metrics)
        # A response of which nothing was scored says nothing about the limit.
        scored = tally.column("tokens") > 0
        lengths, limits = (tally.column(name)[scored] for name in ("reliable_to", "limit"))
        metrics.update(self.budget.update(lengths.tolist(), limits.int().tolist()))
        self.prune_opd.budget.check(self.budget)
        if self.recorder:
            # Before the step's checkpoint, so that a step a resumed run stands on is there.
            bounds, fetch = (limit, self.budget.limit), partial(self._samples, batch)
            self.recorder.write(self.global_steps, tally, bounds, fetch, generated)

    def _summary(self, tally: Tally) -> dict[str, float]:
        """Logged numbers of a tally."""
        teacher = self.prune_opd.teacher
        return {
            **summarise(tally),
            **(summarise_teachers(tally, teacher.paths) if teacher.models else {}),
            **(summarise_scores(tally) if self._may_lack_scores else {}),
            **(summarise_gate(tally) if self.prune_opd.gate.enable else {}),
            **(summarise_task(tally) if self.prune_opd.task_reward.factor else {}),
        }

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        if self.prune_opd.student == "rollout":
            self._on_workers("read_reported_student", batch, served_fields(self.home))
        batch.fields = list(student_fields(self.home))  # as in ``_on_workers``
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """The teacher's pass or its servers' answers, and one more pass of the student where the
        strategy needs it."""
        method = self.teacher_method
        self._on_workers(method, batch, READS[method](self.home))
        if "student_on_teacher" in self.prune_opd.rules.needs:
            batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
            with self._old_weights():
                self._on_workers("compute_student_on_teacher", batch, (*MODEL_FIELDS, TEACHER_IDS))
        return batch

    @contextmanager
    def _old_weights(self) -> Iterator[None]:
        """The student's weights at the beginning of the step, as verl takes them for old log-probs
        where a step has several updates (``PPOTrainerSeparateAsync._compute_old_log_prob``)."""
        number = self.local_trigger_step
        # A trainer of the user's own with other workers takes old log-probs as it goes.
        if number == 0 or not hasattr(self.actor_rollout_wg, "save_model_to_cpu"):
            yield
            return
        workers = self.actor_rollout_wg
        workers.save_model_to_cpu(number)
        workers.restore_model_from_cpu(0)
        yield
        workers.restore_model_from_cpu(number)
        workers.clear_cpu_model(number)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Pruned advantages on the workers, beside verl's of task rewards; here only a tally of
        the responses."""
        if self.prune_opd.task_reward.factor:
            super()._compute_advantage(batch, metrics)
        part = f"_part_{self.local_trigger_step}" if self.parameter_sync_step > 1 else ""
        batch.extra_info[STEP] = f"step_{self.global_steps}{part}"
        self._on_workers("compute_pruned_advantage", batch, advantage_fields(self.home))
        tally = self._tally(batch)
        limits = tally.column("limit").int().tolist()
        check_lengths(batch.tags, limits, self.prune_opd.budget.longest)
        self._tallies.append(tally)
        self._look_for_faults(batch, tally)
        return batch

    @property
    def _may_lack_scores(self) -> bool:
        """Tell whether servers tell what the update is made of, and not passes of the trainer
        alone."""
        return not self.home.reference_model or self.prune_opd.student == "rollout"

    def _look_for_faults(self, batch: KVBatchMeta, tally: Tally) -> None:
        """Warn of a teacher that was late or failed, and stop before training on too little."""
        step = self.global_steps
        if self._may_lack_scores and not self.frozen:
            found, allowed = summarise_scores(tally), self.prune_opd.teacher.max_missing
            error, what = self._last_error(batch, tally, "score"), "the teacher's score"
            if self.home.reference_model:
                error, what = "an agent loop that rewrites responses?", "the rollout's report"
            refuse_missing(step, found, error, allowed, self._save_before_step, what)
        if self.prune_opd.gate.enable:
            warn_of_gate(step, summarise_gate(tally), self._last_error(batch, tally, "gate"))

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
            batch: of an update.
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
            prompt, generated = data["prompts"][0], data["response_mask"].bool()
            found.append(Sample(prompt, scores_of(data), counted_tokens(data), generated))
        return found

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


@register_trainer("prune_opd")
class PruneOPDTrainer(PruneOPD):
    """The method over the trainer that ``prune_opd.trainer_mode`` names; subclasses, too.

    Args:
        config: see ``PruneOPD``.
    """

    def __new__(cls, config: DictConfig) -> Self:
        """Make an instance of a class of both."""
        if not stands_on(cls):
            base = find_trainer(config.prune_opd.trainer_mode)
            cls = type(f"{cls.__name__}Over{base.__name__}", (cls, base), {})
        return super().__new__(cls)
