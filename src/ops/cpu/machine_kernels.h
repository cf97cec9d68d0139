// Loops that do one thing as fast as the instruction set can: what bounds every kernel.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

// A loop, and what one round of it counts.
struct MachineLoop {
  void (*run)(int64_t rounds);
  double operations;  // multiplications and additions
};
struct MachineKernels {
  // Each once, from so many places in turn; whole 256 bytes of each.
  void (*read)(const void* p, int64_t bytes, int streams);
  MachineLoop f32;       // fused multiply-add
  MachineLoop i8;        // products of bytes, widened to 32 bits at once
  MachineLoop i8_short;  // four of them summed in 16 bits first, as 4-bit weights allow
  MachineLoop i8_dot;    // the CPU's own dot product of bytes; only where has_i8_dot()
  bool (*has_i8_dot)();
};

namespace baseline {
extern const MachineKernels machine_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const MachineKernels machine_kernels;
}
namespace avx512 {
extern const MachineKernels machine_kernels;
}
#else
namespace avx2 {
using baseline::machine_kernels;
}
namespace avx512 {
using baseline::machine_kernels;
}
#endif

}  // namespace fathom::cpu
