#!/usr/bin/env bash
# Property tests over /openapi.json of the real server; outside CI, because they take long. The
# result of the last run is in ../LOG.md.
#
#   clients/schemathesis.sh [cases per operation, default 2000]
#
# Run clients/run once before: it makes the model. BRUCHTEIL=path takes that binary, otherwise the
# release build. The report of every request goes to target/clients/schemathesis.
#
# Checked: no status of 5xx, and that status, content type and body are what the document says.
# Not checked: that all that fits the schema is accepted (a prompt may still be too long) nor that
# all else is refused (unknown fields are accepted).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cache=${CLIENTS_CACHE:-$root/target/clients}
export BRUCHTEIL=${BRUCHTEIL:-${CARGO_TARGET_DIR:-$root/target}/release/bruchteil}
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
cases=${1:-2000}

if [ ! -x "$cache/schemathesis-venv/bin/schemathesis" ]; then
    python3 -m venv "$cache/schemathesis-venv"
    "$cache/schemathesis-venv/bin/pip" install --quiet schemathesis==4.32.5
fi
mkdir -p "$cache/schemathesis"
cd "$cache/schemathesis"
checks=not_a_server_error,status_code_conformance,content_type_conformance
checks+=,response_schema_conformance
python3 -B "$here/serving.py" "$cache/models/qwen" sh -c 'exec "$@" "$BASE_URL/openapi.json"' sh \
    "$cache/schemathesis-venv/bin/schemathesis" run --checks "$checks" --seed 1 \
    --max-examples "$cases" --continue-on-failure --request-timeout 60 \
    --phases examples,coverage,fuzzing --suppress-health-check all --warnings off \
    --report junit --report-dir .
