// Tokenizer speed on one thread: tokenizer_bench TOKENIZER TEXT [benchmark options], bytes/s of encoding and decoding.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "text/tokenizer.h"

namespace {

void encode(benchmark::State& state, const fathom::Tokenizer& tokenizer, const std::string& text) {
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer.encode(text));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}

void decode(benchmark::State& state, const fathom::Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int32_t> ids = tokenizer.encode(text);
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer.decode(ids));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}

void load(benchmark::State& state, const char* source) {
  for (auto _ : state) benchmark::DoNotOptimize(fathom::Tokenizer::load(source).vocab_size());
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_bench TOKENIZER TEXT [benchmark options]\n");
    return 2;
  }
  try {
    const fathom::Tokenizer tokenizer = fathom::Tokenizer::load(argv[1]);
    const std::string text = fathom::read_file(argv[2], size_t{1} << 30);
    benchmark::RegisterBenchmark("encode", [&](benchmark::State& state) { encode(state, tokenizer, text); });
    benchmark::RegisterBenchmark("encode 1 KiB",
                                 [&](benchmark::State& state) { encode(state, tokenizer, text.substr(0, 1024)); });
    benchmark::RegisterBenchmark("decode", [&](benchmark::State& state) { decode(state, tokenizer, text); });
    benchmark::RegisterBenchmark("load", [&](benchmark::State& state) { load(state, argv[1]); });
    benchmark::RunSpecifiedBenchmarks();
  } catch (const fathom::Error& error) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
