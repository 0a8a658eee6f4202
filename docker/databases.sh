#!/bin/sh
# For the PostgreSQL image, which runs it once, in an empty database: roles and databases by databases.sql. (The image may
# read this file instead of running it: hence no `exit`, and paths as compose.yaml mounts them.)
set -eu
. /etc/lorafront/secret.sh
secret POSTGRES_PASSWORD
secret STUDIES_PASSWORD
secret RUNS_PASSWORD
psql --quiet --no-psqlrc --username "$POSTGRES_USER" --dbname postgres </etc/lorafront/databases.sql
