// What panel_vec.h says, for NEON with dot products: vectors of 32 bytes are two registers.
#pragma once

#include <arm_neon.h>

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {

template <class T>
struct Halves {
  typedef T Element;
  typedef T Half __attribute__((vector_size(16)));
  Half low, high;
  __attribute__((always_inline)) T operator[](int i) const {
    constexpr int kLanes = 16 / sizeof(T);
    return i < kLanes ? low[i] : high[i - kLanes];
  }
};
typedef Halves<uint8_t> Bytes;
typedef Halves<int16_t> Shorts;
typedef Halves<int32_t> Ints;
typedef Halves<float> Floats;

template <class V>
static inline V load_as(const void* p) {
  V v;
  if constexpr (requires { v.low; }) {
    memcpy(&v.low, p, sizeof v.low);
    memcpy(&v.high, static_cast<const uint8_t*>(p) + sizeof v.low, sizeof v.high);
  } else {
    memcpy(&v, p, sizeof v);
  }
  return v;
}
template <class To, class From>
static inline To as(From v) {
  return {reinterpret_cast<typename To::Half>(v.low), reinterpret_cast<typename To::Half>(v.high)};
}
static inline Ints splat_int(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
static inline Floats splat_float(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }

template <class T>
static inline Halves<T> operator+(Halves<T> a, Halves<T> b) {
  return {a.low + b.low, a.high + b.high};
}
template <class T>
static inline Halves<T> operator-(Halves<T> a, Halves<T> b) {
  return {a.low - b.low, a.high - b.high};
}
template <class T>
static inline Halves<T> operator-(Halves<T> a) {
  return {-a.low, -a.high};
}
template <class T>
static inline Halves<T> operator*(Halves<T> a, Halves<T> b) {
  return {a.low * b.low, a.high * b.high};
}
template <class T>
static inline Halves<T> operator|(Halves<T> a, Halves<T> b) {
  return {a.low | b.low, a.high | b.high};
}
template <class T>
static inline Halves<T> operator&(Halves<T> a, typename Halves<T>::Element b) {
  return {a.low & b, a.high & b};
}
template <class T>
static inline Halves<T> operator<<(Halves<T> a, int n) {
  return {a.low << n, a.high << n};
}
template <class T>
static inline Halves<T> operator>>(Halves<T> a, int n) {
  return {a.low >> n, a.high >> n};
}
template <class T>
static inline void operator+=(Halves<T>& a, Halves<T> b) {
  a = a + b;
}
template <class T>
static inline void operator|=(Halves<T>& a, Halves<T> b) {
  a = a | b;
}

static inline Floats larger(Floats a, Floats b) {
  return {a.low > b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}
static inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
static inline Floats to_floats(Ints v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }
static inline Ints dot_pairs(Shorts a, Shorts b) {
  const Ints c = as<Ints>(a), d = as<Ints>(b);
  return (c << 16 >> 16) * (d << 16 >> 16) + (c >> 16) * (d >> 16);
}

constexpr bool kWidePartial = true;
typedef Ints Partial;
static inline Partial partial_from(int32_t x) { return splat_int(x) << 16 >> 16; }
static inline Ints total(Partial sum) { return sum; }
static inline Ints scaled(Partial sum, Partial scale) { return sum * scale; }
static inline Partial spread(uint64_t bytes) {
  const uint16x8_t wide = vmovl_u8(vcreate_u8(bytes));
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide))), vreinterpretq_s32_u32(vmovl_high_u16(wide))};
}
static inline Partial spread_signed(uint64_t bytes) {
  const int16x8_t wide = vmovl_s8(vcreate_s8(bytes));
  return {vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide)};
}
static inline Bytes stored_signed(Bytes w) { return w; }
static inline Ints signed_from(int32_t) { return splat_int(0); }
static inline Ints add_signed(Ints sum, Bytes w, Ints s) {
  return {vdotq_s32(sum.low, vreinterpretq_s8_u8(w.low), vreinterpretq_s8_s32(s.low)),
          vdotq_s32(sum.high, vreinterpretq_s8_u8(w.high), vreinterpretq_s8_s32(s.high))};
}
// Codes without sign are below 64: nothing is lost by taking them with one.
static inline Partial add_products(Partial sum, Bytes w, Ints s) { return add_signed(sum, w, s); }

static inline Floats from_halves(uint16x8_t codes) {
  const float16x8_t halves = vreinterpretq_f16_u16(codes);
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
static inline Floats from_f16(const void* p) { return from_halves(vld1q_u16(static_cast<const uint16_t*>(p))); }
static inline Floats from_bf16(const void* p) {
  const uint16x8_t codes = vld1q_u16(static_cast<const uint16_t*>(p));
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(codes), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(codes, 16))};
}
// As with AVX2: e4m3 / 2^120.
static inline Floats from_f8_bits(const void* p) {
  const int16x8_t wide = vshll_n_s8(vld1_s8(static_cast<const int8_t*>(p)), 4);
  const int32x4_t kept = vdupq_n_s32(static_cast<int32_t>(0x87F00000));
  return {vreinterpretq_f32_s32(vandq_s32(vshll_n_s16(vget_low_s16(wide), 16), kept)),
          vreinterpretq_f32_s32(vandq_s32(vshll_high_n_s16(wide, 16), kept))};
}

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
