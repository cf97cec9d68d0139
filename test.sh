#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: under ThreadSanitizer (the threaded parts), under AddressSanitizer and
# UndefinedBehaviorSanitizer (nearly all), as users run it, and the parsers on input made to break them; compiles the kernels for Arm.
# Ends with ctest's summary.
#   ./test.sh --peers    installs llama.cpp, gguf and xgrammar too, for the tests that compare with them
set -euo pipefail
cd "$(dirname "$0")"
start=$SECONDS
say() { printf '\n== %s (after %d s)\n' "$*" "$((SECONDS - start))"; }

say "Packages"
scripts/install_packages.sh clang libclang-rt-14-dev
jobs=$(nproc)

# What comes first does not need these, nor Arm's libraries, nor clients of the server (openai, schemathesis, lm-eval, a browser).
mkdir -p build
{ scripts/install_packages.sh g++-aarch64-linux-gnu libopenmpi-dev openmpi-bin && { scripts/aarch64_sysroot.sh || true; }; } >build/packages.log 2>&1 &
packages=$!
{ tail --pid="$packages" -f /dev/null && scripts/install_clients.sh; } >build/clients.log 2>&1 &
clients=$!
trap 'kill "$packages" "$clients" 2>/dev/null || true' EXIT

build() { # preset, targets...
  local preset=$1
  shift
  cmake --preset "$preset" -DFATHOM_TESTS=ON -DFATHOM_WERROR=ON -DFATHOM_UNITY=ON >"build-$preset.log" 2>&1 || { cat "build-$preset.log"; exit 1; }
  rm -f "build-$preset.log"
  local log=build/$preset/build.log
  cmake --build --preset "$preset" -j "$jobs" ${@:+--target "$@"} >"$log" 2>&1 || { tail -n 100 "$log"; exit 1; }
  tail -n 1 "$log"
}

say "ThreadSanitizer: thread pool, operators, model, server"
build tsan base_test ops_test model_test serve_test parallel_test
# In parts, the longest first, so that no core is idle at the end; tests of the machine's rates mean nothing here.
for room in serve parallel ops model base; do seq -f "$room %g" 0 3; done | xargs -P "$jobs" -L 1 bash -c '
  GTEST_TOTAL_SHARDS=4 GTEST_SHARD_INDEX=$2 "build/tsan/tests/$1_test" --gtest_brief=1 --gtest_filter=-Machine.*:Load* || exit 255' part

say "Release: as users run it"
wait "$packages" || { tail -n 20 build/packages.log; exit 1; }
build release

say "Clients of the server: openai, schemathesis, lm-eval, a browser"
wait "$clients" || { tail -n 20 build/clients.log; echo "SKIPPED: they cannot be loaded; neither are the tests that need them"; }
trap - EXIT

# A Python with the packages of other programs, which tests compare with: where there is none they are skipped, and say so.
peers=build/peers/bin/python
if [ "${1:-}" = --peers ] && [ ! -x "$peers" ]; then scripts/install_peers.sh build/peers; fi
if [ -x "$peers" ]; then export FATHOM_PYTHON=${FATHOM_PYTHON:-$PWD/$peers}; fi

say "Release: every test; beside them, where a core is idle, the build with AddressSanitizer and UndefinedBehaviorSanitizer"
ctest --preset release -j "$((jobs + 1))" >build/release/ctest.log 2>&1 &
tests=$!
trap 'kill "$tests" 2>/dev/null || true' EXIT
export jobs
export -f build
nice -n 10 bash -euo pipefail -c 'build asan'
told=0
wait "$tests" || told=$?
trap - EXIT
if [ "$told" -ne 0 ]; then grep -v " Passed \| Start " build/release/ctest.log | tail -n 300; exit 1; fi
grep "tests passed" build/release/ctest.log

say "AddressSanitizer and UndefinedBehaviorSanitizer: every test, but those that go through files and processes again, or between ranks"
slow='^((clients_schemathesis|resume|convert|data|serve|bench_serve|watch|plan|sft|eval_cli|grpo|distill|dense|cli|dsa)$|parallel\.|train\.Parallel)'
ctest --preset asan -j "$jobs" -E "$slow" >build/asan/ctest.log || { grep -v " Passed \| Start " build/asan/ctest.log | tail -n 300; exit 1; }
grep "tests passed" build/asan/ctest.log

say "Fuzzers: model files, tokenizers, chat templates, datasets, answers, grammars, conversations, mathematics, requests, HTTP both ways"
scripts/fuzz.sh request_fuzz=300000 request_fuzz:2=300000 model_load_fuzz=4s safetensors_header_fuzz=4s gguf_fuzz=4s tokenizer_fuzz=4s jinja_fuzz=4s dataset_fuzz=4s answer_parser_fuzz=4s grammar_fuzz=4s conversation_fuzz=4s http_fuzz=4s reply_fuzz=4s same_answer_fuzz=4s questions_fuzz=4s teacher_logits_fuzz=4s traces_journal_fuzz=4s code_problem_fuzz=4s

say "Arm: kernels and number formats, cross-compiled"
if scripts/aarch64_sysroot.sh; then
  cmake --preset aarch64 -DFATHOM_WERROR=ON >build/aarch64.log || { cat build/aarch64.log; exit 1; }
  cmake --build --preset aarch64 -j "$jobs" --target fathom_number fathom_ops >build/aarch64.log || { tail -n 100 build/aarch64.log; exit 1; }
else
  echo "SKIPPED: Arm's libraries cannot be loaded"
fi

say "Done: of the release"
sed -n '/tests passed/,$p' build/release/ctest.log
