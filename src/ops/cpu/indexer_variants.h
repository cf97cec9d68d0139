// The indexer's kernels of every instruction set that this build has.
#pragma once

#include "base/cpu.h"
#include "ops/cpu/indexer_kernels.h"

namespace fathom::cpu {

struct IndexerVariant {
  Isa isa;
  Isa same_bits_as;  // the set whose kernels give the same bits: multiply-adds are rounded once in all but `baseline`
  const IndexerKernels& kernels;
};

inline constexpr IndexerVariant kIndexerVariants[] = {
    {Isa::baseline, Isa::baseline, baseline::indexer_kernels},
#if defined(__x86_64__)
    {Isa::avx2, Isa::avx2, avx2::indexer_kernels},
    {Isa::avx2_vnni, Isa::avx2, avx2_vnni::indexer_kernels},
    {Isa::avx512, Isa::avx2, avx512::indexer_kernels},
    {Isa::avx512_vnni, Isa::avx2, avx512_vnni::indexer_kernels},
#elif defined(__aarch64__)
    {Isa::dotprod, Isa::baseline, dotprod::indexer_kernels},
#endif
};

inline const IndexerKernels& indexer_kernels_of(Isa isa) {
  const IndexerVariant* best = kIndexerVariants;
  for (const IndexerVariant& variant : kIndexerVariants) {
    if (variant.isa <= isa) best = &variant;
  }
  return best->kernels;
}

}  // namespace fathom::cpu
