// CUDA's words for kernels that are compiled as plain C++, as far as kernels use them: a block's threads are fibers of
// one thread of the system, its blocks run one after the other. For tests: slow, and it finds barriers that are
// missing, reads of shared memory that nobody wrote, writes close to either end of it, and, under AddressSanitizer,
// other indices that are wrong. It does not look at the masks of lanes, nor miss a wait_for_inputs() or a
// load_matrices() that is not aligned.
#pragma once

#include <math.h>
#include <string.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <tuple>

#include "number/formats.h"
#include "ops/context.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace fathom::cuda::emulated {

// Of the thread that runs now.
struct Place {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
Place& here();

inline bool backwards = false;  // blocks and threads in the opposite order

constexpr size_t kExchangeBytes = 64;
using Slots = const unsigned char (*)[kExchangeBytes];
// Gives `bytes` of every lane of the warp to each of them: [32, kExchangeBytes]. `active`: lanes that have not ended.
Slots exchange(const void* mine, size_t bytes, unsigned* active);
template <class T>
struct Exchanged {
  Slots slots;
  unsigned active;
  explicit Exchanged(const T& mine) {
    static_assert(sizeof(T) <= kExchangeBytes);
    slots = exchange(&mine, sizeof(T), &active);
  }
  T operator[](unsigned lane) const {
    T value;
    memcpy(&value, slots[lane], sizeof value);
    return value;
  }
};

unsigned lane();
void block_barrier();
void* block_memory();
void add_copy(void* shared, const void* global, bool valid);
void commit();
void wait(int n);

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace fathom::cuda::emulated

#define threadIdx (::fathom::cuda::emulated::here().thread)
#define blockIdx (::fathom::cuda::emulated::here().block)
#define blockDim (::fathom::cuda::emulated::here().block_dim)
#define gridDim (::fathom::cuda::emulated::here().grid_dim)

inline void __syncthreads() { ::fathom::cuda::emulated::block_barrier(); }
inline void __syncwarp(unsigned = 0xFFFFFFFFu) { ::fathom::cuda::emulated::Exchanged<char>(0); }

template <class T>
T __shfl_sync(unsigned, T value, int from, int width = 32) {
  const ::fathom::cuda::emulated::Exchanged<T> all(value);
  const unsigned lane = ::fathom::cuda::emulated::lane(), w = static_cast<unsigned>(width);
  return all[lane / w * w + static_cast<unsigned>(from) % w];
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) {
  const ::fathom::cuda::emulated::Exchanged<T> all(value);
  const unsigned lane = ::fathom::cuda::emulated::lane(), w = static_cast<unsigned>(width);
  const unsigned from = lane ^ static_cast<unsigned>(mask);
  return from / w <= lane / w ? all[from] : value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const ::fathom::cuda::emulated::Exchanged<int> all(predicate);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((all.active >> i & 1) != 0 && all[i] != 0) votes |= 1u << i;
  }
  return votes & mask;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
template <class T>
T __ldcs(const T* p) {
  return *p;
}
using std::max;
using std::min;
inline int64_t max(int64_t a, int b) { return std::max<int64_t>(a, b); }
inline int64_t min(int64_t a, int b) { return std::min<int64_t>(a, b); }
inline int64_t max(int a, int64_t b) { return std::max<int64_t>(a, b); }
inline int64_t min(int a, int64_t b) { return std::min<int64_t>(a, b); }

namespace fathom::cuda {

template <class... Parameters, class... Arguments>
void launch(Context&, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Arguments... arguments) {
  const std::tuple<Parameters...> copies(static_cast<Parameters>(arguments)...);
  emulated::run(grid, block, shared_bytes, [&] { std::apply(kernel, copies); });
}

template <class T>
T* shared_memory() {
  return static_cast<T*>(emulated::block_memory());
}
inline void wait_for_inputs() {}
inline void start_next() {}

namespace emulated {
inline float half_of(uint32_t word, int i) { return bf16_to_f32(static_cast<uint16_t>(word >> 16 * i)); }
inline int byte_of(uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); }
struct Fragments {
  uint32_t a[4], b[2];
};
// c += A B for a lane, whose fragments hold kInWord elements a word, of which element(word, i) is one.
template <int kInWord, class Sum, class Element>
void add_product(Sum (&c)[4], const Fragments& mine, const Element& element) {
  const Exchanged<Fragments> all(mine);
  const unsigned g = lane() / 4, column = lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const unsigned col = column + static_cast<unsigned>(i % 2);
    for (unsigned q = 0; q < 4; ++q) {
      const Fragments of_row = all[g * 4 + q], of_col = all[col * 4 + q];
      for (int k = 0; k < kInWord; ++k) {
        c[i] += element(of_row.a[i / 2], k) * element(of_col.b[0], k) +
                element(of_row.a[2 + i / 2], k) * element(of_col.b[1], k);
      }
    }
  }
}
}  // namespace emulated

inline void mma_s8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  emulated::add_product<4>(c, {{a0, a1, a2, a3}, {b0, b1}}, emulated::byte_of);
}
inline void mma_s8_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) { mma_s8(c, a0, a1, 0, 0, b0, 0); }
inline void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  emulated::add_product<2>(c, {{a0, a1, a2, a3}, {b0, b1}}, emulated::half_of);
}
inline uint32_t transpose_8x8(uint32_t word) {
  using namespace emulated;
  const Exchanged<uint32_t> all(word);
  const unsigned g = lane() / 4, c = lane() % 4;
  const auto element = [&](unsigned row, unsigned col) { return all[row * 4 + col / 2] >> 16 * (col % 2) & 0xFFFF; };
  return element(2 * c, g) | element(2 * c + 1, g) << 16;
}
inline void load_matrices_of(uint32_t (&words)[4], const void* row, bool transposed) {
  using namespace emulated;
  const Exchanged<const uint16_t*> rows(static_cast<const uint16_t*>(row));
  const unsigned g = lane() / 4, c = lane() % 4;
  for (unsigned m = 0; m < 4; ++m) {
    const auto element = [&](unsigned r, unsigned col) { return static_cast<uint32_t>(rows[8 * m + r][col]); };
    words[m] =
        transposed ? element(2 * c, g) | element(2 * c + 1, g) << 16 : element(g, 2 * c) | element(g, 2 * c + 1) << 16;
  }
  __syncwarp();  // nobody may write where another still reads
}
inline void load_matrices(uint32_t (&words)[4], const void* row) { load_matrices_of(words, row, false); }
inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) { load_matrices_of(words, row, true); }

inline void copy_async(void* shared, const void* global, bool valid = true) {
  emulated::add_copy(shared, global, valid);
}
inline void commit_copies() { emulated::commit(); }
template <int n>
void wait_copies() {
  emulated::wait(n);
}
inline uint32_t pack_bf16(float low, float high) {
  return f32_to_bf16(low) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
}
inline float f16_to_float(uint16_t code) { return f16_to_f32(code); }
inline uint16_t float_to_f16(float x) { return f32_to_f16(x); }
template <class T>
T load_once(const T* p) {
  return *p;
}

}  // namespace fathom::cuda
