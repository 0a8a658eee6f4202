#!/bin/sh
# The S3-compatible store of compose.yaml: versitygw over a folder, where a bucket is a folder.
#
#   FOLDER    what it serves; PORT (7070)
#
# Secrets, each in the variable or in the file that NAME_FILE names: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
set -eu
. "$(dirname "$0")/secret.sh"
secret AWS_ACCESS_KEY_ID
secret AWS_SECRET_ACCESS_KEY
export ROOT_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" ROOT_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY"
# Both names of these two, of which releases know one or the other.
export ROOT_ACCESS_KEY="$AWS_ACCESS_KEY_ID" ROOT_SECRET_KEY="$AWS_SECRET_ACCESS_KEY"
exec versitygw --port ":${PORT:-7070}" --health /health posix "${FOLDER:?is not set}"
