#!/usr/bin/env bash
# Plain OPD for the pair of r1_1.5b_from_r1_7b.sh: no pruning, responses of up to 12,288 tokens.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD (this script)                     66.4  33.5  25.4  14.4  15.0  12.5 h
#
#   DATA_DIR=/path/to/parquet bash examples/paper/r1_1.5b_from_r1_7b_opd.sh
set -euo pipefail
export RECIPE=opd
exec bash "$(dirname "$0")/r1_1.5b_from_r1_7b.sh" "$@"
