#!/usr/bin/env bash
# The seed corpus of the importer: the fixtures of its tests.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p corpus/import
cp ../crates/hetconv-onnx/tests/fixtures/*.onnx corpus/import/
echo "$(ls corpus/import | wc -l) files in $PWD/corpus/import"
