#include "ops/cpu/cross_entropy_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

constexpr int64_t kChunk = 1024;  // floats summed in f32 before the sum goes on in f64

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

float largest_of(const float* x, int64_t n) {
  Vec largest = splat(x[0]);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) largest = max(largest, load(x + i));
  float result = max_of(largest);
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// sum_i exp(x[i] - shift); the terms go to `terms` when that is given (may be x).
double sum_exp(const float* x, int64_t n, float shift, float* terms) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = smaller(n, begin + kChunk);
    Vec partial = {};
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) {
      const Vec e = exp(load(x + i) - splat(shift));
      partial += e;
      if (terms != nullptr) store(terms + i, e);
    }
    if (i < end) {
      const Vec e = exp(load_part(x + i, end - i) - splat(shift));
      // A term that is not there counts as zero.
      Vec there = {};
      memcpy(&there, &e, static_cast<size_t>(end - i) * sizeof(float));
      partial += there;
      if (terms != nullptr) store_part(terms + i, e, end - i);
    }
    total += static_cast<double>(sum(partial));
  }
  return total;
}

float log_sum_exp(const float* logits, int64_t n) {
  const float shift = largest_of(logits, n);
  return shift + static_cast<float>(log(sum_exp(logits, n, shift, nullptr)));
}

float softmax(float* logits, int64_t n, float scale) {
  const float shift = largest_of(logits, n);
  const double total = sum_exp(logits, n, shift, logits);
  const float factor = static_cast<float>(scale / total);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(logits + i, load(logits + i) * splat(factor));
  for (; i < n; ++i) logits[i] *= factor;
  return shift + static_cast<float>(log(total));
}

}  // namespace

const CrossEntropyKernels cross_entropy_kernels = {log_sum_exp, softmax};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
