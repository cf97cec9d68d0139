// What all kernels of linear layers do alike: finding their part of the work, and adding up what the warps of a block
// have summed over different columns.
#pragma once

#include <algorithm>

#include "base/arithmetic.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/linear_launch.h"

namespace fathom::cuda {

// How a block is laid out: each of kWM groups of warps has kMT * 16 rows, the kWK warps of a group share the columns,
// and all have the same kNT * 8 tokens.
template <int kNT_, int kMT_, int kWM_, int kWK_>
struct TileShape {
  static constexpr int kNT = kNT_, kMT = kMT_, kWM = kWM_, kWK = kWK_;
  static constexpr int kThreads = kWM * kWK * kWarp;
  static constexpr int kRows = kWM * kMT * 16, kTokens = kNT * 8;
  static constexpr size_t kSharedBytes = sizeof(float) * (kWK - 1) * kWM * kMT * kNT * 4 * kWarp;
};
// For so many tokens at most, of matrices that fill the machine with 32 rows a block and of such that do not.
using Wide8 = TileShape<1, 2, 1, 8>;
using Narrow8 = TileShape<1, 1, 1, 8>;
using Wide16 = TileShape<2, 2, 1, 8>;
using Narrow16 = TileShape<2, 1, 1, 8>;
using Wide64 = TileShape<8, 1, 4, 2>;
using Narrow64 = TileShape<8, 1, 1, 8>;
// For inputs that go through shared memory.
using Staged64 = TileShape<8, 2, 4, 1>;

// Which matrix and rows a block works on, and which tokens the matrix has.
struct Work {
  const PanelCall* call;
  int matrix, row, first_token, n_tokens;
};

// The matrix is a place in `experts`, where there are any.
template <class Shape>
__device__ __forceinline__ void find_work(Work& work, const PanelCalls& calls) {
  int i = 0;  // blocks behind the last call's would be none's: there are none
  const int block = static_cast<int>(blockIdx.x);
  while (i + 1 < kCallsTogether && block >= calls.first_block[i + 1]) ++i;
  work.call = &calls.call[i];
  const int in_call = block - calls.first_block[i];
  const int row_tiles = (work.call->rows + Shape::kRows - 1) / Shape::kRows;
  work.matrix = in_call / row_tiles;
  work.row = in_call % row_tiles * Shape::kRows;
  work.first_token = 0;
  work.n_tokens = work.call->tokens;
}
// The expert and its tokens, which earlier kernels write. false: there is none.
__device__ __forceinline__ bool find_expert(Work& work) {
  if (work.call->offsets == nullptr) return true;
  const int expert = work.call->experts[work.matrix];
  if (expert < 0) return false;
  work.matrix = expert;
  work.first_token = work.call->offsets[expert];
  work.n_tokens = work.call->offsets[expert + 1] - work.first_token;
  return true;
}

// `kernel` over all rows of all calls, whose blocks have tokens and rows as Shape says.
template <class Shape>
void launch_over(Context& ctx, void (*kernel)(PanelCalls), std::span<const PanelCall> calls, int threads,
                 size_t shared_bytes) {
  PanelCalls parameters{};
  int n_blocks = 0;
  int64_t token_tiles = 1;
  for (int i = 0; i <= kCallsTogether; ++i) {
    parameters.first_block[i] = n_blocks;
    if (i >= static_cast<int>(calls.size())) continue;
    const PanelCall& call = calls[static_cast<size_t>(i)];
    parameters.call[i] = call;
    n_blocks += ceil_div(call.rows, Shape::kRows) * call.n_matrices;
    token_tiles = std::max(token_tiles, ceil_div(usual_tokens(call), int64_t{Shape::kTokens}));
  }
  launch(ctx, kernel, dim3(static_cast<unsigned>(n_blocks), static_cast<unsigned>(std::min(token_tiles, kMaxGridY))),
         dim3(static_cast<unsigned>(threads)), shared_bytes, parameters);
}

// Whether blocks of so many rows are enough for the machine: two for each processor.
inline bool fills_machine(const Context& ctx, std::span<const PanelCall> calls, int64_t rows) {
  int64_t n_blocks = 0;
  for (const PanelCall& call : calls) {
    n_blocks += ceil_div(int64_t{call.rows}, rows) * call.n_matrices * ceil_div(usual_tokens(call), int64_t{64});
  }
  return n_blocks >= 2 * ctx.device->n_processors;
}

// Whether the tokens are worth going through shared memory, to where their rows are copied by 16 bytes.
inline bool takes_staged(const Context& ctx, std::span<const PanelCall> calls) {
  const auto takes = [](const PanelCall& call) {
    return usual_tokens(call) > 32 && (reinterpret_cast<uintptr_t>(call.x) | call.x_stride | call.x_step) % 16 == 0;
  };
  return std::all_of(calls.begin(), calls.end(), takes) && fills_machine(ctx, calls, Staged64::kRows);
}

// Calls run(Shape()) of the right one.
template <class Run>
void choose_shape(const Context& ctx, std::span<const PanelCall> calls, const Run& run) {
  int64_t most = 0;
  for (const PanelCall& call : calls) most = std::max(most, usual_tokens(call));
  const bool wide = fills_machine(ctx, calls, most <= 16 ? 32 : 64);
  if (most <= 8) return wide ? run(Wide8()) : run(Narrow8());
  if (most <= 16) return wide ? run(Wide16()) : run(Narrow16());
  return wide ? run(Wide64()) : run(Narrow64());
}

template <class Shape>
using Sums = float[Shape::kMT][Shape::kNT][4];

// Adds the sums of the warps that share rows, in their order, and writes those of the tokens that there are.
template <class Shape>
__device__ __forceinline__ void write_tile(const Work& work, Sums<Shape>& sums, int token) {
  constexpr int kMT = Shape::kMT, kNT = Shape::kNT, kWM = Shape::kWM, kWK = Shape::kWK;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int wm = warp % kWM, wk = warp / kWM;
  if (kWK > 1) {
    float* shared = shared_memory<float>();
    __syncthreads();  // the tile before is read
    if (wk > 0) {
      float* mine = shared + ((wk - 1) * kWM + wm) * (kMT * kNT * 4 * kWarp) + lane;
#pragma unroll
      for (int i = 0; i < kMT * kNT * 4; ++i) mine[i * kWarp] = sums[i / (kNT * 4)][i / 4 % kNT][i % 4];
    }
    __syncthreads();
    if (wk > 0) return;
    for (int part = 0; part < kWK - 1; ++part) {
      const float* others = shared + (part * kWM + wm) * (kMT * kNT * 4 * kWarp) + lane;
#pragma unroll
      for (int i = 0; i < kMT * kNT * 4; ++i) sums[i / (kNT * 4)][i / 4 % kNT][i % 4] += others[i * kWarp];
    }
  }
  const PanelCall& call = *work.call;
  const int64_t step = call.offsets == nullptr ? work.matrix * call.y_step : 0;
  const int g = lane / 4, c = lane % 4;
#pragma unroll
  for (int m = 0; m < kMT; ++m) {
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = work.row + (wm * kMT + m) * 16 + g + i / 2 * 8, t = token + n * 8 + 2 * c + i % 2;
        if (row < call.rows && t < work.n_tokens) {
          call.y[(work.first_token + t) * call.y_stride + step + row] = sums[m][n][i];
        }
      }
    }
  }
}

// The panels of a warp's rows, [kMT][2]: of the last rows there may be none, then it is the last panel again, whose
// results are not written.
template <class Shape>
__device__ __forceinline__ void find_panels(const uint8_t* (&panels)[Shape::kMT][2], const Work& work) {
  const PanelCall& call = *work.call;
  const int wm = static_cast<int>(threadIdx.x) / kWarp % Shape::kWM, last = (call.rows + 7) / 8 - 1;
#pragma unroll
  for (int m = 0; m < Shape::kMT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int panel = work.row / 8 + (wm * Shape::kMT + m) * 2 + half;
      panels[m][half] = call.w + work.matrix * call.matrix_bytes + min(panel, last) * call.panel_bytes;
    }
  }
}

// Where token t's row of x is; of tokens that are not there, the first one's.
__device__ __forceinline__ const uint8_t* row_of(const Work& work, int t) {
  const PanelCall& call = *work.call;
  const int64_t step = call.offsets == nullptr ? work.matrix * call.x_step : 0;
  const int row = work.first_token + (t < work.n_tokens ? t : 0);
  return call.x + (call.token_of != nullptr ? call.token_of[row] : row) * call.x_stride + step;
}

// Part s, of kBytes, of the rows of the block's tokens on its way to shared memory, where they begin kPitch bytes
// apart; behind a row's end zeros. A group of copies, be it an empty one.
template <class Shape, int kBytes, int kPitch>
__device__ __forceinline__ void stage_rows(uint8_t* shared, const Work& work, int token, int s, int row_bytes) {
  constexpr int kPieces = kBytes / 16;
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kTokens * kPieces && s * kBytes < row_bytes;
       i += Shape::kThreads) {
    const int t = i / kPieces, at = s * kBytes + i % kPieces * 16;
    copy_async(shared + t * kPitch + i % kPieces * 16, row_of(work, token + t) + at, at < row_bytes);
  }
  commit_copies();
}

}  // namespace fathom::cuda
