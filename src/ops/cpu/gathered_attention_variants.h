// The kernels of attention to gathered rows of every instruction set that this build has.
#pragma once

#include "base/cpu.h"
#include "ops/cpu/gathered_attention_kernels.h"

namespace fathom::cpu {

struct GatheredAttentionVariant {
  Isa isa;
  const GatheredAttentionKernels& kernels;
};

inline constexpr GatheredAttentionVariant kGatheredAttentionVariants[] = {
    {Isa::baseline, baseline::gathered_attention_kernels},
#if defined(__x86_64__)
    {Isa::avx2, avx2::gathered_attention_kernels},
    {Isa::avx512, avx512::gathered_attention_kernels},
    {Isa::avx512_bf16, avx512_bf16::gathered_attention_kernels},
#endif
};

inline const GatheredAttentionKernels& gathered_attention_kernels_of(Isa isa) {
  const GatheredAttentionVariant* best = kGatheredAttentionVariants;
  for (const GatheredAttentionVariant& variant : kGatheredAttentionVariants) {
    if (variant.isa <= isa) best = &variant;
  }
  return best->kernels;
}

}  // namespace fathom::cpu
