// What this CPU can do, asked once at start.
#pragma once

#include <string>

namespace fathom {

// The instruction sets that kernels are built for, worst first. Every x86-64 CPU runs `baseline`.
enum class Isa { baseline, avx2, avx512 };

// The best set that the CPU, the operating system and this build support. FATHOM_ISA=baseline|avx2|avx512 lowers it
// (for tests and comparisons); a value that is unknown or above what the CPU has throws UsageError.
Isa cpu_isa();

const char* isa_name(Isa isa);
std::string isas_built();  // "baseline avx2 avx512"

}  // namespace fathom
