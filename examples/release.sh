#!/usr/bin/env bash
# Prunes a model, and hands it on only if its gates say so:  examples/release.sh SPEC.json FOLDER
# 0: FOLDER/model may ship.  3: it may not.  8: that is not certain.  Others as `espalier --help` lists them.
# ESPALIER_URL and ESPALIER_API_KEY say where the service is; RELEASE names the release, so that a pipeline that is
# started again goes on with the job it has; TIMEOUT_S is the longest wait.
set -euo pipefail
spec=$1 folder=$2
mkdir -p "$folder"

key="release-${RELEASE:-local}-$(sha256sum < "$spec" | cut -c1-16)"
submitted=$(espalier submit "$spec" --label "release=${RELEASE:-local}" --idempotency-key "$key" --json)
job=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])' <<< "$submitted")
echo "$job" > "$folder/job"

verdict=0
espalier gate "$job" --timeout "${TIMEOUT_S:-7200}" || verdict=$?
if [[ $verdict =~ ^(0|3|8)$ ]]; then
  espalier report "$job" --html "$folder/report.html" # for whoever has to decide
fi
if [[ $verdict == 0 ]]; then
  espalier download "$job" --out "$folder/model" # each file against its sha256
fi
exit "$verdict"
