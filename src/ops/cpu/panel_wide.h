// The vectors of tiles: those of two panels side by side where registers hold 64 bytes, else panel_vec.h's own.
#pragma once

#include "ops/cpu/panel_vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {

#if defined(__AVX512BW__)

constexpr int kPanelsOfVector = 2;
typedef uint8_t WideBytes __attribute__((vector_size(64)));
typedef int16_t WideShorts __attribute__((vector_size(64)));
typedef int32_t WideInts __attribute__((vector_size(64)));
typedef float WideFloats __attribute__((vector_size(64)));

static inline WideInts wide_int(int32_t x) { return x - WideInts{}; }
static inline WideFloats wide_float(float x) { return x - WideFloats{}; }
static inline WideFloats to_floats(WideInts v) { return __builtin_convertvector(v, WideFloats); }
static inline WideFloats multiply_add(WideFloats a, WideFloats b, WideFloats c) {
  return as<WideFloats>(_mm512_fmadd_ps(as<__m512>(a), as<__m512>(b), as<__m512>(c)));
}
static inline WideInts dot_pairs(WideShorts a, WideShorts b) {
  return as<WideInts>(_mm512_madd_epi16(as<__m512i>(a), as<__m512i>(b)));
}

#if defined(__AVX512VNNI__)
typedef WideInts WidePartial;
static inline WidePartial wide_partial_from(int32_t x) { return wide_int(x) << 16 >> 16; }
static inline WideInts total(WidePartial sum) { return sum; }
static inline WideInts scaled(WidePartial sum, WidePartial scale) { return sum * scale; }
static inline WidePartial add_products(WidePartial sum, WideBytes w, WideInts s) {
  return as<WidePartial>(_mm512_dpbusd_epi32(as<__m512i>(sum), as<__m512i>(w), as<__m512i>(s)));
}
static inline WideInts wide_signed_from(int32_t x) { return wide_int(x) << 16 >> 12; }
static inline WideInts add_split(WideInts sum, WideBytes w, WideBytes, WideInts s) { return add_products(sum, w, s); }
#else
typedef WideShorts WidePartial;
static inline WidePartial wide_partial_from(int32_t x) { return as<WidePartial>(wide_int(x)); }
static inline WideInts total(WidePartial sum) {
  return as<WideInts>(_mm512_madd_epi16(as<__m512i>(sum), _mm512_set1_epi16(1)));
}
static inline WideInts scaled(WidePartial sum, WidePartial scale) { return dot_pairs(sum, scale); }
static inline WidePartial add_products(WidePartial sum, WideBytes w, WideInts s) {
  return sum + as<WidePartial>(_mm512_maddubs_epi16(as<__m512i>(w), as<__m512i>(s)));
}
static inline WideInts wide_signed_from(int32_t) { return WideInts{}; }
static inline WideInts add_split(WideInts sum, WideBytes w, WideBytes signs, WideInts s) {
  return sum + total(add_products(WidePartial{}, w, s ^ as<WideInts>(signs)));
}
#endif

#else

constexpr int kPanelsOfVector = 1;
typedef Bytes WideBytes;
typedef Shorts WideShorts;
typedef Ints WideInts;
typedef Floats WideFloats;
typedef Partial WidePartial;
static inline WideInts wide_int(int32_t x) { return splat_int(x); }
static inline WideFloats wide_float(float x) { return splat_float(x); }
static inline WidePartial wide_partial_from(int32_t x) { return partial_from(x); }
static inline WideInts wide_signed_from(int32_t x) { return signed_from(x); }

#endif

// The same 4 bytes for every row.
template <class V>
static inline V splat_4(const void* p) {
  if constexpr (sizeof(V) == sizeof(Ints))
    return splat_int(load_as<int32_t>(p));
  else
    return wide_int(load_as<int32_t>(p));
}
// What belongs to one of a vector's panels.
template <class Wide, class V>
static inline void put(Wide& wide, int panel, V v) {
  memcpy(reinterpret_cast<uint8_t*>(&wide) + static_cast<size_t>(panel) * sizeof v, &v, sizeof v);
}

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
