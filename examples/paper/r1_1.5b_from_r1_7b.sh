#!/usr/bin/env bash
# R1-Distill-Qwen-1.5B taught by R1-Distill-Qwen-7B.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD                                   66.4  33.5  25.4  14.4  15.0  12.5 h
#   Prune-OPD (this script)               65.9  33.3  25.8  14.6  15.0   4.0 h  (68.0 % saved)
#
# Needs, computed and not measured: 8 GPUs of 80 GB, 150 GB of CPU memory, 45 GB of disk for checkpoints (README.md).
#
#   DATA_DIR=/path/to/parquet bash examples/paper/r1_1.5b_from_r1_7b.sh
#
# STUDENT and TEACHER may be folders of your own; what else can be set: run.sh beside this file.
set -euo pipefail
export NAME=r1_1.5b_from_r1_7b INIT=1024
export STUDENT=${STUDENT:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}
export TEACHER=${TEACHER:-deepseek-ai/DeepSeek-R1-Distill-Qwen-7B}
exec bash "$(dirname "$0")/run.sh" "$@"
