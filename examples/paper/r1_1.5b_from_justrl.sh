#!/usr/bin/env bash
# R1-Distill-Qwen-1.5B taught by JustRL-DeepSeek-1.5B.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD                                   77.5  43.5  32.7  23.5  18.1   6.9 h
#   Prune-OPD (this script)               78.4  45.2  33.5  22.7  18.8   4.1 h  (40.6 % saved)
#
# Needs, computed and not measured: 8 GPUs of 80 GB, 100 GB of CPU memory, 45 GB of disk for checkpoints (README.md).
#
#   DATA_DIR=/path/to/parquet bash examples/paper/r1_1.5b_from_justrl.sh
#
# STUDENT and TEACHER may be folders of your own; what else can be set: run.sh beside this file.
set -euo pipefail
export NAME=r1_1.5b_from_justrl INIT=2048
export STUDENT=${STUDENT:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}
export TEACHER=${TEACHER:-hbx/JustRL-DeepSeek-1.5B}
exec bash "$(dirname "$0")/run.sh" "$@"
