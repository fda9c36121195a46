#!/usr/bin/env bash
# The table of a paper in LaTeX, from 18 configurations with three seeds each:  examples/paper_table.sh [SWEEP.json] > table.tex
# ESPALIER_URL and ESPALIER_API_KEY say where the service is. Started again with the same file it goes on with the sweep it has.
set -euo pipefail
file=${1:-$(dirname "$0")/paper.json}

key="paper-$(sha256sum < "$file" | cut -c1-16)"
sweep=$(espalier sweep submit "$file" --idempotency-key "$key" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
echo "espalier sweep show $sweep" >&2
espalier sweep table "$sweep" --wait --format latex
