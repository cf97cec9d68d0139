#include "ops/gemm.h"

namespace fathom {

void gemm(Context& ctx, const GemmShape& shape, const float* a, const float* b, float* c, bool accumulate) {
  const GemmCall call = {shape, a, b, c, accumulate};
  gemm_many(ctx, {&call, 1});
}

void gemm_many(Context& ctx, std::span<const GemmCall> calls) {
  ctx.pool.run(static_cast<int64_t>(calls.size()), [&](int64_t i, int) {
    const GemmCall& call = calls[static_cast<size_t>(i)];
    gemm_one_thread(call.shape, call.a, call.b, call.c, call.accumulate, nullptr);
  });
}

int64_t gemm_scratch_floats(const GemmShape&) { return 0; }

void gemm_one_thread(const GemmShape& shape, const float* a, const float* b, float* c, bool accumulate, float*) {
  const auto [m, n, k, a_transposed, b_transposed, lda, ldb, ldc] = shape;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t p = 0; p < k; ++p) {
        sum += (a_transposed ? a[p * lda + i] : a[i * lda + p]) * (b_transposed ? b[j * ldb + p] : b[p * ldb + j]);
      }
      c[i * ldc + j] = accumulate ? c[i * ldc + j] + sum : sum;
    }
  }
}

}  // namespace fathom
