#!/bin/sh
# A node of a Ray cluster that trains. Ends by SIGTERM, and with the head.
#
#   HEAD                    the head's HOST:PORT (127.0.0.1:6379)
#   NODE_IP                 its own address; none is found on the way to the head. 127.0.0.1 where the head has that
#   NODE_CPUS, NODE_GPUS    what it lends to trials; none is what Ray counts
#   RAY_FOLDER              the head's, where it has a private parent; Ray takes the head's in any case
#   AGENT_PORT              of the node's agent, for health checks; none is any
#
# Secret: RAY_AUTH_TOKEN, the head's, or the file that RAY_AUTH_TOKEN_PATH names.
set -eu
. "$(dirname "$0")/driver.sh"
head=${HEAD:-127.0.0.1:6379}
if [ "$(getent ahostsv4 "${head%:*}" | awk '{ print $1; exit }')" = 127.0.0.1 ]; then NODE_IP=127.0.0.1; fi
export NODE_IP="${NODE_IP:-}" RAY_START_HOOK=lorafront.search.ray_node.prepare
private_parent "${RAY_FOLDER:-}"
set -- --block --address "$head" --object-store-memory "$STORE_BYTES" --dashboard-agent-listen-port "${AGENT_PORT:-0}"
if [ -n "$NODE_IP" ]; then set -- "$@" --node-ip-address "$NODE_IP"; fi
if [ -n "${NODE_CPUS:-}" ]; then set -- "$@" --num-cpus "$NODE_CPUS"; fi
if [ -n "${NODE_GPUS:-}" ]; then set -- "$@" --num-gpus "$NODE_GPUS"; fi
exec ray start "$@"
