// Rows of logits.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct CrossEntropyKernels {
  // log(sum_i exp(logits[i]))
  float (*log_sum_exp)(const float* logits, int64_t n);
  // The same, and logits[i] becomes scale * softmax(logits)[i].
  float (*softmax)(float* logits, int64_t n, float scale);
};

namespace baseline {
extern const CrossEntropyKernels cross_entropy_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const CrossEntropyKernels cross_entropy_kernels;
}
namespace avx512 {
extern const CrossEntropyKernels cross_entropy_kernels;
}
#else
namespace avx2 {
using baseline::cross_entropy_kernels;
}
namespace avx512 {
using baseline::cross_entropy_kernels;
}
#endif

}  // namespace fathom::cpu
