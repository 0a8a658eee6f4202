#!/bin/sh
# For the other scripts: `secret NAME` takes a password from the variable NAME, or from the file that NAME_FILE names, and
# exports it. It refuses what is empty, short, or stands in examples: such a server would be open to everybody.
secret() {
    eval "value=\${$1:-} file=\${$1_FILE:-}"
    # shellcheck disable=SC2154 # both are set by the line above
    if [ -z "$value" ] && [ -n "$file" ]; then value=$(cat "$file"); fi
    wrong=
    case $(printf %s "$value" | tr '[:upper:]' '[:lower:]') in
    "") wrong="is not set" ;;
    *password* | *changeme* | *change-me* | *change_me* | *default* | *example* | *minioadmin* | 1234* | \<*\> | \
        *postgres* | *lorafront* | *mlflow*)
        wrong="is a known default" ;;
    esac
    if [ -z "$wrong" ] && [ "${#value}" -lt 12 ]; then wrong="is shorter than 12 characters"; fi
    if [ -n "$wrong" ]; then
        echo "$1 $wrong: give a random one in $1, or in a file that $1_FILE names (docker/secrets.sh makes them)" >&2
        exit 2
    fi
    export "$1=$value"
    unset value file wrong
}
