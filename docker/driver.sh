#!/bin/sh
# What the driver of a search needs: Ray's token, and where they are given the passwords of database and tracking server.
# head.sh reads it; by hand: driver.sh lorafront status NAME
#
# Secrets, each in the variable or in the file that NAME_FILE names: RAY_AUTH_TOKEN (its file: RAY_AUTH_TOKEN_PATH, as Ray
# calls it), STUDIES_PASSWORD (LORAFRONT_DATABASE's), MLFLOW_TRACKING_PASSWORD.
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
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
umask 077
if [ "$#" -gt 0 ]; then exec "$@"; fi
