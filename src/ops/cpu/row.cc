#include "ops/cpu/row_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

void add(float* out, const float* a, const float* b, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, load(a + i) + load(b + i));
  for (; i < n; ++i) out[i] = a[i] + b[i];
}

void add_weighted(float* y, const float* const* rows, const float* weights, int64_t n_rows, int64_t n) {
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    Vec y0 = load(y + i), y1 = load(y + i + kWidth);
    for (int64_t j = 0; j < n_rows; ++j) {
      const Vec w = splat(weights ? weights[j] : 1.0f);
      y0 = multiply_add(w, load(rows[j] + i), y0);
      y1 = multiply_add(w, load(rows[j] + i + kWidth), y1);
    }
    store(y + i, y0);
    store(y + i + kWidth, y1);
  }
  for (; i < n; ++i) {
    for (int64_t j = 0; j < n_rows; ++j) y[i] += (weights ? weights[j] : 1.0f) * rows[j][i];
  }
}

void scale(float* out, const float* x, float factor, int64_t n) {
  const Vec f = splat(factor);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, f * load(x + i));
  for (; i < n; ++i) out[i] = factor * x[i];
}

float dot(const float* x, const float* y, int64_t n) {
  Vec s0 = {}, s1 = {};
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    s0 = multiply_add(load(x + i), load(y + i), s0);
    s1 = multiply_add(load(x + i + kWidth), load(y + i + kWidth), s1);
  }
  float rest = 0;
  for (; i < n; ++i) rest += x[i] * y[i];
  return sum(s0 + s1) + rest;
}

}  // namespace

const RowKernels row_kernels = {add, add_weighted, scale, dot};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
