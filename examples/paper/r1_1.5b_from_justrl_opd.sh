#!/usr/bin/env bash
# Plain OPD for the pair of r1_1.5b_from_justrl.sh: no pruning, responses of up to 12,288 tokens.
#
# The paper's Avg@16 and training time:  AMC23 AIME24 AIME25 HMMT24 HMMT25
#   OPD (this script)                     77.5  43.5  32.7  23.5  18.1   6.9 h
#
#   DATA_DIR=/path/to/parquet bash examples/paper/r1_1.5b_from_justrl_opd.sh
set -euo pipefail
export RECIPE=opd
exec bash "$(dirname "$0")/r1_1.5b_from_justrl.sh" "$@"
