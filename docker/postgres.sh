#!/bin/sh
# A PostgreSQL of Debian's packages on loopback, with the roles and databases of databases.sql.
#
#   postgres.sh start FOLDER PORT    make it in a new folder, or start what is there
#   postgres.sh stop FOLDER          wait for nobody
#   postgres.sh crash FOLDER         as a power cut
#
# The first start takes STUDIES_PASSWORD and RUNS_PASSWORD from the environment. Settings: MAX_CONNECTIONS (100), LISTEN
# (127.0.0.1; further addresses with commas, for whom passwords are asked too, and nothing is encrypted).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/secret.sh"
command=$1 folder=$2 port=${3:-5432}
# shellcheck disable=SC2012 # names of versions
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
bin=${bin:-$(dirname "$(command -v pg_ctl)")}

# PostgreSQL refuses to run as root.
as_owner() {
    if [ "$(id -u)" -eq 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

start() {
    as_owner "$bin/pg_ctl" start --silent --wait --pgdata "$folder/data" --log "$folder/log" \
        --options "-p $port -c listen_addresses=${LISTEN:-127.0.0.1} -c unix_socket_directories=$folder \
-c max_connections=${MAX_CONNECTIONS:-100} -c superuser_reserved_connections=1"
}

case $command in
start)
    if [ -d "$folder/data" ]; then
        start
        exit
    fi
    secret STUDIES_PASSWORD
    secret RUNS_PASSWORD
    mkdir -p "$folder"
    if [ "$(id -u)" -eq 0 ]; then chown postgres "$folder"; fi
    as_owner "$bin/initdb" --pgdata "$folder/data" --encoding UTF8 --no-locale \
        --auth-local peer --auth-host scram-sha-256 >/dev/null
    echo "host all all samenet scram-sha-256" | as_owner tee -a "$folder/data/pg_hba.conf" >/dev/null
    start
    as_owner "$bin/psql" --quiet --no-psqlrc --host "$folder" --port "$port" --dbname postgres <"$here/databases.sql"
    ;;
stop) as_owner "$bin/pg_ctl" stop --silent --wait --mode fast --pgdata "$folder/data" ;;
crash) as_owner "$bin/pg_ctl" stop --silent --wait --mode immediate --pgdata "$folder/data" ;;
*)
    echo "postgres.sh start|stop|crash FOLDER [PORT]" >&2
    exit 2
    ;;
esac
