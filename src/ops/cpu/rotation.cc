#include "ops/cpu/rotation_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

void rotate_interleaved(float* __restrict x, const float* __restrict cos, const float* __restrict sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float x0 = x[2 * i], x1 = x[2 * i + 1];
    x[2 * i] = x0 * cos[i] - x1 * sin[i];
    x[2 * i + 1] = x1 * cos[i] + x0 * sin[i];
  }
}

void rotate_halves(float* __restrict x, const float* __restrict cos, const float* __restrict sin, int64_t half) {
  float* __restrict second = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float x0 = x[i], x1 = second[i];
    x[i] = x0 * cos[i] - x1 * sin[i];
    second[i] = x1 * cos[i] + x0 * sin[i];
  }
}

}  // namespace

const RotationKernels rotation_kernels = {rotate_interleaved, rotate_halves};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
