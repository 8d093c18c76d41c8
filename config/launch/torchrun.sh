#!/bin/bash
# Machines without a scheduler: run this on each, from the repository's folder.
#
#   bash config/launch/torchrun.sh                             one machine
#   NODES=4 FIRST=node1 bash config/launch/torchrun.sh         on each of four; node1 is one of them
#
# data/ and out/ must be the same folders on all machines (docs/SCALE.md, "Where data and runs live").
set -eu

RECIPE="${RECIPE:-config/gpt2_124m.py}"
NODES="${NODES:-1}"
GPUS="${GPUS:-8}" # of each machine
FIRST="${FIRST:-localhost}"

exec torchrun \
    --nnodes "$NODES" \
    --nproc_per_node "$GPUS" \
    --rdzv_backend c10d \
    --rdzv_endpoint "$FIRST:29500" \
    --rdzv_id gptlab \
    --max_restarts 3 \
    train.py --config "$RECIPE" --resume auto
