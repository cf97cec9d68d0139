// Passes of the optimizer over flat parameters.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct AdamwStep {
  float gradient_scale;
  float decay;              // 1 - lr * weight_decay
  float beta1_rest, beta2;  // 1 - beta1, beta2
  float beta2_rest;         // 1 - beta2
  float step_size;          // lr / (1 - beta1^step)
  float root_correction2;   // sqrt(1 - beta2^step)
  float eps;
};

struct OptimizerKernels {
  // Whether all of what they write is finite.
  bool (*adamw)(const AdamwStep& step, float* params, const float* grads, float* m, float* v, int64_t n);
  bool (*adamw_bf16)(const AdamwStep& step, float* params, const float* grads, uint16_t* m, uint16_t* v, int64_t n);
  double (*sum_of_squares)(const float* values, int64_t n);
};

namespace baseline {
extern const OptimizerKernels optimizer_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const OptimizerKernels optimizer_kernels;
}
namespace avx512 {
extern const OptimizerKernels optimizer_kernels;
}
#else
namespace avx2 {
using baseline::optimizer_kernels;
}
namespace avx512 {
using baseline::optimizer_kernels;
}
#endif

}  // namespace fathom::cpu
