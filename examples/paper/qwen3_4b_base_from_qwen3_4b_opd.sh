#!/usr/bin/env bash
# Plain OPD for the pair of qwen3_4b_base_from_qwen3_4b.sh: no pruning, responses of up to 12,288 tokens.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD (this script)                     42.7  14.8  10.6   5.4   2.9  28.5 h
#
#   DATA_DIR=/path/to/parquet bash examples/paper/qwen3_4b_base_from_qwen3_4b_opd.sh
set -euo pipefail
export RECIPE=opd
exec bash "$(dirname "$0")/qwen3_4b_base_from_qwen3_4b.sh" "$@"
