// Numbers of the latent cache's formats to floats: finite ones, without alignment.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct LatentRowKernels {
  void (*widen_bf16)(float* out, const uint8_t* in, int64_t n);
  void (*widen_f16)(float* out, const uint8_t* in, int64_t n);
  // Codes of e4m3, times scale.
  void (*widen_f8)(float* out, const uint8_t* in, float scale, int64_t n);
  // The first n numbers of blocks of q8_0.
  void (*widen_q8_0)(float* out, const uint8_t* in, int64_t n);
};

namespace baseline {
extern const LatentRowKernels latent_row_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const LatentRowKernels latent_row_kernels;
}
namespace avx512 {
extern const LatentRowKernels latent_row_kernels;
}
#else
namespace avx2 {
using baseline::latent_row_kernels;
}
namespace avx512 {
using baseline::latent_row_kernels;
}
#endif

}  // namespace fathom::cpu
