// The panel kernels of every instruction set that this build has.
#pragma once

#include "base/cpu.h"
#include "ops/cpu/panel_kernels.h"

namespace fathom::cpu {

struct PanelVariant {
  Isa isa;
  // The set whose kernels give the same bits: the sums that these make otherwise are integers.
  Isa same_bits_as;
  const PanelKernels& kernels;
};

inline constexpr PanelVariant kPanelVariants[] = {
    {Isa::baseline, Isa::baseline, baseline::panel_kernels},
#if defined(__x86_64__)
    {Isa::avx2, Isa::avx2, avx2::panel_kernels},
    {Isa::avx2_vnni, Isa::avx2, avx2_vnni::panel_kernels},
    {Isa::avx512, Isa::avx2, avx512::panel_kernels},
    {Isa::avx512_vnni, Isa::avx2, avx512_vnni::panel_kernels},
#elif defined(__aarch64__)
    {Isa::dotprod, Isa::baseline, dotprod::panel_kernels},
#endif
};

inline const PanelKernels& panel_kernels_of(Isa isa) {
  const PanelVariant* best = kPanelVariants;
  for (const PanelVariant& variant : kPanelVariants) {
    if (variant.isa <= isa) best = &variant;
  }
  return best->kernels;
}

}  // namespace fathom::cpu
