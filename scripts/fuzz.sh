#!/usr/bin/env bash
# Runs fuzzers of build/asan from their seeds, one a core at a time: scripts/fuzz.sh NAME=RUNS NAME=SECONDSs ...
# NAME:2=... goes other ways than NAME=... does, beside it.
# Of a finding it shows the report, the input in base64 and how to run it again.
set -euo pipefail
cd "$(dirname "$0")/.."
export found=build/asan/findings
mkdir -p "$found"
rm -f "$found"/*.failed

fuzz() { # NAME[:SEED]=RUNS or NAME[:SEED]=SECONDSs
  local name=${1%%[:=]*} limit=${1#*=} seed=1 seeds input
  [[ $1 == *:* ]] && seed=${1#*:} && seed=${seed%%=*}
  local log=$found/$name-$seed.log
  local options=("-seed=$seed" -entropic=0 -rss_limit_mb=2048 -timeout=5 "-artifact_prefix=$found/$name-")
  [[ $limit == *s ]] && options+=("-max_total_time=${limit%s}") || options+=("-runs=$limit")
  case $name in
    tokenizer_fuzz) options+=(-max_len=1024) ;;
    gguf_fuzz) options+=(-max_len=8192) ;;
    *) options+=(-max_len=4096) ;;
  esac
  [[ -f tests/fuzz/$name.dict ]] && options+=("-dict=tests/fuzz/$name.dict")
  seeds=$(printf '%s,' tests/fuzz/corpus/"$name"/*)  # named one by one: given their folder, it would be written to
  if "build/asan/tests/fuzz/$name" "${options[@]}" "-seed_inputs=${seeds%,}" >"$log" 2>&1; then
    printf '%-24s %s\n' "$name" "$(tail -n 1 "$log")"
    return
  fi
  input=$(sed -n 's/.*Test unit written to //p' "$log" | head -n 1)
  grep -v '^#[0-9]' "$log" | tail -n 60
  if [[ -n $input ]]; then
    echo "base64: $(base64 -w 0 "$input")"
    echo "fuzz: $name fails on $input; run it again with build/asan/tests/fuzz/$name $input" >"$found/$name-$seed.failed"
  else
    echo "fuzz: $name did not run to its end; see $log" >"$found/$name-$seed.failed"
  fi
}
export -f fuzz

# Stacks of allocations, a large quarantine and filling cost half the speed; a finding run again by hand has them.
export ASAN_OPTIONS=malloc_context_size=0:quarantine_size_mb=1:max_malloc_fill_size=0
printf '%s\n' "$@" | xargs -P "$(nproc)" -I {} bash -c 'fuzz {}'
failed=("$found"/*.failed)
if [[ -e ${failed[0]} ]]; then
  cat "${failed[@]}" >&2
  exit 1
fi
