#!/bin/sh
# The head of a Ray cluster: drivers of searches, the server for jobs, and no trials. Ends by SIGTERM.
#
#   NODE_IP           the address or name by which the other nodes reach it (127.0.0.1: all of the cluster is this machine)
#   RAY_PORT          (6379)
#   DASHBOARD_HOST, DASHBOARD_PORT   where the server for jobs listens (127.0.0.1, 8265)
#   NODE_CPUS, NODE_GPUS             what it lends to trials (0, 0)
#   AGENT_PORT        of the node's agent, for health checks; none is any
#   RAY_FOLDER        Ray's temporary folder, with a short name (/tmp/ray). Ray opens it to everybody: where others use the
#                     machine give it a parent of its own, which is made private, and the same one to worker.sh
#
# Secrets: those of driver.sh, whose environment the drivers inherit.
set -eu
. "$(dirname "$0")/driver.sh"
NODE_IP=$(getent ahostsv4 "${NODE_IP:-127.0.0.1}" | awk '{ print $1; exit }')
port=${RAY_PORT:-6379}
private_parent "${RAY_FOLDER:-}"
# So that drivers, too, leave 127.0.0.1 as it is.
if [ "$NODE_IP" = 127.0.0.1 ]; then export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; fi
export NODE_IP RAY_START_HOOK=lorafront.search.ray_node.prepare

ray start --head --block --node-ip-address "$NODE_IP" --port "$port" --temp-dir "${RAY_FOLDER:-/tmp/ray}" \
    --object-store-memory "$STORE_BYTES" --num-cpus "${NODE_CPUS:-0}" --num-gpus "${NODE_GPUS:-0}" --dashboard-agent-listen-port "${AGENT_PORT:-0}" \
    --include-dashboard true --dashboard-host "${DASHBOARD_HOST:-127.0.0.1}" --dashboard-port "${DASHBOARD_PORT:-8265}" &
ray=$!

# Searches that were submitted to a head that is gone go on.
go_on() {
    until python3 -c "import socket; socket.create_connection(('$NODE_IP', $port), 1)" 2>/dev/null; do sleep 1; done
    LORAFRONT_RAY="$NODE_IP:$port" exec lorafront resume --submitted
}
go_on || true &
resumed=$!

# The driver first: it stops its trials, which needs Ray.
# shellcheck disable=SC2329 # by the trap
end() {
    trap - TERM INT
    kill -TERM "$resumed" 2>/dev/null || true
    wait "$resumed" || true
    kill -TERM "$ray" 2>/dev/null || true
    wait "$ray" || true
    exit 0
}
trap end TERM INT
status=0
wait "$ray" || status=$?
kill -TERM "$resumed" 2>/dev/null || true
exit "$status"
