"""Workers of Prune-OPD: verl's actor and reference worker, the reference model being the teacher,
or several.

Passes return blocks of (response, K) values as jagged fields, which verl's ``register`` puts into
TransferQueue, so they stay where the next worker reads them; ``fields`` has their names.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.utils.profiler import DistProfiler
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from recipe.prune_opd.checks.models import end_tokens
from recipe.prune_opd.config import load_config
from recipe.prune_opd.method.loss import topk_policy_loss
from recipe.prune_opd.method.pruning import Pruned, prune
from recipe.prune_opd.method.task_reward import Candidates
from recipe.prune_opd.records.tally import Facts, Tally
from recipe.prune_opd.teacher.answers import SERVED_IDS, SERVED_LOG_PROBS, served_rows
from recipe.prune_opd.teacher.home import build_home
from recipe.prune_opd.training.fields import (
    ADVANTAGES,
    CANDIDATES,
    COUNTED,
    ERRORS,
    EXTRA,
    LIMIT,
    OLD_LOG_PROBS,
    POSITIONS,
    SAMPLED_OLD,
    STEP,
    STUDENT_IDS,
    STUDENT_LOG_PROBS,
    STUDENT_ON_TEACHER,
    SUMS,
    TASK_ADVANTAGES,
    TEACHER,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    TEACHER_ON_STUDENT,
    TEACHER_SAMPLED,
    advantage_fields,
    counted_tokens,
    limits_of,
    reports,
    scores_of,
    teachers_of,
)
from recipe.prune_opd.training.jagged import jagged, refuse_nan
from recipe.prune_opd.training.rollout_writer import RolloutWriter
from recipe.prune_opd.training.teacher_workers import build_teachers
from verl_ext import compat
from verl_ext.topk import Request, TopKPass, collect, join_columns, request_pass, scoring_rows

_on_actor = make_nd_compute_dataproto_dispatch_fn(mesh_name="actor")
_on_ref = make_nd_compute_dataproto_dispatch_fn(mesh_name="ref")


class PruneOPDWorker(RolloutWriter, ActorRolloutRefWorker):
    """Student (actor and rollout) and frozen teachers (reference model) on the same devices.

    ``config`` is verl's ``actor_rollout_ref`` node with ``prune_opd`` and ``teacher_vocab_size``
    beside its own keys. With the teacher on servers there is no reference model. A trainer whose
    worker can more gets a subclass of both, see ``modes.with_method``.
    """

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build all models. See ``ActorRolloutRefWorker.init_model``."""
        if self.config.actor.strategy == "megatron":
            compat.check("megatron-core")
        self.prune_opd = load_config(self.config.prune_opd)
        self.home = build_home(self.prune_opd)
        if self.home.held:
            # The base class looks for parts of this name. The trainer knows nothing of a reference
            # model, so the role is that of the student, whatever it is in this mode.
            self.role += "_ref"
        # The base class gives the reference model a copy of the actor's model; this is its only
        # hook.
        self.ref_worker_cls = partial(build_teachers, self.config, self.prune_opd.teacher)
        super().init_model()
        student = self.actor.model_config
        tokens = student.hf_config.get_text_config().vocab_size
        self.vocab_size = min(tokens, self.config.teacher_vocab_size)
        self.actor.set_loss_fn(TopKPass(self._policy_loss, tokens))
        self.ends = end_tokens(student.generation_config, student.tokenizer)
        self.max_length = self.prune_opd.budget.longest

    # --------------------------------------------------------------------------------------- passes

    @register(dispatch_mode=_on_actor)
    @DistProfiler.annotate(color="blue", role="actor_compute_log_prob")
    def compute_log_prob(self, data: TensorDict) -> TensorDict | None:
        """The pass that gives the old log-probs and the entropy gives the student's top-k as well,
        or scores the rollout's, where teacher servers were asked about that."""
        request = Request(topk=self.prune_opd.topk, vocab_size=self.vocab_size)
        blocks = {"top_ids": STUDENT_IDS, "top_log_probs": STUDENT_LOG_PROBS}
        if self.home.asks_on_student:
            own = slice(-self.prune_opd.topk, None)
            data[STUDENT_IDS] = served_rows(data[SERVED_IDS], data["responses"], own)
            request, blocks = Request(at=STUDENT_IDS), {"log_probs_at": STUDENT_LOG_PROBS}
        request_pass(data, request, sampled=True, entropy=True)
        found = _fields(self.actor.infer_batch(data), data, blocks, "log_probs", "entropy")
        if found is not None and self.home.asks_on_student:
            found[STUDENT_IDS] = data[STUDENT_IDS]
        return found

    @register(dispatch_mode=_on_ref)
    @DistProfiler.annotate(color="olive", role="ref_compute_log_prob")
    def compute_ref_log_prob(self, data: TensorDict) -> TensorDict | None:
        """One teacher pass: its own top-k, and its log-probs on the student's ids or on the sampled
        tokens."""
        return self._teacher_pass(self.ref, data)

    @register(dispatch_mode=_on_actor)
    @DistProfiler.annotate(color="olive", role="ref_compute_log_prob")
    def compute_base_log_prob(self, data: TensorDict) -> TensorDict | None:
        """The same of a teacher that is the student without its LoRA adapter."""
        tu.assign_non_tensor_data(data, "no_lora_adapter", True)
        return self._teacher_pass(self.actor, data)

    def _teacher_pass(self, model: TrainingWorker, data: TensorDict) -> TensorDict | None:
        at = STUDENT_IDS if STUDENT_IDS in data else None
        request = Request(topk=self.prune_opd.topk, vocab_size=self.vocab_size, at=at)
        request_pass(data, request, sampled="sampled" in self.prune_opd.rules.needs)
        tu.assign_non_tensor_data(data, "temperature", self.prune_opd.teacher.temperature)
        blocks = {
            "top_ids": TEACHER_IDS,
            "top_log_probs": TEACHER_LOG_PROBS,
            "log_probs_at": TEACHER_ON_STUDENT,
        }
        output = _fields(model.infer_batch(data), data, blocks, "log_probs")
        if output is not None and "log_probs" in output:
            output[TEACHER_SAMPLED] = collect(
                output.pop("log_probs").values(), data["input_ids"], data["responses"]
            )
        return output

    @register(dispatch_mode=_on_actor)
    @DistProfiler.annotate(color="blue", role="actor_compute_log_prob")
    def compute_student_on_teacher(self, data: TensorDict) -> TensorDict | None:
        """One more student pass, for strategies that reward the teacher's candidates."""
        request_pass(data, Request(at=TEACHER_IDS), sampled=False)
        return _fields(self.actor.infer_batch(data), data, {"log_probs_at": STUDENT_ON_TEACHER})

    @register(dispatch_mode=_on_actor)
    @DistProfiler.annotate(color="red", role="actor_update", scheduled=True)
    def update_actor(self, data: TensorDict) -> TensorDict | None:
        """verl's update with the loss over candidates."""
        request_pass(data, Request(at=CANDIDATES), sampled=False)
        # The engine counts a mini-batch's tokens on it, and nothing else.
        data["loss_mask"] = data[COUNTED]
        output = self.actor.train_mini_batch(data=data)
        return output.cpu() if output is not None else None

    @register(dispatch_mode=_on_actor)
    def read_served_scores(self, data: TensorDict) -> TensorDict | None:
        """Answers of teacher servers about the responses, as the fields that a pass of the teacher
        would give.

        One rank of a sequence-parallel group answers, as in ``compute_pruned_advantage``.
        """
        if not self.actor.engine.is_mp_src_rank_with_outputs():
            return None
        given = data[SERVED_IDS], data[SERVED_LOG_PROBS]
        first = int("sampled" in self.prune_opd.rules.needs)
        own = slice(first, first + self.prune_opd.topk)
        ids, log_probs = (served_rows(field, data["responses"], own) for field in given)
        fields = {TEACHER_IDS: ids, TEACHER_LOG_PROBS: log_probs}
        if first:
            fields[TEACHER_SAMPLED] = served_rows(given[1], data["responses"], 0)
        if self.home.asks_on_student:
            rest = slice(own.stop, own.stop + self.prune_opd.topk)
            ids, log_probs = (served_rows(field, data["responses"], rest) for field in given)
            # Of an id that one of the models lacks the wide row's bound says nothing.
            log_probs.values().masked_fill_(ids.values() >= self.vocab_size, -torch.inf)
            fields[TEACHER_ON_STUDENT] = log_probs
        return TensorDict(fields, batch_size=len(data))

    @register(dispatch_mode=_on_actor)
    def read_reported_student(self, data: TensorDict) -> TensorDict | None:
        """What the rollout reported of the student, as the fields that a pass of it would give.

        A row with an id that one of the models lacks is missing as a whole. One rank of a
        sequence-parallel group answers, as in ``compute_pruned_advantage``.
        """
        if not self.actor.engine.is_mp_src_rank_with_outputs():
            return None
        own, given = slice(-self.prune_opd.topk, None), (data[SERVED_IDS], data[SERVED_LOG_PROBS])
        ids, log_probs = (served_rows(field, data["responses"], own) for field in given)
        rows = ids.values()
        lacking = ((rows < 0) | (rows >= self.vocab_size)).any(-1, keepdim=True)
        rows.masked_fill_(lacking, 0)
        log_probs.values().masked_fill_(lacking, -torch.inf)
        return TensorDict({STUDENT_IDS: ids, STUDENT_LOG_PROBS: log_probs}, batch_size=len(data))

    # ------------------------------------------------------------------------------- drift and loss

    @register(dispatch_mode=_on_actor)
    def compute_pruned_advantage(self, data: TensorDict) -> TensorDict | None:
        """Events, weights, rewards and advantages of this worker's responses, and their tally.

        Of a sequence-parallel group, whose ranks have the same responses, one rank answers for all.
        """
        if not self.actor.engine.is_mp_src_rank_with_outputs():
            return None
        config = self.prune_opd
        padded = {
            name: torch.nested.to_padded_tensor(value, 0)
            for name, value in data.items()
            if name in advantage_fields(self.home) and name not in (EXTRA, LIMIT, TEACHER)
        }
        refuse_nan(padded)
        scores = scores_of(padded)
        generated = padded["response_mask"].bool()
        pruned = prune(scores, counted_tokens(padded), config.rules, generated)
        offsets = data["responses"].offsets()
        ended = self._ended(scores.responses, generated)
        task = self._task_advantages(padded, ended)
        facts = Facts(
            generated=generated,
            ended=ended,
            task=None if task is None else task.abs().sum(-1),
            missing=(generated & ~pruned.mask).sum(-1),
            limits=limits_of(data),
            reports=reports(data),
            teachers=teachers_of(data),
        )
        tally = Tally.of(pruned, scores, facts, self.max_length)
        results = self._results(pruned, self._candidates(pruned, padded, task))
        sums = {SUMS: tally.rows, POSITIONS: tally.positions}
        if config.dump_dir:
            self._dump(data, padded | results | sums | {"lengths": offsets.diff()})
        fields = {name: jagged(value, offsets) for name, value in results.items()}
        found = TensorDict({**fields, **sums}, batch_size=len(data))
        if self.home.is_asked:
            tu.assign_non_tensor_stack(found, ERRORS, [told.errors for told in facts.reports])
        return found

    def _task_advantages(self, padded: Mapping[str, Tensor], ended: Tensor) -> Tensor | None:
        """(B, T) float, the factor times what verl's estimator made of task rewards; None: these
        are not trained on."""
        given = self.prune_opd.task_reward
        if not given.factor:
            return None
        trained = padded["response_mask"].bool() & (ended | (given.responses == "all")).unsqueeze(1)
        return torch.where(trained, given.factor * padded[TASK_ADVANTAGES], 0.0)

    def _candidates(
        self, pruned: Pruned, padded: Mapping[str, Tensor], task: Tensor | None
    ) -> Candidates:
        """What the loss sums over."""
        reward = pruned.reward
        own = Candidates(reward.ids.int(), reward.student_log_probs, pruned.advantages)
        if task is None:
            return own
        return own.with_sampled(padded["responses"], padded[SAMPLED_OLD], task)

    def _results(self, pruned: Pruned, candidates: Candidates) -> dict[str, Tensor]:
        """Fields that the update and verl's metrics read, (B, T) or (B, T, K') each."""
        # verl's own metrics read (response,) advantages: their sum over candidates.
        together = candidates.advantages.sum(-1)
        return {
            CANDIDATES: candidates.ids,
            OLD_LOG_PROBS: candidates.old_log_probs,
            ADVANTAGES: candidates.advantages,
            COUNTED: self._counted(pruned).long(),
            TASK_ADVANTAGES: together,
            "returns": together,
        }

    def _ended(self, responses: Tensor, generated: Tensor) -> Tensor:
        """(B,) bool, whether the student's last token is one that ends a response."""
        positions = torch.arange(responses.shape[1])
        last = responses.gather(1, (generated * positions).amax(-1, keepdim=True))
        return torch.isin(last, torch.tensor(sorted(self.ends))).squeeze(1)

    def _counted(self, pruned: Pruned) -> Tensor:
        """(B, T) bool, the tokens that the loss is divided by."""
        reliable = pruned.reliability.weight > 0
        return (
            pruned.mask & reliable if self.prune_opd.loss_normaliser == "reliable" else pruned.mask
        )

    def _policy_loss(self, log_probs: Tensor, data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
        """``topk_policy_loss`` on one micro-batch, its responses packed into one row: (1, R, K)."""
        actor = self.config.actor
        rows = scoring_rows(data["input_ids"].offsets(), data["responses"].offsets())
        loss, metrics = topk_policy_loss(
            log_probs[rows].unsqueeze(0),
            data[OLD_LOG_PROBS].values().unsqueeze(0),
            data[ADVANTAGES].values().unsqueeze(0),
            data["response_mask"].values().unsqueeze(0),
            clip_low=actor.clip_ratio if actor.clip_ratio_low is None else actor.clip_ratio_low,
            clip_high=actor.clip_ratio if actor.clip_ratio_high is None else actor.clip_ratio_high,
            clip_c=actor.clip_ratio_c,
            # The engine averages gradients over data-parallel ranks; the sum over the mini-batch is
            # wanted.
            num_tokens=data["batch_num_tokens"] / data["dp_size"],
        )
        logged = {
            f"actor/{name}": Metric(AggregationType.MEAN, value) for name, value in metrics.items()
        }
        return loss, logged | {"actor/pg_loss": Metric(AggregationType.SUM, loss.detach())}

    def _dump(self, data: TensorDict, tensors: Mapping[str, Tensor]) -> None:
        folder = Path(str(self.prune_opd.dump_dir))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(dict(tensors), folder / f"{data[STEP]}_rank_{self.rank}.pt")


def _fields(
    output: TensorDict | None, data: TensorDict, blocks: Mapping[str, str], *keep: str
) -> TensorDict | None:
    """Columns of a pass put together to jagged (B, response, K) fields.

    Args:
        output: what the engine returned, None on ranks that return nothing.
        data: the batch.
        blocks: column name -> field name.
        *keep: other outputs to pass on as they are.
    """
    if output is None:
        return None
    fields = {
        field: collect(join_columns(output, name), data["input_ids"], data["responses"])
        for name, field in blocks.items()
        if f"{name}/0" in output
    }
    kept = {name: output[name] for name in keep if name in output}
    return TensorDict({**fields, **kept}, batch_size=len(data))
