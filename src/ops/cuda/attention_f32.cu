// Absorbed attention in f32 throughout, over caches of every format and shape.
#include "ops/cuda/attention_tiles.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 16;    // queries of a tile, two of a warp
constexpr int kKeys = 32;    // rows of the cache at a time, one of a lane
constexpr int kColumns = 2;  // of the output, of a thread
constexpr int kMaxRank = kThreads * kColumns, kMaxDim = kMaxRank + 256;

// Floats from row to row in shared memory: an odd multiple of 4, so that 8 rows begin in different banks.
__host__ __device__ int pitch_of(const RowShape& row) { return ((row.dim() + 3) / 4 | 1) * 4; }

__device__ __forceinline__ float query_number(const AbsorbedAttention& a, const Query& query, int column) {
  if (query.token < 0 || column >= a.row.dim()) return 0;
  const int64_t token = query.token;
  return column < a.row.rank ? a.q_latent[(token * a.n_heads + query.head) * a.row.rank + column]
                             : a.q_rope[token * a.q_rope_stride + query.head * a.q_rope_step + (column - a.row.rank)];
}

__device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
  sum = fmaf(a.x, b.x, sum);
  sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum);
  return fmaf(a.w, b.w, sum);
}

__global__ void __launch_bounds__(kThreads) attend(const AbsorbedAttention a) {
  const int pitch = pitch_of(a.row), dim = a.row.dim();
  auto* queries = shared_memory<float>();  // [rows, pitch]
  float* keys = queries + kRows * pitch;   // [keys, pitch]
  float* weights = keys + kKeys * pitch;   // [keys, rows]
  float* factors = weights + kKeys * kRows;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;

  wait_for_inputs();
  start_next();
  const Tile tile = tile_of_block(a);
  for (int r = warp; r < kRows; r += kWarps) {
    const Query query = query_of(a, tile, r);
    for (int i = lane; i < pitch; i += kWarp) queries[r * pitch + i] = query_number(a, query, i);
  }
  Query mine[2];
  float maximum[2], sum[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    mine[r] = query_of(a, tile, 2 * warp + r);
    maximum[r] = -INFINITY;
    sum[r] = 0;
  }
  float o[kColumns][kRows] = {};

  for (int token = tile.token; token < tile.end;) {
    const Run run = run_from(a, token, tile.end, kKeys);
    token = run.end;
    const int n_visible[2] = {run.n_visible(a, mine[0]), run.n_visible(a, mine[1])};
    for (int t = run.begin_tile; t < run.end_tile; ++t) {
      __syncthreads();  // all are done with the tile before
      for (int key = warp; key < kKeys; key += kWarps) {
        const bool valid = t * kKeys + key < run.n_keys;
        const uint8_t* row = run.rows + static_cast<int64_t>(t * kKeys + key) * a.row.bytes;
        for (int i = lane; i < pitch; i += kWarp) {
          keys[key * pitch + i] = valid && i < dim ? load_number(a.row, row, i) : 0.0f;
        }
      }
      __syncthreads();

      float s[2] = {0, 0};
      const auto* key = reinterpret_cast<const float4*>(keys + lane * pitch);
      const auto* query = reinterpret_cast<const float4*>(queries + 2 * warp * pitch);
#pragma unroll 4
      for (int i = 0; i < (dim + 3) / 4; ++i) {
        const float4 k = key[i];
        s[0] = dot(query[i], k, s[0]);
        s[1] = dot(query[i + pitch / 4], k, s[1]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float score = t * kKeys + lane < n_visible[r] ? s[r] * a.scale_log2 : -INFINITY;
        const float top = fmaxf(maximum[r], warp_max(score));
        const float factor = exp2f(maximum[r] - finite(top)), weight = exp2f(score - finite(top));
        maximum[r] = top;
        sum[r] = sum[r] * factor + warp_sum(weight);
        weights[lane * kRows + 2 * warp + r] = weight;
        if (lane == 0) factors[2 * warp + r] = factor;
      }
      __syncthreads();

#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float factor = factors[r];
#pragma unroll
        for (int n = 0; n < kColumns; ++n) o[n][r] *= factor;
      }
      for (int j = 0; j < kKeys; ++j) {
        float v[kColumns], w[kRows];
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          const int column = thread + n * kThreads;
          v[n] = column < a.row.rank ? keys[j * pitch + column] : 0.0f;
        }
#pragma unroll
        for (int r = 0; r < kRows; r += 4) {
          const float4 x = *reinterpret_cast<const float4*>(weights + j * kRows + r);
          w[r] = x.x;
          w[r + 1] = x.y;
          w[r + 2] = x.z;
          w[r + 3] = x.w;
        }
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) o[n][r] = fmaf(w[r], v[n], o[n][r]);
        }
      }
    }
  }

  __syncthreads();
  float* maxima = weights;
  if (lane == 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors[2 * warp + r] = a.n_splits == 1 && sum[r] > 0 ? 1 / sum[r] : 1;
      maxima[2 * warp + r] = maximum[r];
      if (a.n_splits > 1 && mine[r].token >= 0) {
        a.maxima[slot_of(a, mine[r])] = maximum[r];
        a.sums[slot_of(a, mine[r])] = sum[r];
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const Query query = query_of(a, tile, r);
    if (query.token < 0 || (a.n_splits > 1 && maxima[r] == -INFINITY)) continue;
    float* out = a.out + slot_of(a, query) * a.row.rank;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int column = thread + n * kThreads;
      if (column < a.row.rank) out[column] = o[n][r] * factors[r];
    }
  }
}

}  // namespace

void plan_f32_attention(AbsorbedAttention& a) {
  if (a.row.rank > kMaxRank || a.row.dim() > kMaxDim) {
    throw Error(
        "on a GPU kv_lora_rank can be up to {}, and qk_rope_head_dim up to {}; this model has {} and {}, use the CPU",
        kMaxRank, kMaxDim - kMaxRank, a.row.rank, a.row.rope);
  }
  divide_into_tiles(a, kRows);
}

void attend_f32(Context& ctx, const AbsorbedAttention& a) {
  const size_t floats = static_cast<size_t>((kRows + kKeys) * pitch_of(a.row) + kKeys * kRows + kRows);
  launch(ctx, attend, grid_of(a), dim3(kThreads), floats * sizeof(float), a);
}

}  // namespace fathom::cuda
