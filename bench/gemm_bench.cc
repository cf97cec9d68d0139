// The matrix product over the shapes of training and decoding, beside oneDNN's where that is installed (single products
// only; it takes OMP_NUM_THREADS). The columns of numbers in a name are m, n, k.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#ifdef FATHOM_BENCH_ONEDNN
#include <dnnl.h>
#endif

#include "base/rng.h"
#include "base/thread_pool.h"
#include "limits.h"
#include "ops/gemm.h"

namespace fathom {
namespace {

struct Form {
  const char* name;
  bool a_transposed, b_transposed;
};
constexpr Form kForms[] = {{"nt", false, true}, {"nn", false, false}, {"tn", true, false}};

struct Matrices {
  GemmShape shape;
  std::vector<float> a, b, c;
};
std::vector<float> random_floats(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  Rng rng(1);
  for (float& value : values) value = static_cast<float>(rng.uniform() - 0.5);
  return values;
}
Matrices make_matrices(const Form& form, int64_t m, int64_t n, int64_t k, int64_t copies = 1) {
  return {{m, n, k, form.a_transposed, form.b_transposed, form.a_transposed ? m : k, form.b_transposed ? k : n, n},
          random_floats(copies * m * k),
          random_floats(copies * k * n),
          random_floats(copies * m * n)};
}

int thread_count() {
  const char* threads = std::getenv("OMP_NUM_THREADS");
  return threads != nullptr ? std::max(1, std::atoi(threads)) : usable_cores();
}

void report(benchmark::State& state, double multiply_adds) {
  count_against(state, "GFLOP/s", 2e-9 * multiply_adds, machine_limits(thread_count()).f32_gflops);
}

void run_ours(benchmark::State& state, const Form& form, int64_t m, int64_t n, int64_t k, int64_t copies) {
  Matrices x = make_matrices(form, m, n, k, copies);
  ThreadPool pool(thread_count());
  Arena arena;
  Context ctx{pool, arena};
  std::vector<GemmCall> calls;
  for (int64_t i = 0; i < copies; ++i) {
    calls.push_back({x.shape, x.a.data() + i * m * k, x.b.data() + i * k * n, x.c.data() + i * m * n, false});
  }
  for (auto _ : state) gemm_many(ctx, calls);
  report(state, static_cast<double>(copies) * static_cast<double>(m * n * k));
}

#ifdef FATHOM_BENCH_ONEDNN
void run_onednn(benchmark::State& state, const Form& form, int64_t m, int64_t n, int64_t k) {
  Matrices x = make_matrices(form, m, n, k);
  for (auto _ : state) {
    dnnl_sgemm(form.a_transposed ? 'T' : 'N', form.b_transposed ? 'T' : 'N', m, n, k, 1, x.a.data(), x.shape.lda,
               x.b.data(), x.shape.ldb, 0, x.c.data(), x.shape.ldc);
  }
  report(state, static_cast<double>(m * n * k));
}
#endif

void add(const Form& form, int64_t m, int64_t n, int64_t k, int64_t copies = 1) {
  const std::string name =
      fmt::format("{}/{}/{}/{}", form.name, m, n, k) + (copies > 1 ? fmt::format("/x{}", copies) : "");
  benchmark::RegisterBenchmark((name + "/fathom").c_str(), [=](benchmark::State& state) {
    run_ours(state, form, m, n, k, copies);
  })->UseRealTime();
#ifdef FATHOM_BENCH_ONEDNN
  if (copies > 1) return;
  benchmark::RegisterBenchmark((name + "/onednn").c_str(), [=](benchmark::State& state) {
    run_onednn(state, form, m, n, k);
  })->UseRealTime();
#endif
}

void add_all() {
  for (const Form& form : kForms) {
    add(form, 1024, 1024, 1024);
    add(form, 2048, 256, 256);
    add(form, 2048, 384, 256);
    add(form, 2048, 160, 256);
    add(form, 2048, 1536, 256);
    add(form, 256, 256, 2048);
    add(form, 512, 4096, 256);
    add(form, 512, 256, 256, 16);
    add(form, 512, 256, 128, 16);
  }
  for (const int64_t m : {1, 2, 4, 8}) add(kForms[0], m, 2048, 2048);
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  fathom::add_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
