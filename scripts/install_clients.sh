#!/usr/bin/env bash
# A virtual environment with the clients that tests ask fathom serve with: openai, anthropic, schemathesis, lm-eval, playwright (for
# Debian's chromium, which is installed too). Some two minutes and 1.5 GB, once. Later runs of test.sh and ctest find it.
#   scripts/install_clients.sh [DIR]    (default build/clients)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/clients}
wanted=tests/clients/requirements.txt
if cmp -s "$wanted" "$folder/requirements.txt"; then
  echo "clients: those of $wanted are in $folder"
  exit 0
fi
scripts/install_packages.sh python3-venv curl chromium
rm -rf "$folder"  # a virtual environment cannot be moved: its scripts name their own place
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
cp "$wanted" "$folder/requirements.txt"
echo "clients: openai, anthropic, schemathesis, lm-eval and playwright in $folder"
