#!/bin/sh
# An MLflow server on PostgreSQL that asks for a password and answers to its own names alone.
#
#   HOST, PORT        where it listens (127.0.0.1, 5000)
#   ALLOWED_HOSTS     how clients call it: Host headers with commas (127.0.0.1:PORT and localhost:PORT)
#   MLFLOW_SERVER_CORS_ALLOWED_ORIGINS   addresses of browsers behind a proxy, such as https://mlflow.example.org (none)
#   DATABASE          postgresql+psycopg://mlflow@HOST/mlflow, without a password
#   ARTIFACTS         s3://BUCKET/PATH (with MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or a folder
#   ADMIN             the first user, an administrator (lorafront)
#   WORKERS           processes (2)
#
# Secrets, each in the variable or in the file that NAME_FILE names: RUNS_PASSWORD (of the database's role),
# MLFLOW_AUTH_ADMIN_PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY (the same one after a restart).
set -eu
. "$(dirname "$0")/secret.sh"
: "${DATABASE:?is not set}" "${ARTIFACTS:?is not set}"
secret RUNS_PASSWORD
secret MLFLOW_AUTH_ADMIN_PASSWORD
secret MLFLOW_FLASK_SERVER_SECRET_KEY
case $ARTIFACTS in s3://*) secret AWS_ACCESS_KEY_ID && secret AWS_SECRET_ACCESS_KEY ;; esac
export PGPASSWORD="$RUNS_PASSWORD"
unset RUNS_PASSWORD

export MLFLOW_AUTH_ADMIN_USERNAME="${ADMIN:-lorafront}" MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # code that a request names
MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
export MLFLOW_AUTH_CONFIG_PATH
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = $DATABASE
# Else the hash of a password is computed anew at each request. A changed password counts everywhere after these seconds.
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI

port=${PORT:-5000}
exec mlflow server --app-name basic-auth --host "${HOST:-127.0.0.1}" --port "$port" --workers "${WORKERS:-2}" \
    --allowed-hosts "${ALLOWED_HOSTS:-127.0.0.1:$port,localhost:$port}" \
    --backend-store-uri "$DATABASE" --artifacts-destination "$ARTIFACTS"
