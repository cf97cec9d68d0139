// How one kernel source becomes three: every file in ops/cpu is compiled once per instruction set with
// FATHOM_ISA_NAMESPACE set to `baseline`, `avx2` or `avx512`, and defines there one constant table of function pointers
// (see each *_kernels.h). Those that multiply bytes are compiled for the sets that have instructions for that too
// (panel_variants.h, indexer_variants.h), those that multiply bf16 for the one that has them
// (gathered_attention_variants.h). Kernel files include C headers and vec.h only: an inline function of the
// standard library compiled with AVX-512 could be the copy that the linker keeps for everyone.
#pragma once

#include "base/cpu.h"

namespace fathom::cpu {

// The table of this machine's instruction set.
template <class Table>
const Table& choose([[maybe_unused]] const Table& baseline, [[maybe_unused]] const Table& avx2,
                    [[maybe_unused]] const Table& avx512) {
  switch (cpu_isa()) {
    case Isa::avx512:
    case Isa::avx512_vnni:
    case Isa::avx512_bf16:
      return avx512;
    case Isa::avx2:
    case Isa::avx2_vnni:
      return avx2;
    case Isa::baseline:
    case Isa::dotprod:
      break;
  }
  return baseline;
}

}  // namespace fathom::cpu
