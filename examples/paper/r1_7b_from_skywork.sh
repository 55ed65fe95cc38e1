#!/usr/bin/env bash
# R1-Distill-Qwen-7B taught by Skywork-OR1-7B, a close pair: the limit grows to its maximum.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD                                   88.3  67.1  52.5  33.5  32.1  17.5 h
#   Prune-OPD (this script)               88.9  66.7  52.1  33.1  31.5  17.0 h  (2.9 % saved)
#
# Needs, computed and not measured: 8 GPUs of 80 GB, 200 GB of CPU memory, 185 GB of disk for checkpoints (README.md).
#
#   DATA_DIR=/path/to/parquet bash examples/paper/r1_7b_from_skywork.sh
#
# STUDENT and TEACHER may be folders of your own; what else can be set: run.sh beside this file.
set -euo pipefail
export NAME=r1_7b_from_skywork INIT=2048 ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.7}
export STUDENT=${STUDENT:-deepseek-ai/DeepSeek-R1-Distill-Qwen-7B}
export TEACHER=${TEACHER:-Skywork/Skywork-OR1-7B}
exec bash "$(dirname "$0")/run.sh" "$@"
