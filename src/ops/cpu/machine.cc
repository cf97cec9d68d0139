#include "ops/cpu/machine_kernels.h"
#include "ops/cpu/vec.h"

#if defined(__AVX2__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

constexpr int kBytes = kWidth * 4;
typedef int8_t ByteVec __attribute__((vector_size(kBytes)));
typedef int16_t ShortVec __attribute__((vector_size(kBytes)));

// The compiler must take this value for a new one: what is computed from it is computed each time.
template <class V>
inline void renew(V& v) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(v));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

// Sums of neighbouring products, in 16 and in 32 bits.
#if defined(__AVX512BW__)
ShortVec multiply_bytes(ByteVec u, ByteVec s) {
  return reinterpret_cast<ShortVec>(_mm512_maddubs_epi16(reinterpret_cast<__m512i>(u), reinterpret_cast<__m512i>(s)));
}
IntVec widen(ShortVec v, ShortVec ones) {
  return reinterpret_cast<IntVec>(_mm512_madd_epi16(reinterpret_cast<__m512i>(v), reinterpret_cast<__m512i>(ones)));
}
IntVec dot(IntVec sum, ByteVec u, ByteVec s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
}
bool has_i8_dot() { return __builtin_cpu_supports("avx512vnni"); }
#elif defined(__AVX2__)
ShortVec multiply_bytes(ByteVec u, ByteVec s) {
  return reinterpret_cast<ShortVec>(_mm256_maddubs_epi16(reinterpret_cast<__m256i>(u), reinterpret_cast<__m256i>(s)));
}
IntVec widen(ShortVec v, ShortVec ones) {
  return reinterpret_cast<IntVec>(_mm256_madd_epi16(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(ones)));
}
IntVec dot(IntVec sum, ByteVec u, ByteVec s) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(s));
  return sum;
}
bool has_i8_dot() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1 << 4) != 0;  // AVX-VNNI
}
#else
// Without such instructions: even and odd bytes as 16-bit numbers.
ShortVec multiply_bytes(ByteVec u, ByteVec s) {
  const auto a = reinterpret_cast<ShortVec>(u), b = reinterpret_cast<ShortVec>(s);
  return (a << 8 >> 8) * (b << 8 >> 8) + (a >> 8) * (b >> 8);
}
IntVec widen(ShortVec v, ShortVec) {
  const auto pairs = reinterpret_cast<IntVec>(v);
  return (pairs << 16 >> 16) + (pairs >> 16);
}
IntVec dot(IntVec sum, ByteVec, ByteVec) { return sum; }
bool has_i8_dot() { return false; }
#endif

void read(const void* p, int64_t bytes, int streams) {
  constexpr int kAhead = 2048, kStep = 256, kSums = 4;
  const auto* first = static_cast<const char*>(p);
  const int64_t part = bytes / streams;
  IntVec sums[kSums] = {};
  for (int64_t i = 0; i < part; i += kStep) {
    for (int stream = 0; stream < streams; ++stream) {
      const char* at = first + stream * part + i;
      for (int line = 0; line < kStep; line += 64) __builtin_prefetch(at + kAhead + line);
      for (int v = 0; v < kStep / kBytes; ++v) {
        IntVec loaded;
        memcpy(&loaded, at + v * kBytes, kBytes);
        sums[v % kSums] ^= loaded;
      }
    }
  }
  for (IntVec& sum : sums) renew(sum);
}

void multiply_add_f32(int64_t rounds) {
  Vec sums[12], x = splat(1.0000001f);
  const Vec y = splat(1e-9f);
  for (Vec& sum : sums) sum = y;
  for (int64_t r = 0; r < rounds; ++r) {
    renew(x);
    for (Vec& sum : sums) sum = multiply_add(sum, x, y);
  }
  for (Vec& sum : sums) renew(sum);
}

struct Operands {
  ByteVec u = 3 - ByteVec{}, s = -1 - ByteVec{};
  ShortVec ones = 1 - ShortVec{};
};

void multiply_add_i8(int64_t rounds) {
  Operands o;
  IntVec sums[6] = {};
  for (int64_t r = 0; r < rounds; ++r) {
    for (IntVec& sum : sums) {
      renew(o.u);
      sum += widen(multiply_bytes(o.u, o.s), o.ones);
    }
  }
  for (IntVec& sum : sums) renew(sum);
}

void multiply_add_i8_short(int64_t rounds) {
  Operands o;
  IntVec sums[3] = {};
  for (int64_t r = 0; r < rounds; ++r) {
    for (IntVec& sum : sums) {
      ShortVec short_sum = multiply_bytes(o.u, o.s);
      for (int i = 0; i < 3; ++i) {
        renew(o.u);
        short_sum += multiply_bytes(o.u, o.s);
      }
      renew(o.u);
      sum += widen(short_sum, o.ones);
    }
  }
  for (IntVec& sum : sums) renew(sum);
}

void multiply_add_i8_dot(int64_t rounds) {
  Operands o;
  IntVec sums[12] = {};
  for (int64_t r = 0; r < rounds; ++r) {
    for (IntVec& sum : sums) {
      sum = dot(sum, o.u, o.s);
      renew(sum);
    }
  }
}

}  // namespace

const MachineKernels machine_kernels = {read,
                                        {multiply_add_f32, 12.0 * kWidth * 2},
                                        {multiply_add_i8, 6.0 * kBytes * 2},
                                        {multiply_add_i8_short, 12.0 * kBytes * 2},
                                        {multiply_add_i8_dot, 12.0 * kBytes * 2},
                                        has_i8_dot};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
