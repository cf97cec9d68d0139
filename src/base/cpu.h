// What this CPU can do, asked once at start.
#pragma once

#include <string>

namespace fathom {

// The instruction sets that kernels are built for, worst first; `_vnni` and `dotprod` add products of bytes summed by
// four, `_bf16` products of bf16 summed by two besides. Every x86-64 and 64-bit Arm CPU runs `baseline`, the others are
// of one of them each.
enum class Isa { baseline, dotprod, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 };

// The best set that the CPU, the operating system and this build support. FATHOM_ISA names a lesser one (for tests and
// comparisons); a value that is unknown or that the CPU has not throws UsageError.
Isa cpu_isa();

// Whether this CPU runs kernels of this set. What FATHOM_ISA leaves out counts as absent.
bool cpu_has(Isa isa);

const char* isa_name(Isa isa);
std::string isas_built();  // "baseline avx2 avx2_vnni avx512 avx512_vnni avx512_bf16"
std::string isas_found();  // those of them that this CPU has, whatever FATHOM_ISA says

}  // namespace fathom
