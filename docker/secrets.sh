#!/bin/sh
# Random passwords and tokens in a new folder, a file for each, as compose.yaml wants them: secrets.sh FOLDER
# And lets the containers' users read what compose.yaml mounts from here, whatever the umask of the checkout was.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
(cd "$here" && chmod a+r databases.sh databases.sql secret.sh store.sh)
folder=$1
mkdir -m 700 "$folder" # fails where it is there: what runs already would lose its passwords
for name in postgres_password studies_password runs_password mlflow_password mlflow_secret_key ray_token \
    store_access_key store_secret_key; do
    # Readable inside the private folder: the user of a container has another id than yours.
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name"
    chmod 444 "$folder/$name"
done
: >"$folder/hf_token" # yours, where a model needs one
chmod 644 "$folder/hf_token"
