#!/bin/sh
#SBATCH --job-name=lorafront
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
# An example for SLURM: a Ray cluster on the allocated nodes, and a search on it. Its arguments are those of lorafront:
#
#   sbatch docker/slurm.sh run search.yaml
#   sbatch docker/slurm.sh resume NAME          # after the time was over
#
# Change: the lines above; LORAFRONT_ROOT, a folder that all nodes share; how lorafront comes into PATH (a module, a virtual
# environment on shared storage). A container instead: give srun your site's option (--container-image=…). The token and the
# traffic of Ray are not encrypted: use it where nodes of a job are on a network of their own, as they mostly are.
set -eu
export LORAFRONT_ROOT="${LORAFRONT_ROOT:?a folder that all nodes share}"
# SLURM runs a copy of this file; the other scripts are where they were.
scripts=${LORAFRONT_SCRIPTS:-$SLURM_SUBMIT_DIR/docker}

umask 077
folder=$(mktemp -d "$LORAFRONT_ROOT/.slurm-$SLURM_JOB_ID-XXXXXX") # the token for this job alone, in a file of yours
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token"
od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"

# Ports by the job's number: two jobs may share a node.
port=$((20000 + SLURM_JOB_ID % 10000)) dashboard=$((30000 + SLURM_JOB_ID % 10000))
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=$(echo "$nodes" | head -n 1)
address=$(getent ahostsv4 "$first" | awk '{ print $1; exit }')
gpus=${SLURM_GPUS_ON_NODE:-0} cpus=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK="$cpus"                # which srun takes over from sbatch no more, since 22.05
export RAY_FOLDER="/tmp/lf-$SLURM_JOB_ID/ray" # in a private folder

NODE_IP=$address RAY_PORT=$port DASHBOARD_PORT=$dashboard NODE_CPUS=$cpus NODE_GPUS=$gpus \
    srun --nodes 1 --ntasks 1 --nodelist "$first" --overlap "$scripts/head.sh" &
running=$!
driver=

# The driver first: it stops its trials, which needs Ray.
# shellcheck disable=SC2329 # by the traps
end() {
    trap - TERM INT EXIT
    for process in $driver $running; do
        kill -TERM "$process" 2>/dev/null || true
        wait "$process" || true
    done
    srun --ntasks-per-node 1 --overlap rm -rf "/tmp/lf-$SLURM_JOB_ID" || true
    rm -rf "$folder"
}
trap 'end; exit 143' TERM INT
trap end EXIT

tries=0
until python3 -c "import socket; socket.create_connection(('$address', $port), 5)" 2>/dev/null; do
    tries=$((tries + 1))
    if [ "$tries" -ge 60 ]; then echo "the head of Ray does not answer" >&2 && exit 1; fi
    sleep 5
done
for node in $nodes; do
    if [ "$node" = "$first" ]; then continue; fi
    HEAD=$address:$port NODE_CPUS=$cpus NODE_GPUS=$gpus \
        srun --nodes 1 --ntasks 1 --nodelist "$node" --overlap "$scripts/worker.sh" &
    running="$running $!"
done

# The driver, on the head's node. It does not wait for the others.
LORAFRONT_RAY="$address:$port" srun --nodes 1 --ntasks 1 --nodelist "$first" --overlap \
    "$scripts/driver.sh" lorafront "$@" &
driver=$!
status=0
wait "$driver" || status=$?
exit "$status"
