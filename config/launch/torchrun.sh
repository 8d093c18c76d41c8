#!/bin/bash
# Machines without a scheduler: run this on each, from the repository's folder.
#
#   bash config/launch/torchrun.sh                             one machine
#   NODES=4 FIRST=node1 bash config/launch/torchrun.sh         on each of four; node1 is one of them
#
# The other files of this folder call it too. More words are options of train.py.
# data/ and out/ must be the same folders on all machines (docs/SCALE.md, "Where data and runs live").
set -eu

RECIPE="${RECIPE:-config/gpt2_124m.py}"
NODES="${NODES:-1}"
GPUS="${GPUS:-8}" # of each machine

if [ -z "${VIRTUAL_ENV:-}" ] && [ -f .venv/bin/activate ]; then
    source .venv/bin/activate
fi
if [ "$NODES" = 1 ]; then
    meet=(--standalone)
else
    : "${FIRST:?set FIRST to the name of one of the machines, the same on all}"
    meet=(--rdzv_backend c10d --rdzv_endpoint "$FIRST:29500" --rdzv_id "${JOB:-gptlab}")
fi

# A process that fails ends all, and all begin again from the last checkpoint, three times at most.
# A signal stops the training: it has four minutes to finish its step and save; torchrun's own limit
# of half a minute is too short for a large model.
exec torchrun \
    --nnodes "$NODES" \
    --nproc_per_node "$GPUS" \
    "${meet[@]}" \
    --max_restarts 3 \
    --signals_to_handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown_timeout 240 \
    train.py --config "$RECIPE" --resume auto "$@"
