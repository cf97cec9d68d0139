#!/usr/bin/env bash
# Layout and habits: clang-format over src, tests and bench; clang-tidy over the sources of src/ that differ from a commit, or
# over all of them. Silent when nothing is wrong. Needs: apt-get install clang clang-format clang-tidy
#   scripts/lint.sh [--all]    BASE=main: the commit to differ from
set -euo pipefail
cd "$(dirname "$0")/.."

git ls-files -z --cached --others --exclude-standard -- {src,tests,bench}/'*'.{cc,h} | xargs -0 clang-format --dry-run -Werror

if [ "${1:-}" = --all ]; then
  changed=$(git ls-files --cached --others --exclude-standard -- src)
else
  base=$(git merge-base HEAD "${BASE:-main}") || { echo "lint.sh: no commit ${BASE:-main}: name one in BASE, or use --all" >&2; exit 1; }
  changed=$(git diff --name-only --diff-filter=d "$base" -- src; git ls-files --others --exclude-standard -- src)
fi
[ -f build/clang/compile_commands.json ] || cmake --preset clang >/dev/null
# One source a process; what clang-tidy says on stderr is only how many warnings it left out.
grep '\.cc$' <<<"$changed" | xargs -r -d '\n' -n 1 -P "$(nproc)" clang-tidy -p build/clang --quiet --warnings-as-errors='*' 2>/dev/null
