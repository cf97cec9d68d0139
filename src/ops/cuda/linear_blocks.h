// Linear layers whose weights are in blocks with scales of their own. A panel of such weights is half of the left
// operand of a tensor core's product as it stands: a warp reads it straight from memory. Blocks meet activations in 8
// bits, every block's sum of products is an exact integer, as on the CPU.
#pragma once

#include "ops/cuda/linear_tile.h"

namespace fathom::cuda {

__device__ __forceinline__ uint32_t word_at(const uint8_t* p) {
  return load_once(reinterpret_cast<const uint32_t*>(p));
}
__device__ __forceinline__ float f16_at(const uint8_t* p) {
  return f16_to_float(load_once(reinterpret_cast<const uint16_t*>(p)));
}

// ---- A lane's part of the codes of 32 columns of a panel: of row g at columns 4c .. (low) and 16 + 4c .. (high), as
// number/panels.h lays them out.

__device__ __forceinline__ uint32_t code_word(const uint8_t* vectors, int lane) {
  return word_at(vectors + (lane % 4 * 8 + lane / 4) * 4);
}

struct Codes4 {
  uint32_t word;
  __device__ __forceinline__ void load(const uint8_t* codes, int lane) { word = code_word(codes, lane); }
  __device__ __forceinline__ uint32_t low(int) const { return word & 0x0F0F0F0Fu; }
  __device__ __forceinline__ uint32_t high(int) const { return word >> 4 & 0x0F0F0F0Fu; }
};

struct Codes5 {
  Codes4 four;
  uint32_t fifth;
  __device__ __forceinline__ void load(const uint8_t* codes, int lane) {
    four.load(codes, lane);
    fifth = word_at(codes + 128 + lane / 4 * 4);
  }
  __device__ __forceinline__ uint32_t low(int c) const { return four.low(c) | (fifth >> c & 0x01010101u) << 4; }
  __device__ __forceinline__ uint32_t high(int c) const { return four.high(c) | (fifth >> (c + 4) & 0x01010101u) << 4; }
};

struct Codes6 {
  Codes4 four;
  uint32_t upper[2];
  __device__ __forceinline__ void load(const uint8_t* codes, int lane) {
    four.load(codes, lane);
    upper[0] = word_at(codes + 128 + lane / 4 * 4);
    upper[1] = word_at(codes + 160 + lane / 4 * 4);
  }
  __device__ __forceinline__ uint32_t low(int c) const { return four.low(c) | (upper[0] >> 2 * c & 0x03030303u) << 4; }
  __device__ __forceinline__ uint32_t high(int c) const {
    return four.high(c) | (upper[1] >> 2 * c & 0x03030303u) << 4;
  }
};

struct Codes8 {
  uint32_t words[2];
  __device__ __forceinline__ void load(const uint8_t* codes, int lane) {
    words[0] = code_word(codes, lane);
    words[1] = code_word(codes + 128, lane);
  }
  __device__ __forceinline__ uint32_t low(int) const { return words[0]; }
  __device__ __forceinline__ uint32_t high(int) const { return words[1]; }
};

// ---- Blocks of 32 columns: scales of 8 rows, then codes. What codes are too large by is taken off with the sums of
// the input's codes, of which the input has minus 8 times: kOffset times that.

struct Q4_0 {
  static constexpr int kBytes = 144, kOffset = 1, kAtOnce = 4;
  using Codes = Codes4;
};
struct Q5_0 {
  static constexpr int kBytes = 176, kOffset = 2, kAtOnce = 2;
  using Codes = Codes5;
};
struct Q8_0 {
  static constexpr int kBytes = 272, kOffset = 0, kAtOnce = 2;
  using Codes = Codes8;
};

// Of tokens: the codes of one, the scales of two, as a lane's fragments want them.
template <int kNT>
struct TokenRows {
  const uint8_t* base;
  uint32_t codes[kNT], first[kNT], second[kNT];  // bytes from base
  __device__ __forceinline__ TokenRows(const Work& work, int token, int lane) {
    base = work.call->x;
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const int t = token + n * 8;
      codes[n] = static_cast<uint32_t>(row_of(work, t + lane / 4) - base);
      first[n] = static_cast<uint32_t>(row_of(work, t + lane % 4 * 2) - base);
      second[n] = static_cast<uint32_t>(row_of(work, t + lane % 4 * 2 + 1) - base);
    }
  }
  template <class T>
  __device__ __forceinline__ T get(uint32_t row, int byte) const {
    return *reinterpret_cast<const T*>(base + row + byte);
  }
};

// Block b of the panels, of those behind the last the last again with scales of zero.
template <class Block, int kMT>
__device__ __forceinline__ void load_blocks(typename Block::Codes (&blocks)[kMT][2], float (&d)[kMT][2],
                                            const uint8_t* const (&panels)[kMT][2], int b, int n_blocks, int lane) {
  const bool there = b < n_blocks;
  const int64_t at = static_cast<int64_t>(there ? b : n_blocks - 1) * Block::kBytes;
#pragma unroll
  for (int m = 0; m < kMT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint8_t* block = panels[m][half] + at;
      blocks[m][half].load(block + 16, lane);
      d[m][half] = there ? f16_at(block + lane / 4 * 2) : 0;
    }
  }
}

// Products of 32 columns with eight tokens. codes: the lane's two words; first, second: scale and offset of its tokens.
template <class Block, class Shape>
__device__ __forceinline__ void add_products(Sums<Shape>& sums, int n,
                                             const typename Block::Codes (&blocks)[Shape::kMT][2],
                                             const float (&d)[Shape::kMT][2], int c, uint2 codes, uint2 first,
                                             uint2 second) {
  const float scale[2] = {__uint_as_float(first.x), __uint_as_float(second.x)};
  const int offset[2] = {Block::kOffset * static_cast<int>(first.y), Block::kOffset * static_cast<int>(second.y)};
#pragma unroll
  for (int m = 0; m < Shape::kMT; ++m) {
    int products[4] = {offset[0], offset[1], offset[0], offset[1]};
    mma_s8(products, blocks[m][0].low(c), blocks[m][1].low(c), blocks[m][0].high(c), blocks[m][1].high(c), codes.x,
           codes.y);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sums[m][n][j] += static_cast<float>(products[j]) * (d[m][j / 2] * scale[j % 2]);
    }
  }
}

template <class Block, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) linear_32_kernel(PanelCalls calls) {
  constexpr int kMT = Shape::kMT, kNT = Shape::kNT, kWK = Shape::kWK;
  constexpr int kAtOnce = kNT <= 2 ? Block::kAtOnce : 2;  // blocks that are loaded before the first is used
  const int lane = static_cast<int>(threadIdx.x) % kWarp, c = lane % 4;
  const int wk = static_cast<int>(threadIdx.x) / kWarp / Shape::kWM;
  Work work;
  find_work<Shape>(work, calls);
  const int n_blocks = work.call->cols / 32;
  const uint8_t* panels[kMT][2];
  typename Block::Codes blocks[kAtOnce][kMT][2];
  float d[kAtOnce][kMT][2];
  const auto load = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      load_blocks<Block, kMT>(blocks[i], d[i], panels, begin + i * kWK, n_blocks, lane);
    }
  };
  // Weights that do not depend on what earlier kernels choose are on their way while these end.
  const bool known = work.call->offsets == nullptr;
  if (known) {
    find_panels<Shape>(panels, work);
    load(wk);
  }
  wait_for_inputs();
  start_next();
  if (!find_expert(work)) return;
  if (!known) {
    find_panels<Shape>(panels, work);
    load(wk);
  }
  for (int token = static_cast<int>(blockIdx.y) * Shape::kTokens, first = token; token < work.n_tokens;
       token += static_cast<int>(gridDim.y) * Shape::kTokens) {
    const TokenRows<kNT> rows(work, token, lane);
    Sums<Shape> sums = {};
    for (int begin = wk; begin < n_blocks; begin += kWK * kAtOnce) {
      if (begin != wk || token != first) load(begin);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int b = min(begin + i * kWK, n_blocks - 1) * kBlock32;
#pragma unroll
        for (int n = 0; n < kNT; ++n) {
          add_products<Block, Shape>(sums, n, blocks[i], d[i], c, rows.template get<uint2>(rows.codes[n], b + c * 8),
                                     rows.template get<uint2>(rows.first[n], b + 32),
                                     rows.template get<uint2>(rows.second[n], b + 32));
        }
      }
    }
    write_tile<Shape>(work, sums, token);
  }
}

inline constexpr int kStaged32Bytes = 3 * 4 * kBlock32 * Staged64::kTokens;

// The same for many tokens: those of the block are copied to shared memory some columns ahead. Rows of the input begin
// at multiples of 16 bytes.
template <class Block, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) linear_32_staged_kernel(PanelCalls calls) {
  constexpr int kMT = Shape::kMT, kNT = Shape::kNT;
  constexpr int kBlocks = 4, kStages = 3;  // blocks of columns in a stage
  constexpr int kRowBytes = kBlocks * kBlock32, kStageBytes = Shape::kTokens * kRowBytes;
  static_assert(Shape::kWK == 1 && kStages * kStageBytes == kStaged32Bytes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, c = lane % 4, g = lane / 4;
  auto* const shared = shared_memory<uint8_t>();
  Work work;
  find_work<Shape>(work, calls);
  wait_for_inputs();
  start_next();
  if (!find_expert(work)) return;
  const uint8_t* panels[kMT][2];
  find_panels<Shape>(panels, work);
  const int n_blocks = work.call->cols / 32, n_stages = (n_blocks + kBlocks - 1) / kBlocks;
  for (int token = static_cast<int>(blockIdx.y) * Shape::kTokens; token < work.n_tokens;
       token += static_cast<int>(gridDim.y) * Shape::kTokens) {
    const auto stage = [&](int s) {
      stage_rows<Shape, kRowBytes, kRowBytes>(shared + s % kStages * kStageBytes, work, token, s, n_blocks * kBlock32);
    };
    __syncthreads();  // the tokens before are used
    for (int s = 0; s + 1 < kStages; ++s) stage(s);
    Sums<Shape> sums = {};
    typename Block::Codes blocks[kBlocks][kMT][2];
    float d[kBlocks][kMT][2];
    for (int s = 0; s < n_stages; ++s) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        load_blocks<Block, kMT>(blocks[i], d[i], panels, s * kBlocks + i, n_blocks, lane);
      }
      wait_copies<kStages - 2>();
      __syncthreads();
      stage(s + kStages - 1);
      const uint8_t* rows = shared + s % kStages * kStageBytes;
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
        for (int n = 0; n < kNT; ++n) {
          const auto get = [&](int t, int byte) {
            return *reinterpret_cast<const uint2*>(rows + (n * 8 + t) * kRowBytes + i * kBlock32 + byte);
          };
          add_products<Block, Shape>(sums, n, blocks[i], d[i], c, get(g, c * 8), get(2 * c, 32), get(2 * c + 1, 32));
        }
      }
    }
    write_tile<Shape>(work, sums, token);
  }
}

// ---- Blocks of 256 columns

// 6-bit scales and mins: lane (g, c) reads those of row g and of the columns' parts 2c and 2c + 1, as bytes scale, min,
// scale, min; the others ask for them.
struct SixBitScales {
  uint32_t mine;
  __device__ __forceinline__ void load(const uint8_t* block, int lane) {
    const uint8_t* in = block + 32;
    const int c = lane % 4, g = lane / 4;
    const uint32_t first = load_once(in + 2 * c * 8 + g), second = load_once(in + (2 * c + 1) * 8 + g);
    const uint32_t upper = load_once(in + 64 + c * 8 + g);
    mine = (first & 15) | (upper & 3) << 4 | (first >> 4 | (upper >> 4 & 3) << 4) << 8 |
           ((second & 15) | (upper >> 2 & 3) << 4) << 16 | (second >> 4 | (upper >> 6 & 3) << 4) << 24;
  }
};

struct Q4K {
  static constexpr int kBytes = 1152, kHeader = 128, kSubBytes = 128;
  using Codes = Codes4;
};
struct Q5K {
  static constexpr int kBytes = 1408, kHeader = 128, kSubBytes = 160;
  using Codes = Codes5;
};
struct Q6K {
  static constexpr int kBytes = 1680, kHeader = 144, kSubBytes = 192;
  using Codes = Codes6;
};

// Scales of q6_k: of row g and the sixteens 4c .. 4c + 3, a byte each.
__device__ __forceinline__ uint32_t load_signed_scales(const uint8_t* block, int lane) {
  const int c = lane % 4, g = lane / 4;
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) mine |= static_cast<uint32_t>(load_once(block + 16 + (4 * c + i) * 8 + g)) << 8 * i;
  return mine;
}

__device__ __forceinline__ int signed_byte(uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); }

template <class Block, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) linear_256_kernel(PanelCalls calls) {
  constexpr int kMT = Shape::kMT, kNT = Shape::kNT, kWK = Shape::kWK;
  constexpr bool kQ6K = Block::kHeader == 144;
  constexpr int kAtOnce = kNT <= 2 ? 4 : 2;  // parts of 32 columns that are loaded before the first is used
  const int lane = static_cast<int>(threadIdx.x) % kWarp, c = lane % 4, g = lane / 4;
  const int wk = static_cast<int>(threadIdx.x) / kWarp / Shape::kWM;
  Work work;
  find_work<Shape>(work, calls);
  wait_for_inputs();
  start_next();
  if (!find_expert(work)) return;
  const uint8_t* panels[kMT][2];
  find_panels<Shape>(panels, work);
  const int cols = work.call->cols, n_blocks = cols / 256;
  const int scales_at = cols, sums_32_at = scales_at + n_blocks * 4, sums_16_at = sums_32_at + cols / 16;
  for (int token = static_cast<int>(blockIdx.y) * Shape::kTokens; token < work.n_tokens;
       token += static_cast<int>(gridDim.y) * Shape::kTokens) {
    const TokenRows<kNT> rows(work, token, lane);
    Sums<Shape> sums = {};
    for (int b = wk; b < n_blocks; b += kWK) {
      int products[kMT][kNT][4] = {}, mins[kMT][kNT][4] = {};
      uint32_t scales[kMT][2];
#pragma unroll
      for (int m = 0; m < kMT; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint8_t* block = panels[m][half] + static_cast<int64_t>(b) * Block::kBytes;
          if (kQ6K) {
            scales[m][half] = load_signed_scales(block, lane);
          } else {
            SixBitScales of_block;
            of_block.load(block, lane);
            scales[m][half] = of_block.mine;
          }
        }
      }
#pragma unroll
      for (int first = 0; first < 8; first += kAtOnce) {
        typename Block::Codes parts[kAtOnce][kMT][2];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int m = 0; m < kMT; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              parts[i][m][half].load(panels[m][half] + static_cast<int64_t>(b) * Block::kBytes + Block::kHeader +
                                         (first + i) * Block::kSubBytes,
                                     lane);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int s = first + i, col = b * 256 + s * 32;
          int scale[kMT][2][2], min_of[kMT][2];
#pragma unroll
          for (int m = 0; m < kMT; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              // Lane (g, s / 2) has those of the part.
              const uint32_t theirs = __shfl_sync(kAllLanes, scales[m][half], g * 4 + s / 2) >> s % 2 * 16;
              if (kQ6K) {
                scale[m][half][0] = signed_byte(theirs, 0);
                scale[m][half][1] = signed_byte(theirs, 1);
              } else {
                scale[m][half][0] = static_cast<int>(theirs & 255);
                min_of[m][half] = static_cast<int>(theirs >> 8 & 255);
              }
            }
          }
#pragma unroll
          for (int n = 0; n < kNT; ++n) {
            const auto b0 = rows.template get<uint32_t>(rows.codes[n], col + c * 4);
            const auto b1 = rows.template get<uint32_t>(rows.codes[n], col + 16 + c * 4);
            if (kQ6K) {
              int offset[2][2];  // [half of the columns][token]: minus 32 times the sums of 16 codes
#pragma unroll
              for (int u = 0; u < 2; ++u) {
                offset[u][0] = -32 * rows.template get<int16_t>(rows.first[n], sums_16_at + (col / 16 + u) * 2);
                offset[u][1] = -32 * rows.template get<int16_t>(rows.second[n], sums_16_at + (col / 16 + u) * 2);
              }
#pragma unroll
              for (int m = 0; m < kMT; ++m) {
                int low[4] = {offset[0][0], offset[0][1], offset[0][0], offset[0][1]};
                int high[4] = {offset[1][0], offset[1][1], offset[1][0], offset[1][1]};
                mma_s8_k16(low, parts[i][m][0].low(c), parts[i][m][1].low(c), b0);
                mma_s8_k16(high, parts[i][m][0].high(c), parts[i][m][1].high(c), b1);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                  products[m][n][j] += low[j] * scale[m][j / 2][0] + high[j] * scale[m][j / 2][1];
                }
              }
            } else {
              const int sum[2] = {rows.template get<int16_t>(rows.first[n], sums_32_at + col / 32 * 2),
                                  rows.template get<int16_t>(rows.second[n], sums_32_at + col / 32 * 2)};
#pragma unroll
              for (int m = 0; m < kMT; ++m) {
                int part[4] = {};
                mma_s8(part, parts[i][m][0].low(c), parts[i][m][1].low(c), parts[i][m][0].high(c),
                       parts[i][m][1].high(c), b0, b1);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                  products[m][n][j] += part[j] * scale[m][j / 2][0];
                  mins[m][n][j] += sum[j % 2] * min_of[m][j / 2];
                }
              }
            }
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kNT; ++n) {
        const float scale[2] = {rows.template get<float>(rows.first[n], scales_at + b * 4),
                                rows.template get<float>(rows.second[n], scales_at + b * 4)};
#pragma unroll
        for (int m = 0; m < kMT; ++m) {
          const uint8_t* block[2] = {panels[m][0] + static_cast<int64_t>(b) * Block::kBytes,
                                     panels[m][1] + static_cast<int64_t>(b) * Block::kBytes};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float d = f16_at(block[j / 2] + g * 2);
            sums[m][n][j] += static_cast<float>(products[m][n][j]) * (d * scale[j % 2]);
            if (!kQ6K) {
              const float dmin = f16_at(block[j / 2] + 16 + g * 2);
              sums[m][n][j] -= static_cast<float>(mins[m][n][j]) * (dmin * scale[j % 2]);
            }
          }
        }
      }
    }
    write_tile<Shape>(work, sums, token);
  }
}

}  // namespace fathom::cuda
