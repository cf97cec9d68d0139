// Linear layers whose weights are floats, with f32 activations. bf16 and FP8 go to the tensor cores: activations are
// split into two bf16 whose sum is off by 2^-17 of the number, so that products are those of f32. f32 and f16 are
// multiplied as f32.
#pragma once

#include "ops/cuda/linear_tile.h"

namespace fathom::cuda {

inline constexpr int kColumns = 64;  // that a warp loads at a time

// ---- bf16, FP8: [columns, 8 rows]. Eight columns of a panel are a quarter of a product's left operand.

struct Bf16 {
  static constexpr bool kScaled = false;
  static constexpr int kColumnBytes = 16;
  using Stored = uint32_t;  // two rows of a column
  static __device__ __forceinline__ uint32_t to_bf16(Stored pair) { return pair; }
};

struct F8E4M3 {
  static constexpr bool kScaled = true;  // by 128 columns, in front of the panel
  static constexpr int kColumnBytes = 8;
  using Stored = uint16_t;
  static __device__ __forceinline__ float to_float(uint32_t code) {
    // The exponent is off by 120 where it stands; the product is exact, subnormals too.
    return __uint_as_float((code & 0x7F) << 20 | (code & 0x80) << 24) * 0x1p120f;
  }
  static __device__ __forceinline__ uint32_t to_bf16(Stored pair) {
    return pack_bf16(to_float(pair & 255), to_float(pair >> 8));
  }
};

// 64 columns of a warp's panels as they are stored; behind the last column zeros.
template <class Format, int kMT>
__device__ __forceinline__ void load_columns(typename Format::Stored (&stored)[kColumns / 8][kMT][2],
                                             const uint8_t* const (&panels)[kMT][2], int numbers_at, int begin,
                                             int cols, int lane) {
  using Stored = typename Format::Stored;
#pragma unroll
  for (int i = 0; i < kColumns / 8; ++i) {
    const int k = begin + i * 8 + lane / 4;
#pragma unroll
    for (int m = 0; m < kMT; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint8_t* column = panels[m][half] + numbers_at + static_cast<int64_t>(k) * Format::kColumnBytes;
        stored[i][m][half] =
            k < cols ? load_once(reinterpret_cast<const Stored*>(column) + lane % 4) : static_cast<Stored>(0);
      }
    }
  }
}

// Their products with the tokens' columns; row(n, i): where token 8 n + g has its part of columns 16 i and following.
template <class Format, class Shape, class Row>
__device__ __forceinline__ void add_columns(Sums<Shape>& sums,
                                            const typename Format::Stored (&stored)[kColumns / 8][Shape::kMT][2],
                                            const uint8_t* const (&panels)[Shape::kMT][2], int begin, const Row& row) {
  constexpr int kMT = Shape::kMT, kNT = Shape::kNT;
  Sums<Shape> part = {};
  Sums<Shape>& total = Format::kScaled ? part : sums;
#pragma unroll
  for (int i = 0; i < kColumns / 16; ++i) {
    uint32_t a[kMT][4];
#pragma unroll
    for (int m = 0; m < kMT; ++m) {
#pragma unroll
      for (int q = 0; q < 4; ++q) a[m][q] = transpose_8x8(Format::to_bf16(stored[i * 2 + q / 2][m][q % 2]));
    }
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const uint4 x = *reinterpret_cast<const uint4*>(row(n, i));
#pragma unroll
      for (int m = 0; m < kMT; ++m) {
        mma_bf16(total[m][n], a[m][0], a[m][1], a[m][2], a[m][3], x.x, x.y);
        mma_bf16(total[m][n], a[m][0], a[m][1], a[m][2], a[m][3], x.z, x.w);
      }
    }
  }
  if (!Format::kScaled) return;
#pragma unroll
  for (int m = 0; m < kMT; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float scale = reinterpret_cast<const float*>(panels[m][j / 2])[begin / 128];
#pragma unroll
      for (int n = 0; n < kNT; ++n) sums[m][n][j] += part[m][n][j] * scale;
    }
  }
}

template <class Format, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) linear_bf16_kernel(PanelCalls calls) {
  constexpr int kMT = Shape::kMT, kNT = Shape::kNT, kWK = Shape::kWK;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int wk = static_cast<int>(threadIdx.x) / kWarp / Shape::kWM;
  Work work;
  find_work<Shape>(work, calls);
  const int cols = work.call->cols, numbers_at = Format::kScaled ? (cols + 127) / 128 * 4 : 0;
  const int last_block = (cols + 15) / 16 - 1;
  const uint8_t* panels[kMT][2];
  typename Format::Stored stored[kColumns / 8][kMT][2];
  // Weights that do not depend on what earlier kernels choose are on their way while these end.
  const bool known = work.call->offsets == nullptr;
  if (known) {
    find_panels<Shape>(panels, work);
    load_columns<Format, kMT>(stored, panels, numbers_at, wk * kColumns, cols, lane);
  }
  wait_for_inputs();
  start_next();
  if (!find_expert(work)) return;
  if (!known) {
    find_panels<Shape>(panels, work);
    load_columns<Format, kMT>(stored, panels, numbers_at, wk * kColumns, cols, lane);
  }
  for (int token = static_cast<int>(blockIdx.y) * Shape::kTokens, first = token; token < work.n_tokens;
       token += static_cast<int>(gridDim.y) * Shape::kTokens) {
    const uint8_t* rows[kNT];
#pragma unroll
    for (int n = 0; n < kNT; ++n) rows[n] = row_of(work, token + n * 8 + lane / 4) + lane % 4 * 16;
    Sums<Shape> sums = {};
    for (int begin = wk * kColumns; begin < cols; begin += kWK * kColumns) {
      if (begin != wk * kColumns || token != first) {
        load_columns<Format, kMT>(stored, panels, numbers_at, begin, cols, lane);
      }
      add_columns<Format, Shape>(sums, stored, panels, begin, [&](int n, int i) {
        return rows[n] + min(begin / 16 + i, last_block) * kBlock16;  // behind the last the weights are zeros
      });
    }
    write_tile<Shape>(work, sums, token);
  }
}

// The same for many tokens, whose rows are copied to shared memory some columns ahead.
inline constexpr int kStages16 = 3;
inline constexpr int kStagedRow16 = kColumns / 16 * kBlock16 + 64;  // an odd number of 64 bytes: rows in other banks
inline constexpr int kStaged16Bytes = kStages16 * kStagedRow16 * Staged64::kTokens;

template <class Format, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) linear_bf16_staged_kernel(PanelCalls calls) {
  constexpr int kMT = Shape::kMT, kStageBytes = kStagedRow16 * Shape::kTokens;
  static_assert(Shape::kWK == 1 && kStages16 * kStageBytes == kStaged16Bytes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  auto* const shared = shared_memory<uint8_t>();
  Work work;
  find_work<Shape>(work, calls);
  wait_for_inputs();
  start_next();
  if (!find_expert(work)) return;
  const uint8_t* panels[kMT][2];
  find_panels<Shape>(panels, work);
  const int cols = work.call->cols, numbers_at = Format::kScaled ? (cols + 127) / 128 * 4 : 0;
  const int row_bytes = (cols + 15) / 16 * kBlock16, n_stages = (cols + kColumns - 1) / kColumns;
  for (int token = static_cast<int>(blockIdx.y) * Shape::kTokens; token < work.n_tokens;
       token += static_cast<int>(gridDim.y) * Shape::kTokens) {
    const auto stage = [&](int s) {
      stage_rows<Shape, kColumns / 16 * kBlock16, kStagedRow16>(shared + s % kStages16 * kStageBytes, work, token, s,
                                                                row_bytes);
    };
    __syncthreads();  // the tokens before are used
    for (int s = 0; s + 1 < kStages16; ++s) stage(s);
    Sums<Shape> sums = {};
    typename Format::Stored stored[kColumns / 8][kMT][2];
    for (int s = 0; s < n_stages; ++s) {
      load_columns<Format, kMT>(stored, panels, numbers_at, s * kColumns, cols, lane);
      wait_copies<kStages16 - 2>();
      __syncthreads();
      stage(s + kStages16 - 1);
      const uint8_t* rows = shared + s % kStages16 * kStageBytes + lane / 4 * kStagedRow16 + lane % 4 * 16;
      add_columns<Format, Shape>(sums, stored, panels, s * kColumns,
                                 [&](int n, int i) { return rows + n * 8 * kStagedRow16 + i * kBlock16; });
    }
    write_tile<Shape>(work, sums, token);
  }
}

// ---- f32, f16: a block a panel, eight tokens at a time.

struct F32 {
  using Stored = float;
  static __device__ __forceinline__ float to_float(Stored x) { return x; }
};
struct F16 {
  using Stored = uint16_t;
  static __device__ __forceinline__ float to_float(Stored x) { return f16_to_float(x); }
};

inline constexpr int kFloatThreads = 1024, kFloatTokens = 8;
struct FloatShape {
  static constexpr int kRows = 8, kTokens = kFloatTokens;
};

template <class Format>
__global__ void __launch_bounds__(kFloatThreads) linear_float_kernel(PanelCalls calls) {
  constexpr int kWarps = kFloatThreads / kWarp, kStep = kFloatThreads / 8, kAtOnce = 4;
  __shared__ float shared[kWarps][kFloatTokens][8];
  const int thread = static_cast<int>(threadIdx.x), row = thread % 8, first = thread / 8;
  Work work;
  find_work<FloatShape>(work, calls);
  wait_for_inputs();
  start_next();
  if (!find_expert(work)) return;
  const PanelCall& call = *work.call;
  const auto* panel = reinterpret_cast<const typename Format::Stored*>(call.w + work.matrix * call.matrix_bytes +
                                                                       work.row / 8 * call.panel_bytes);
  for (int token = static_cast<int>(blockIdx.y) * kFloatTokens; token < work.n_tokens;
       token += static_cast<int>(gridDim.y) * kFloatTokens) {
    const int n_tokens = min(kFloatTokens, work.n_tokens - token);
    const float* rows[kFloatTokens];
#pragma unroll
    for (int t = 0; t < kFloatTokens; ++t) rows[t] = reinterpret_cast<const float*>(row_of(work, token + t));
    float sums[kFloatTokens] = {};
    for (int begin = first; begin < call.cols; begin += kStep * kAtOnce) {
      float w[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int k = begin + i * kStep;
        w[i] = k < call.cols ? Format::to_float(load_once(panel + static_cast<int64_t>(k) * 8 + row)) : 0;
      }
#pragma unroll
      for (int t = 0; t < kFloatTokens; ++t) {
        if (t >= n_tokens) break;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int k = begin + i * kStep;
          if (k < call.cols) sums[t] = fmaf(rows[t][k], w[i], sums[t]);
        }
      }
    }
    __syncthreads();  // the tokens before are written
#pragma unroll
    for (int t = 0; t < kFloatTokens; ++t) {
      sums[t] += __shfl_xor_sync(kAllLanes, sums[t], 8);
      sums[t] += __shfl_xor_sync(kAllLanes, sums[t], 16);
      if (thread % kWarp < 8) shared[thread / kWarp][t][row] = sums[t];
    }
    __syncthreads();
    if (thread < n_tokens * 8 && work.row + row < call.rows) {
      const int t = thread / 8;
      float sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp][t][row];
      const int64_t step = call.offsets == nullptr ? work.matrix * call.y_step : 0;
      call.y[(work.first_token + token + t) * call.y_stride + step + work.row + row] = sum;
    }
  }
}

}  // namespace fathom::cuda
