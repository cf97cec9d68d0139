// The matrix product that linear layers, the head and attention share.
#pragma once

#include <span>

#include "ops/context.h"

namespace fathom {

// C[M, N] (+)= op(A) op(B), where op(A) is [M, K] and op(B) is [K, N]. A is stored [M, K], or [K, M] when a_transposed;
// B is stored [K, N], or [N, K] when b_transposed. Leading dimensions are distances between rows in elements.
struct GemmShape {
  int64_t m, n, k;
  bool a_transposed, b_transposed;
  int64_t lda, ldb, ldc;
};

// On all threads of the pool. The sum of an element of C runs over k in one order, which K alone decides: its bits
// depend neither on the number of threads nor on M and N.
void gemm(Context& ctx, const GemmShape& shape, const float* a, const float* b, float* c, bool accumulate);

// Several products, none of which reads or writes what another writes, in one go: the threads share the work of all.
struct GemmCall {
  GemmShape shape;
  const float* a;
  const float* b;
  float* c;
  bool accumulate;
  int64_t depth = 0;  // sums are of so many products each, then of these sums; 0: as many as is fastest
};
void gemm_many(Context& ctx, std::span<const GemmCall> calls);

// On the calling thread, for use inside a task; scratch holds gemm_scratch_floats(shape) floats, aligned to a cache
// line.
int64_t gemm_scratch_floats(const GemmShape& shape);
void gemm_one_thread(const GemmShape& shape, const float* a, const float* b, float* c, bool accumulate, float* scratch);

}  // namespace fathom
