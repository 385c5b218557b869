#!/bin/sh
# The whole way on sample data: search, export, final training, prediction. Run by `make demo`.
# It may be interrupted and run again; what is done already is not done twice.
set -eu
cd "$(dirname "$0")/.."

out=${MELSEARCH_HOME:-.melsearch}/demo
test -d "$out/data" || melsearch sample-data "$out/data" --clips 160
melsearch up examples/demo.toml --data "$out/data" --workers 2
melsearch export demo -o "$out/best.toml"
test -d "$out/model" || melsearch train "$out/best.toml" -o "$out/model"
melsearch predict "$out/model" "$out/data" -o "$out/submission.csv" --tta 3

echo
melsearch status demo
cat <<EOF

videos       $out/data          (synthetic; their README says how they were made)
parameters   $out/best.toml     (every value of the winner)
model        $out/model/        (its README is the model card)
submission   $out/submission.csv
dashboard    .venv/bin/melsearch dashboard     then open http://127.0.0.1:8080/
EOF
