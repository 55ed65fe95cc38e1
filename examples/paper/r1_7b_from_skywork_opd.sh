#!/usr/bin/env bash
# Plain OPD for the pair of r1_7b_from_skywork.sh: no pruning, responses of up to 12,288 tokens.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD (this script)                     88.3  67.1  52.5  33.5  32.1  17.5 h
#
#   DATA_DIR=/path/to/parquet bash examples/paper/r1_7b_from_skywork_opd.sh
set -euo pipefail
export RECIPE=opd
exec bash "$(dirname "$0")/r1_7b_from_skywork.sh" "$@"
