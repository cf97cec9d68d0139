// Expanded attention on tensor cores, forwards and backwards: queries, keys, values, d_o and what is made of scores are
// rounded to bf16 where they are factors; scores, softmax and sums are f32. As FlashAttention-2 (Dao 2023) has it:
// scores stay in registers, and become a factor there. Backwards there are two sweeps, as in attention_backward.cu.
#include <math.h>

#include "base/arithmetic.h"
#include "ops/cuda/attention_backward.h"
#include "ops/cuda/attention_expanded.h"

namespace fathom::cuda {
namespace {

constexpr int kTile = kBackwardTile;  // rows of a block
constexpr int kWarps = kTile / 16, kThreads = kWarps * kWarp;
constexpr int kMaxKey = 384, kMaxValue = 256;  // columns, a key's with its rotary part

// Columns up to whole products, the rest of them zeros; and halves from row to row in shared memory, where eight rows
// lie in different banks.
__host__ __device__ __forceinline__ int padded(int n) { return (n + 15) / 16 * 16; }
__host__ __device__ __forceinline__ int pitch(int n) { return padded(n) + 8; }

// Columns of a matrix, some of them perhaps in another one.
struct Columns {
  const float* first;
  int64_t first_stride;
  int n_first;
  const float* second;
  int64_t second_stride;
  int n_second;
  __device__ float at(int64_t token, int d) const {
    if (d < n_first) return first[token * first_stride + d];
    return d - n_first < n_second ? second[token * second_stride + d - n_first] : 0;
  }
};
__device__ __forceinline__ Columns columns(const float* first, int64_t stride, int n) {
  return {first, stride, n, first, 0, 0};
}

// Tokens from..end to kRows rows of shared memory, zeros behind them.
template <int kRows>
__device__ __forceinline__ void load_rows(uint16_t* shared, const Columns& c, int from, int end) {
  const int n = c.n_first + c.n_second, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < kRows; row += kWarps) {
    const int64_t token = from + row;
    const bool there = token < end;
    for (int d = 2 * lane; d < padded(n); d += 2 * kWarp) {
      *reinterpret_cast<uint32_t*>(shared + row * pitch(n) + d) =
          there ? pack_bf16(c.at(token, d), c.at(token, d + 1)) : 0u;
    }
  }
}

// sums[j] += the warp's 16 rows of `a` . rows 8 j .. of `b`, both with n columns.
template <int kTiles>
__device__ __forceinline__ void add_dots(float (&sums)[kTiles][4], const uint16_t* a, const uint16_t* b, int n) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int d = 0; d < padded(n); d += 16) {
    uint32_t of_a[4];
    load_matrices(of_a, a + lane % 16 * pitch(n) + d + lane / 16 * 8);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      uint32_t of_b[4];
      load_matrices(of_b, b + (j * 8 + lane / 16 * 8 + lane % 8) * pitch(n) + d + lane / 8 % 2 * 8);
      mma_bf16(sums[j], of_a[0], of_a[1], of_a[2], of_a[3], of_b[0], of_b[1]);
      mma_bf16(sums[j + 1], of_a[0], of_a[1], of_a[2], of_a[3], of_b[2], of_b[3]);
    }
  }
}

// What a warp has summed [16, 8 kTiles] as the left operand of a product.
template <int kTiles>
__device__ __forceinline__ void to_operand(uint32_t (&operand)[kTiles / 2][4], const float (&sums)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles / 2; ++i) {
    operand[i][0] = pack_bf16(sums[2 * i][0], sums[2 * i][1]);
    operand[i][1] = pack_bf16(sums[2 * i][2], sums[2 * i][3]);
    operand[i][2] = pack_bf16(sums[2 * i + 1][0], sums[2 * i + 1][1]);
    operand[i][3] = pack_bf16(sums[2 * i + 1][2], sums[2 * i + 1][3]);
  }
}

// out[j] += `a` [16, 16 kSteps] times columns 8 j .. of `b`, which has n.
template <int kOut, int kSteps>
__device__ __forceinline__ void add_product(float (&out)[kOut][4], const uint32_t (&a)[kSteps][4], const uint16_t* b,
                                            int n) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int j = 0; j < kOut; j += 2) {
      if (j * 8 >= padded(n)) continue;
      uint32_t of_b[4];
      load_matrices_transposed(of_b, b + (i * 16 + lane % 16) * pitch(n) + j * 8 + lane / 16 * 8);
      mma_bf16(out[j], a[i][0], a[i][1], a[i][2], a[i][3], of_b[0], of_b[1]);
      mma_bf16(out[j + 1], a[i][0], a[i][1], a[i][2], a[i][3], of_b[2], of_b[3]);
    }
  }
}

// Number q of a lane's four of tile j: which of its two rows, 8 apart, and which column.
__device__ __forceinline__ int half_of(int q) { return q / 2; }
__device__ __forceinline__ int column_of(int j, int q) { return j * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + q % 2; }

// write(row's half, column, number) of all of them below n columns.
template <int kOut, class Write>
__device__ __forceinline__ void for_each_number(const float (&out)[kOut][4], int n, const Write& write) {
#pragma unroll
  for (int j = 0; j < kOut; ++j) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      if (column_of(j, q) < n) write(half_of(q), column_of(j, q), out[j][q]);
    }
  }
}

__device__ __forceinline__ int begin_of(const Expanded& a, int token) {
  int s = 0, behind = a.n_sequences;  // the last sequence that does not begin behind the token
  while (behind - s > 1) {
    const int middle = (s + behind) / 2;
    (a.seq_offsets[middle] <= token ? s : behind) = middle;
  }
  return a.seq_offsets[s];
}

// ---- Forwards

// A block 64 queries and a head. kValues: of 8 columns of a value, at most; kMet: keys at a time.
template <int kValues, int kMet>
__global__ void __launch_bounds__(kThreads) expanded_bf16_kernel(Expanded a) {
  wait_for_inputs();
  start_next();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile, head = static_cast<int>(blockIdx.y);
  const int end = min(first + kTile, a.tokens), dim = a.nope + a.rope;
  auto* const queries = shared_memory<uint16_t>();
  uint16_t* const keys = queries + kTile * pitch(dim);
  uint16_t* const values = keys + kMet * pitch(dim);
  const float* const kv = a.kv + static_cast<int64_t>(head) * (a.nope + a.v);
  int token[2], begin[2];
  for (int i = 0; i < 2; ++i) {
    token[i] = first + warp * 16 + lane / 4 + 8 * i;
    begin[i] = token[i] < end ? begin_of(a, token[i]) : a.tokens;  // those behind see nothing
  }
  load_rows<kTile>(queries, columns(a.q + static_cast<int64_t>(head) * dim, a.q_stride, dim), first, end);
  float out[kValues][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int met = begin_of(a, first); met < end; met += kMet) {
    __syncthreads();  // what they held is read
    load_rows<kMet>(keys, {kv, a.kv_stride, a.nope, a.k_rope, a.k_rope_stride, a.rope}, met, end);
    load_rows<kMet>(values, columns(kv + a.nope, a.kv_stride, a.v), met, end);
    __syncthreads();
    float scores[kMet / 8][4] = {};
    add_dots(scores, queries + warp * 16 * pitch(dim), keys, dim);
    float most[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < kMet / 8; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int i = half_of(q), key = met + column_of(j, q);
        scores[j][q] = key >= begin[i] && key <= token[i] ? scores[j][q] * a.scale : -INFINITY;
        most[i] = fmaxf(most[i], scores[j][q]);
      }
    }
    float base[2], correction[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // a row's columns are those of four lanes
      most[i] = fmaxf(most[i], __shfl_xor_sync(kAllLanes, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(kAllLanes, most[i], 2));
      base[i] = most[i] == -INFINITY ? 0 : most[i];
      correction[i] = expf(largest[i] - base[i]);
      largest[i] = most[i];
      sum[i] *= correction[i];
    }
#pragma unroll
    for (int j = 0; j < kMet / 8; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        scores[j][q] = expf(scores[j][q] - base[half_of(q)]);
        sum[half_of(q)] += scores[j][q];
      }
    }
#pragma unroll
    for (int j = 0; j < kValues; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) out[j][q] *= correction[half_of(q)];
    }
    uint32_t p[kMet / 16][4];
    to_operand(p, scores);
    add_product(out, p, values, a.v);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(kAllLanes, sum[i], 1);
    sum[i] += __shfl_xor_sync(kAllLanes, sum[i], 2);
  }
  for_each_number(out, a.v, [&](int i, int d, float x) {
    if (token[i] < end) a.o[token[i] * a.o_stride + static_cast<int64_t>(head) * a.v + d] = x / sum[i];
  });
  for (int i = 0; i < 2; ++i) {
    if (a.lse != nullptr && lane % 4 == 0 && token[i] < end) {
      a.lse[token[i] * a.lse_stride + head] = largest[i] + logf(sum[i]);
    }
  }
}

// ---- Backwards

// What both sweeps read of a head.
struct OfHead {
  Columns q, k, v, d_o;
};
__device__ __forceinline__ OfHead of_head(const Backward& a, int head) {
  const int64_t h = head;
  const float* const kv = a.kv + h * (a.nope + a.v);
  return {columns(a.q + h * (a.nope + a.rope), a.q_stride, a.nope + a.rope),
          {kv, a.kv_stride, a.nope, a.k_rope, a.k_rope_stride, a.rope},
          columns(kv + a.nope, a.kv_stride, a.v),
          columns(a.d_o + h * a.v, a.d_o_stride, a.v)};
}

// A block 64 queries and a head: dq. kKeyTiles: of 8 columns of a key, at most.
template <int kKeyTiles, int kMet>
__global__ void __launch_bounds__(kThreads) dq_bf16_kernel(Backward a) {
  wait_for_inputs();
  start_next();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int block = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int first = block / a.heads_at_once * kTile, head = a.first_head + block % a.heads_at_once;
  const int end = min(first + kTile, a.tokens), dim = a.nope + a.rope;
  auto* const queries = shared_memory<uint16_t>();
  uint16_t* const d_os = queries + kTile * pitch(dim);
  uint16_t* const keys = d_os + kTile * pitch(a.v);
  uint16_t* const values = keys + kMet * pitch(dim);
  const OfHead in = of_head(a, head);
  int token[2], begin[2];
  float lse[2], delta[2];
  for (int i = 0; i < 2; ++i) {
    token[i] = first + warp * 16 + lane / 4 + 8 * i;
    const bool there = token[i] < end;
    begin[i] = there ? a.begins[token[i]] : a.tokens;
    lse[i] = there ? a.lse[token[i] * a.lse_stride + head] : 0;
    delta[i] = there ? a.delta[int64_t{token[i]} * a.n_heads + head] : 0;
  }
  load_rows<kTile>(queries, in.q, first, end);
  load_rows<kTile>(d_os, in.d_o, first, end);
  float dq[kKeyTiles][4] = {};
  for (int met = a.begins[first]; met < end; met += kMet) {
    __syncthreads();  // what they held is read
    load_rows<kMet>(keys, in.k, met, end);
    load_rows<kMet>(values, in.v, met, end);
    __syncthreads();
    float scores[kMet / 8][4] = {}, dp[kMet / 8][4] = {};
    add_dots(scores, queries + warp * 16 * pitch(dim), keys, dim);
    add_dots(dp, d_os + warp * 16 * pitch(a.v), values, a.v);
#pragma unroll
    for (int j = 0; j < kMet / 8; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int i = half_of(q), key = met + column_of(j, q);
        const bool seen = key >= begin[i] && key <= token[i];
        scores[j][q] = seen ? expf(scores[j][q] * a.scale - lse[i]) * (dp[j][q] - delta[i]) * a.scale : 0;
      }
    }
    uint32_t ds[kMet / 16][4];
    to_operand(ds, scores);
    add_product(dq, ds, keys, dim);
  }
  for_each_number(dq, dim, [&](int i, int d, float x) {
    if (token[i] < end) a.dq[token[i] * a.dq_stride + static_cast<int64_t>(head) * dim + d] = x;
  });
}

// A block 64 keys and a head: dk and dv.
template <int kKeyTiles, int kValues, int kMet>
__global__ void __launch_bounds__(kThreads) dkv_bf16_kernel(Backward a) {
  __shared__ float lse[kMet], delta[kMet];  // of the queries
  wait_for_inputs();
  start_next();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int first = static_cast<int>(blockIdx.x) / a.heads_at_once * kTile,
            head = a.first_head + static_cast<int>(blockIdx.x) % a.heads_at_once;
  const int rows_end = min(first + kTile, a.tokens), end = a.ends[rows_end - 1], dim = a.nope + a.rope;
  auto* const keys = shared_memory<uint16_t>();
  uint16_t* const values = keys + kTile * pitch(dim);
  uint16_t* const queries = values + kTile * pitch(a.v);
  uint16_t* const d_os = queries + kMet * pitch(dim);
  const OfHead in = of_head(a, head);
  int token[2], last[2];
  for (int i = 0; i < 2; ++i) {
    token[i] = first + warp * 16 + lane / 4 + 8 * i;
    last[i] = token[i] < rows_end ? a.ends[token[i]] : 0;  // those behind are seen by none
  }
  load_rows<kTile>(keys, in.k, first, rows_end);
  load_rows<kTile>(values, in.v, first, rows_end);
  float dk[kKeyTiles][4] = {}, dv[kValues][4] = {};
  for (int met = first; met < end; met += kMet) {
    __syncthreads();  // what they held is read
    load_rows<kMet>(queries, in.q, met, end);
    load_rows<kMet>(d_os, in.d_o, met, end);
    if (thread < kMet) {
      const bool there = met + thread < end;
      lse[thread] = there ? a.lse[(met + thread) * a.lse_stride + head] : 0;
      delta[thread] = there ? a.delta[int64_t{met + thread} * a.n_heads + head] : 0;
    }
    __syncthreads();
    float scores[kMet / 8][4] = {};
    uint32_t operand[kMet / 16][4];
    add_dots(scores, keys + warp * 16 * pitch(dim), queries, dim);
#pragma unroll
    for (int j = 0; j < kMet / 8; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int i = half_of(q), query = met + column_of(j, q);
        const bool seen = query >= token[i] && query < last[i];
        scores[j][q] = seen ? expf(scores[j][q] * a.scale - lse[column_of(j, q)]) : 0;
      }
    }
    to_operand(operand, scores);
    add_product(dv, operand, d_os, a.v);
    float dp[kMet / 8][4] = {};
    add_dots(dp, values + warp * 16 * pitch(a.v), d_os, a.v);
#pragma unroll
    for (int j = 0; j < kMet / 8; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) dp[j][q] = scores[j][q] * (dp[j][q] - delta[column_of(j, q)]) * a.scale;
    }
    to_operand(operand, dp);
    add_product(dk, operand, queries, dim);
  }
  float* const dkv = a.dkv + static_cast<int64_t>(head) * (a.nope + a.v);
  float* const d_rope = a.dk_rope_of_head + static_cast<int64_t>(head - a.first_head) * a.tokens * a.rope;
  for_each_number(dk, dim, [&](int i, int d, float x) {
    if (token[i] >= rows_end) return;
    if (d < a.nope) {
      dkv[token[i] * a.dkv_stride + d] = x;
    } else {
      d_rope[int64_t{token[i]} * a.rope + d - a.nope] = x;
    }
  });
  for_each_number(dv, a.v, [&](int i, int d, float x) {
    if (token[i] < rows_end) dkv[token[i] * a.dkv_stride + a.nope + d] = x;
  });
}

// Shared memory for so many rows of keys or queries, and of values or d_o.
size_t bytes_of(int key_rows, int value_rows, int dim, int v) {
  return sizeof(uint16_t) * static_cast<size_t>(key_rows * pitch(dim) + value_rows * pitch(v));
}

void check_sizes(int dim, int v) {
  FATHOM_CHECK(dim <= kMaxKey && v <= kMaxValue, "heads of {} and {} numbers", dim, v);
}

}  // namespace

void attention_expanded_bf16(Context& ctx, const Expanded& call, int64_t n_heads) {
  const int dim = call.nope + call.rope;
  check_sizes(dim, call.v);
  const dim3 grid(static_cast<unsigned>(ceil_div(int64_t{call.tokens}, int64_t{kTile})),
                  static_cast<unsigned>(n_heads));
  const auto run = [&](auto* kernel, int met) {
    launch(ctx, kernel, grid, dim3(kThreads), bytes_of(kTile + met, met, dim, call.v), call);
  };
  if (dim <= 192 && call.v <= 128) return run(expanded_bf16_kernel<16, 64>, 64);
  return run(expanded_bf16_kernel<kMaxValue / 8, 32>, 32);
}

void attention_backward_bf16(Context& ctx, const Backward& call) {
  const int dim = call.nope + call.rope;
  check_sizes(dim, call.v);
  const dim3 grid(static_cast<unsigned>(ceil_div(int64_t{call.tokens}, int64_t{kTile}) * call.heads_at_once));
  const auto run = [&](auto* kernel, int met) {
    launch(ctx, kernel, grid, dim3(kThreads), bytes_of(kTile + met, kTile + met, dim, call.v), call);
  };
  if (dim <= 192 && call.v <= 128) {
    run(dq_bf16_kernel<24, 64>, 64);
    run(dkv_bf16_kernel<24, 16, 32>, 32);
  } else {
    run(dq_bf16_kernel<kMaxKey / 8, 32>, 32);
    run(dkv_bf16_kernel<kMaxKey / 8, kMaxValue / 8, 32>, 32);
  }
}

}  // namespace fathom::cuda
