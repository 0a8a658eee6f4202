#!/bin/sh
# What the driver of a search needs: Ray's token, and where they are given the passwords of database and tracking server and
# the keys of the store for copies.
# head.sh reads it; by hand: driver.sh lorafront status NAME
#
# Secrets, each in the variable or in the file that NAME_FILE names: RAY_AUTH_TOKEN (its file: RAY_AUTH_TOKEN_PATH, as Ray
# calls it), STUDIES_PASSWORD (LORAFRONT_DATABASE's), MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID and
# AWS_SECRET_ACCESS_KEY (LORAFRONT_STORAGE's).
set -eu
. "$(dirname "$0")/secret.sh"
# shellcheck disable=SC2034 # `secret` reads it
RAY_AUTH_TOKEN_FILE=${RAY_AUTH_TOKEN_PATH:-}
secret RAY_AUTH_TOKEN
if [ -n "${STUDIES_PASSWORD:-}${STUDIES_PASSWORD_FILE:-}" ]; then
    secret STUDIES_PASSWORD
    export PGPASSWORD="$STUDIES_PASSWORD"
    unset STUDIES_PASSWORD
fi
if [ -n "${MLFLOW_TRACKING_PASSWORD:-}${MLFLOW_TRACKING_PASSWORD_FILE:-}" ]; then secret MLFLOW_TRACKING_PASSWORD; fi
if [ -n "${AWS_ACCESS_KEY_ID:-}${AWS_ACCESS_KEY_ID_FILE:-}" ]; then
    secret AWS_ACCESS_KEY_ID
    secret AWS_SECRET_ACCESS_KEY
fi
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
umask 077

# For head.sh and worker.sh: a folder of this user alone around Ray's, which Ray opens to everybody.
private_parent() {
    parent=$(dirname "$1")
    case $parent in . | / | /tmp) return 0 ;; esac
    if mkdir -m 700 "$parent" 2>/dev/null; then return 0; fi
    if [ -L "$parent" ] || [ "$(stat -c %u "$parent")" != "$(id -u)" ]; then
        echo "$parent, around RAY_FOLDER, is not yours" >&2
        exit 2
    fi
    chmod 700 "$parent"
}
# shellcheck disable=SC2034 # those two; trials pass little through Ray, and more would not fit into a container's /dev/shm
STORE_BYTES=1000000000
if [ "$#" -gt 0 ]; then exec "$@"; fi
