// The emulation that kernels are tested on, against loops.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/rng.h"
#include "number/formats.h"
#include "ops/cuda/emulated_device.h"
#include "ops/cuda/kernel.h"

namespace fathom::cuda {
namespace {

Context& context() {
  static const std::unique_ptr<Device> device = open_emulated_device();
  static ThreadPool pool(1);
  static Arena arena(device->allocate);
  static Context ctx{pool, arena, device.get()};
  return ctx;
}

std::vector<uint32_t> random_words(size_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<uint32_t> words(n);
  for (uint32_t& word : words) word = static_cast<uint32_t>(rng.below(uint64_t{1} << 32));
  return words;
}

// a: [16, 32] i8, b: [8, 32], one column a row; c: [16, 8]
__global__ void product_s8(const uint32_t* a, const uint32_t* b, int* c) {
  const unsigned g = threadIdx.x / 4, q = threadIdx.x % 4;
  int sums[4] = {1, 2, 3, 4};
  mma_s8(sums, a[g * 8 + q], a[(g + 8) * 8 + q], a[g * 8 + 4 + q], a[(g + 8) * 8 + 4 + q], b[g * 8 + q],
         b[g * 8 + 4 + q]);
  for (unsigned i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = sums[i];
}

TEST(Emulated, ProductsOfBytes) {
  const auto a = random_words(16 * 8, 1), b = random_words(8 * 8, 2);
  std::vector<int> c(16 * 8);
  launch(context(), product_s8, 1, 32, 0, a.data(), b.data(), c.data());
  const auto byte = [](const std::vector<uint32_t>& words, int row, int k) {
    return static_cast<int>(reinterpret_cast<const int8_t*>(words.data())[row * 32 + k]);
  };
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      int want = row / 8 * 2 + col % 2 + 1;
      for (int k = 0; k < 32; ++k) want += byte(a, row, k) * byte(b, col, k);
      EXPECT_EQ(c[static_cast<size_t>(row * 8 + col)], want) << row << ", " << col;
    }
  }
}

// a: [16, 16] bf16 from shared memory, b: [8, 16]
__global__ void product_bf16(const uint16_t* a, const uint32_t* b, float* c) {
  auto* shared = shared_memory<uint16_t>();
  const unsigned lane = threadIdx.x, g = lane / 4, q = lane % 4;
  copy_async(shared + lane * 8, a + lane * 8);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  uint32_t parts[4];
  load_matrices(parts, shared + (lane % 16) * 16 + lane / 16 * 8);  // rows 0-7, 8-15 of the left half, then the right
  float sums[4] = {};
  mma_bf16(sums, parts[0], parts[1], parts[2], parts[3], b[g * 8 + q], b[g * 8 + 4 + q]);
  for (unsigned i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = sums[i];
}

TEST(Emulated, ProductsOfBf16FromSharedMemory) {
  Rng rng(3);
  alignas(16) uint16_t a[16 * 16];
  uint16_t b[8 * 16];
  for (uint16_t& x : a) x = f32_to_bf16(static_cast<float>(rng.normal()));
  for (uint16_t& x : b) x = f32_to_bf16(static_cast<float>(rng.normal()));
  uint32_t words[8 * 8];
  std::memcpy(words, b, sizeof b);
  float c[16 * 8];
  launch(context(), product_bf16, 1, 32, sizeof a, static_cast<const uint16_t*>(a), static_cast<const uint32_t*>(words),
         static_cast<float*>(c));
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      float want = 0;
      for (int k = 0; k < 16; ++k) want += bf16_to_f32(a[row * 16 + k]) * bf16_to_f32(b[col * 16 + k]);
      EXPECT_NEAR(c[row * 8 + col], want, 1e-5) << row << ", " << col;
    }
  }
}

__global__ void transpose(const uint32_t* in, uint32_t* out) { out[threadIdx.x] = transpose_8x8(in[threadIdx.x]); }

TEST(Emulated, Transposes) {
  const auto in = random_words(32, 4);
  std::vector<uint32_t> out(32);
  launch(context(), transpose, 1, 32, 0, in.data(), out.data());
  for (int row = 0; row < 8; ++row) {
    for (int col = 0; col < 8; ++col) {
      EXPECT_EQ(reinterpret_cast<const uint16_t*>(out.data())[row * 8 + col],
                reinterpret_cast<const uint16_t*>(in.data())[col * 8 + row]);
    }
  }
}

// Every thread reads what the opposite one has written, in several blocks of which some threads leave early.
__global__ void mirror(int* out, bool waits) {
  auto* shared = shared_memory<int>();
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  shared[i] = i;
  if (waits) __syncthreads();
  const int other = shared[n - 1 - i];
  if (i >= 40) return;
  __syncthreads();
  out[static_cast<int>(blockIdx.x) * n + i] = other + __shfl_xor_sync(kAllLanes, i, 1);
}

TEST(Emulated, BarriersHoldAndTheirLackShows) {
  std::vector<int> out;
  for (const bool backwards : {true, false}) {
    out.assign(3 * 64, -1);
    emulated::backwards = backwards;
    launch(context(), mirror, 3, 64, 64 * sizeof(int), out.data(), true);
    for (int block = 0; block < 3; ++block) {
      for (int i = 0; i < 40; ++i) {
        EXPECT_EQ(out[static_cast<size_t>(block * 64 + i)], 63 - i + (i ^ 1)) << block << ", " << i;
      }
    }
  }
  launch(context(), mirror, 1, 64, 64 * sizeof(int), out.data(), false);
  EXPECT_NE(out[0], 63 + 1);  // read before it was written
}

__global__ void unwaited(const uint32_t* in, uint32_t* out) {
  auto* shared = shared_memory<uint32_t>();
  copy_async(shared, in);
  commit_copies();
  out[0] = shared[0];
}

TEST(Emulated, CopiesArriveWhenTheyAreWaitedFor) {
  alignas(16) const uint32_t in[4] = {1, 2, 3, 4};
  uint32_t out = 0;
  launch(context(), unwaited, 1, 1, 16, static_cast<const uint32_t*>(in), &out);
  EXPECT_EQ(out, 0xFFFFFFFFu);
}

__global__ void write_at(int place) { shared_memory<char>()[place] = 0; }

TEST(EmulatedDeathTest, WritesBesideSharedMemory) {
  launch(context(), write_at, 1, 1, 100, 99);
  EXPECT_DEATH(launch(context(), write_at, 1, 1, 100, 100), "wrote behind its shared memory");
  EXPECT_DEATH(launch(context(), write_at, 1, 1, 100, -1), "wrote before its shared memory");
}

// A warp of which one half waits for the block, the other for the warp.
__global__ void divided() { threadIdx.x < 16 ? __syncthreads() : __syncwarp(); }

TEST(EmulatedDeathTest, ThreadsThatWaitForEver) {
  EXPECT_DEATH(launch(context(), divided, 1, 32, 0), "wait where the others never come");
}

}  // namespace
}  // namespace fathom::cuda
