#!/usr/bin/env bash
# Settings that all pairs of the paper share (Prune-OPD, arXiv:2605.07804): 8 GPUs on one node, 203 steps of 64 prompts
# with 4 responses each. The pair scripts beside this file set NAME, STUDENT, TEACHER and INIT and call it; arguments
# after the script's name are further overrides for verl, and win.
#
#   DATA_DIR=/path/to/parquet bash examples/paper/r1_1.5b_from_justrl.sh
#
# DATA_DIR   folder with dapo_math_17k.parquet, amc23.parquet, aime24.parquet, aime25.parquet, hmmt24.parquet,
#            hmmt25.parquet in verl's format (default: data); the trainer must find it under the same absolute path
# RECIPE     prune_opd (default), prune_opd_gate, opd, iw_opd, semi_opd, or one that needs an argument: opd_fixed_length
#            prune_opd.budget.max=N, opd_first prune_opd.drift.weights_args.tokens=N
# ROLLOUT    vllm (default) or sglang
# GPUS       GPUs of the node (default: 8)
# ROLLOUT_MEMORY   share of a GPU's memory that the rollout engine takes (default: 0.75; 0.7 with a student of 7B)
# PYTHON     interpreter (default: python)
#
# γ, w_drop, w_base, k, ρ, step, margin, patience and the smallest limit are not repeated here: the recipe's defaults are
# the paper's. How validation samples and is graded is in recipe/prune_opd/conf/recipe/paper_validation.yaml.
set -euo pipefail
: "${NAME:?start one of the pair scripts beside this file}" "${STUDENT:?}" "${TEACHER:?}" "${INIT:?}"

DATA_DIR=${DATA_DIR:-data}
[[ $DATA_DIR == /* ]] || DATA_DIR=$PWD/$DATA_DIR # the trainer may run in another folder or on another machine
RECIPE=${RECIPE:-prune_opd}
PROMPT=1024      # longest prompt
LIMIT=12288      # longest training response, with and without pruning

settings=(
  "+recipe=[$RECIPE,paper_validation]"
  "actor_rollout_ref.model.path=$STUDENT"
  "prune_opd.teacher.path=$TEACHER"

  "data.train_files=$DATA_DIR/dapo_math_17k.parquet"
  "data.benchmarks=$DATA_DIR" # the validation files in it are named in paper_validation.yaml
  "data.max_prompt_length=$PROMPT"
  "data.filter_overlong_prompts=true"
  "data.train_batch_size=64"

  "actor_rollout_ref.actor.ppo_mini_batch_size=64" # prompts: one update per step
  "actor_rollout_ref.actor.optim.lr=1e-6"
  "actor_rollout_ref.actor.optim.lr_scheduler_type=constant"
  "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32" # master weights; verl computes in bf16
  "actor_rollout_ref.actor.use_dynamic_bsz=true"
  # Must hold the longest sequence; the scoring passes of student and teacher follow it.
  "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$((PROMPT + LIMIT))"

  "actor_rollout_ref.rollout.name=${ROLLOUT:-vllm}"
  # The engine sleeps while the trainer computes: what it may take is bounded by the weights and optimizer that stay.
  "actor_rollout_ref.rollout.gpu_memory_utilization=${ROLLOUT_MEMORY:-0.75}"
  "actor_rollout_ref.rollout.tensor_model_parallel_size=1"
  "actor_rollout_ref.rollout.n=4"
  "actor_rollout_ref.rollout.temperature=1.0"

  "trainer.nnodes=1"
  "trainer.n_gpus_per_node=${GPUS:-8}"
  "trainer.total_epochs=1"
  "trainer.total_training_steps=203"
  "trainer.save_freq=20"
  "trainer.max_actor_ckpt_to_keep=2" # verl keeps all of them, 12 bytes per parameter each
  "trainer.logger=[console,file]"
  "trainer.project_name=prune_opd_paper"
  "trainer.experiment_name=$NAME-$RECIPE"
)
if [[ $RECIPE == opd_fixed_length ]]; then
  : # the caller gives prune_opd.budget.max
else
  settings+=("prune_opd.budget.max=$LIMIT")
fi
if [[ $RECIPE == prune_opd* ]]; then
  settings+=("prune_opd.budget.init=$INIT")
fi

exec "${PYTHON:-python}" -m verl.trainer.main_ppo "${settings[@]}" "$@"
