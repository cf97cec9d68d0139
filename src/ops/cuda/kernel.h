// What kernels are written with, beside CUDA's own words: launches, and the few instructions that have no word there.
// Without nvcc the same files are plain C++ over emulated.h, where every thread of a block is a fiber: slow, and enough
// to test a kernel's arithmetic, indices and barriers on any machine.
//
// Every kernel begins with wait_for_inputs(): launches overlap, and before it only weights may be read, and nothing be
// written. Behind its last read of what a later kernel may prefetch nothing is needed: start_next() only lets the next
// kernel come up to its own wait earlier.
#pragma once

#include <stdint.h>

#include "ops/context.h"
#include "ops/device.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "ops/cuda/emulated.h"
#endif

namespace fathom::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
inline constexpr int64_t kMaxGridY = 65535;

#if defined(__CUDACC__)

void check(cudaError_t result, const char* what);  // throws Error

// `kernel(arguments...)` on the context's stream. shared_bytes of dynamic shared memory, up to what the device has.
template <class... Parameters, class... Arguments>
void launch(Context& ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "shared memory");
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(ctx.device->stream);
  config.attrs = &overlap;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "a kernel");
}

// The block's dynamic shared memory, aligned to 16 bytes (1024 where a kernel rounds it up itself).
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes_of_block[];
  return reinterpret_cast<T*>(bytes_of_block);
}

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// ---- Products of a warp. Fragments as PTX has them: with g = lane / 4 and c = lane % 4, of A [16, k] the words are
// (row g, k-group c), (g + 8, c), (g, c + 4), (g + 8, c + 4), of B [k, 8] (k-group c, column g), (c + 4, g), where a
// group is the 4 bytes or 2 halves of a word; of C [16, 8] (g, 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1).

// c += A B, A [16, 32] and B [32, 8] of i8
__device__ __forceinline__ void mma_s8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                       uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// c += A B, A [16, 16] and B [16, 8] of i8: words (g, c), (g + 8, c) of A and (c, g) of B
__device__ __forceinline__ void mma_s8_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a0), "r"(a1), "r"(b0));
}
// c += A B, A [16, 16] and B [16, 8] of bf16, sums in f32
__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// An 8 x 8 matrix of halves over the warp, lane having (row lane / 4, columns 2 (lane % 4) and the next), transposed.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t word) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word));
  return out;
}

// Four 8 x 8 matrices of halves from shared memory: lane 8 m + i gives the address of row i of matrix m (16 bytes,
// aligned), and gets (row lane / 4, columns 2 (lane % 4) and the next) of each; transposed: of each one's transpose.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// 16 bytes from global to shared memory behind the thread's back, both aligned; zeros where not `valid`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
// What was copied since the last commit becomes a group; wait until all but the newest n groups of this thread are
// there.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Two floats, rounded to bf16, `low` in the lower half; and back.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ __forceinline__ float f16_to_float(uint16_t code) { return __half2float(__ushort_as_half(code)); }
__device__ __forceinline__ uint16_t float_to_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }

// Loads that bypass the L1, for what is read once: weights.
template <class T>
__device__ __forceinline__ T load_once(const T* p) {
  return __ldcs(p);
}

#endif  // __CUDACC__; otherwise emulated.h has the same

__device__ __forceinline__ float bf16_low(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float bf16_high(uint32_t word) { return __uint_as_float(word & 0xFFFF0000u); }

// Of all lanes of the warp, to each of them, in a fixed order.
__device__ __forceinline__ float warp_sum(float x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(kAllLanes, x, d);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, d));
  return x;
}

// Of all threads of the block, which are n_warps whole warps; shared: a float for each of these.
template <bool kLargest>
__device__ __forceinline__ float block_reduce(float x, float* shared, int n_warps) {
  x = kLargest ? warp_max(x) : warp_sum(x);
  __syncthreads();  // what it held is read
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = shared[0];
  for (int i = 1; i < n_warps; ++i) x = kLargest ? fmaxf(x, shared[i]) : x + shared[i];
  return x;
}
__device__ __forceinline__ float block_sum(float x, float* shared, int n_warps) {
  return block_reduce<false>(x, shared, n_warps);
}
__device__ __forceinline__ float block_max(float x, float* shared, int n_warps) {
  return block_reduce<true>(x, shared, n_warps);
}

}  // namespace fathom::cuda
