#!/bin/sh
# For the PostgreSQL image, which runs it once, for an empty database: roles and databases by databases.sql. In a shell of
# its own, since the image reads the file where it may not execute it. Paths are those of compose.yaml.
(
    set -eu
    # shellcheck source=docker/secret.sh
    . /etc/lorafront/secret.sh
    secret POSTGRES_PASSWORD
    secret STUDIES_PASSWORD
    secret RUNS_PASSWORD
    psql --quiet --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname postgres </etc/lorafront/databases.sql
)
