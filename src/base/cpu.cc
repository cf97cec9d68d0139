#include "base/cpu.h"

#include <cstdlib>
#include <string_view>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fathom {
namespace {

#if defined(__x86_64__)
constexpr Isa kBuilt[] = {Isa::baseline, Isa::avx2, Isa::avx2_vnni, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16};
#elif defined(__aarch64__)
constexpr Isa kBuilt[] = {Isa::baseline, Isa::dotprod};
#else
constexpr Isa kBuilt[] = {Isa::baseline};
#endif

#if defined(__x86_64__)
// Asked by hand: not every compiler that builds for it has a name for it.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1 << 4) != 0;
}
#endif

bool detect(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx2_vnni) return avx2 && has_avx_vnni();
  if (isa == Isa::avx512) return avx512;
  const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx512_vnni) return avx512_vnni;
  if (isa == Isa::avx512_bf16) return avx512_vnni && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
  if (isa == Isa::dotprod) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
  return isa == Isa::baseline;
}

template <class Accept>
std::string names(Accept&& accept, const char* between) {
  std::string all;
  for (const Isa isa : kBuilt) {
    if (accept(isa)) all += (all.empty() ? "" : between) + std::string(isa_name(isa));
  }
  return all;
}

Isa choose() {
  const char* wish = std::getenv("FATHOM_ISA");
  Isa best = Isa::baseline;
  for (const Isa isa : kBuilt) {
    if (wish != nullptr && std::string_view(wish) == isa_name(isa)) {
      if (detect(isa)) return isa;
      throw UsageError("FATHOM_ISA={}: this CPU has {} only", wish, names(detect, ", "));
    }
    if (detect(isa)) best = isa;
  }
  if (wish == nullptr) return best;
  throw UsageError("FATHOM_ISA={}: must be one of {}", printable(wish), names([](Isa) { return true; }, ", "));
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

bool cpu_has(Isa isa) { return isa <= cpu_isa() && detect(isa); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::dotprod:
      return "dotprod";
    case Isa::avx2:
      return "avx2";
    case Isa::avx2_vnni:
      return "avx2_vnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

std::string isas_built() {
  return names([](Isa) { return true; }, " ");
}
std::string isas_found() { return names(detect, " "); }

}  // namespace fathom
