#!/usr/bin/env bash
# Qwen3-4B-Base taught by Qwen3-4B, without thinking.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD                                   42.7  14.8  10.6   5.4   2.9  28.5 h
#   Prune-OPD (this script)               42.7  16.3  14.6   6.7   5.6  13.5 h  (52.6 % saved)
# The two end a response with different tokens, and a warning at start says so: docs/troubleshooting.md.
#
# Needs, computed and not measured: 8 GPUs of 80 GB, 200 GB of CPU memory, 100 GB of disk for checkpoints (README.md).
#
#   DATA_DIR=/path/to/parquet bash examples/paper/qwen3_4b_base_from_qwen3_4b.sh
#
# STUDENT and TEACHER may be folders of your own; what else can be set: run.sh beside this file.
set -euo pipefail
export NAME=qwen3_4b_base_from_qwen3_4b INIT=1024
export STUDENT=${STUDENT:-Qwen/Qwen3-4B-Base}
export TEACHER=${TEACHER:-Qwen/Qwen3-4B}
exec bash "$(dirname "$0")/run.sh" +data.apply_chat_template_kwargs.enable_thinking=false "$@"
