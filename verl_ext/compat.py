"""Every verl symbol in use that verl does not document, in one place, checked at start and by a test.

verl's documented hooks (plugins, trainer registry, estimator registry, agent loops, worker groups) are not listed.
A new verl release that moves one of these fails here, with the name of what is gone and what it was for.
"""

import importlib
from dataclasses import dataclass
from importlib.metadata import version

TESTED = "0.9.1"


@dataclass(frozen=True)
class Symbol:
    """An undocumented dependency."""

    module: str
    name: str
    """Attribute path inside the module; a method is ``Class.method``."""
    why: str


_TRAINER = "verl.trainer.ppo.v1.trainer_base"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"
SYMBOLS = (
    Symbol(_TRAINER, "PPOTrainer._init_resource_pool_mgr", "puts our worker in place of verl's"),
    Symbol(_TRAINER, "PPOTrainer._submit_batch_to_rollout", "tags training prompts with the response limit"),
    Symbol(_TRAINER, "PPOTrainer._compute_old_log_prob", "calls compute_log_prob, which also returns the top-k"),
    Symbol(_TRAINER, "PPOTrainer._compute_ref_log_prob", "replaced by the teacher's pass"),
    Symbol(_TRAINER, "PPOTrainer._compute_advantage", "replaced by the pruned advantage"),
    Symbol(_TRAINER, "PPOTrainer._update_actor", "calls update_actor, which trains on candidates"),
    Symbol(_TRAINER, "PPOTrainer._save_checkpoint", "our state is written before it"),
    Symbol(_TRAINER, "PPOTrainer._load_checkpoint", "our state is read after it"),
    Symbol("verl.trainer.ppo.utils", "Role.ActorRolloutRef", "role of the colocated student and teacher"),
    Symbol("verl.workers.engine_workers", "ActorRolloutRefWorker.init_model", "builds actor and reference model"),
    Symbol("verl.workers.engine_workers", "ActorRolloutRefWorker.ref_worker_cls", "gives the reference its own model"),
    Symbol("verl.workers.engine_workers", "TrainingWorker.set_loss_fn", "takes our loss function"),
    Symbol("verl.workers.engine_workers", "TrainingWorker.infer_batch", "scoring pass"),
    Symbol("verl.workers.engine_workers", "TrainingWorker.train_mini_batch", "update"),
    Symbol(_ENGINE, "FSDPEngineWithLMHead.prepare_model_outputs", "shows the logits to the loss function"),
    Symbol("verl.utils.ulysses", "slice_input_tensor", "a rank's share of the rows under sequence parallelism"),
    Symbol("verl.utils.ulysses", "get_ulysses_sequence_parallel_world_size", "whether rows are shared out"),
    Symbol("verl.utils.tensordict_utils", "assign_non_tensor_data", "flags on a batch"),
    Symbol("verl.utils.distributed", "initialize_global_process_group_ray", "wrapped on a CPU: backend gloo"),
    Symbol("verl.plugin.platform.platform_manager", "PlatformRegistry.register", "the CPU platform"),
    Symbol("verl.experimental.agent_loop.single_turn_agent_loop", "SingleTurnAgentLoop.run", "carries the limit"),
    Symbol("verl.utils.checkpoint.checkpoint_manager", "find_latest_ckpt_path", "which checkpoint verl resumes"),
)


def missing() -> list[Symbol]:
    """Symbols that the installed verl lacks."""
    return [symbol for symbol in SYMBOLS if not _exists(symbol)]


def _exists(symbol: Symbol) -> bool:
    try:
        found = importlib.import_module(symbol.module)
        for part in symbol.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return True


def check() -> None:
    """Stop before training where verl has moved something this package stands on.

    Raises:
        RuntimeError: names the installed verl, the tested one and what is missing.
    """
    gone = missing()
    if gone:
        names = "; ".join(f"{symbol.module}.{symbol.name} ({symbol.why})" for symbol in gone)
        raise RuntimeError(f"verl {version('verl')} lacks what verl {TESTED} has: {names}; install verl=={TESTED}")
