#include "base/cpu.h"

#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace fathom {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const Isa best = detect();
  const char* wish = std::getenv("FATHOM_ISA");
  if (wish == nullptr) return best;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::string_view(wish) != isa_name(isa)) continue;
    if (isa > best) throw UsageError("FATHOM_ISA={}: this CPU has no more than {}", wish, isa_name(best));
    return isa;
  }
  throw UsageError("FATHOM_ISA={}: must be one of baseline, avx2, avx512", printable(wish));
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

std::string isas_built() {
#if defined(__x86_64__)
  return "baseline avx2 avx512";
#else
  return "baseline";
#endif
}

}  // namespace fathom
