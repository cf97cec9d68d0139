#include <math.h>

#include "base/arithmetic.h"
#include "ops/cuda/attention_expanded.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kQueries = 8;    // of a block, a warp each
constexpr int kKeys = 32;      // in shared memory, a lane each
constexpr int kMaxValues = 8;  // of a head's v, each lane: v_head_dim <= 256

// blockIdx: some queries, a head. Online softmax over tiles of keys.
__global__ void __launch_bounds__(kQueries* kWarp) expanded_kernel(Expanded a) {
  wait_for_inputs();
  start_next();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * kQueries;
  const int token = first + warp, last = min(first + kQueries, a.tokens) - 1;
  const int dim = a.nope + a.rope, key_stride = dim | 1;  // so that the lanes' rows lie in different banks
  auto* queries = shared_memory<float>();                 // [kQueries, dim]
  float* keys = queries + kQueries * dim;                 // [kKeys, key_stride]
  float* values = keys + kKeys * key_stride;              // [kKeys, v]
  // The sequence of the first query, and this warp's.
  int first_begin = 0, begin = 0;
  for (int s = 0; s < a.n_sequences; ++s) {
    const int offset = a.seq_offsets[s];
    if (offset <= first) first_begin = offset;
    if (offset <= token) begin = offset;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * dim; i += kQueries * kWarp) {
    const int t = first + i / dim;
    queries[i] = t < a.tokens ? a.q[t * a.q_stride + head * dim + i % dim] * a.scale : 0;
  }
  float largest = -INFINITY, sum = 0, out[kMaxValues] = {};
  for (int key = first_begin; key <= last; key += kKeys) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * dim; i += kQueries * kWarp) {
      const int j = i / dim, d = i % dim, t = key + j;
      float x = 0;
      if (t <= last) {
        x = d < a.nope ? a.kv[t * a.kv_stride + head * (a.nope + a.v) + d] : a.k_rope[t * a.k_rope_stride + d - a.nope];
      }
      keys[j * key_stride + d] = x;
    }
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * a.v; i += kQueries * kWarp) {
      const int t = key + i / a.v;
      values[i] = t <= last ? a.kv[t * a.kv_stride + head * (a.nope + a.v) + a.nope + i % a.v] : 0;
    }
    __syncthreads();
    const int mine = key + lane;
    float score = 0;
    for (int d = 0; d < dim; ++d) score = fmaf(queries[warp * dim + d], keys[lane * key_stride + d], score);
    if (mine < begin || mine > token) score = -INFINITY;
    const float new_largest = fmaxf(largest, warp_max(score));
    if (new_largest == -INFINITY) continue;  // of another sequence, all of them
    const float correction = expf(largest - new_largest), p = expf(score - new_largest);
    largest = new_largest;
    sum = sum * correction + warp_sum(p);
#pragma unroll
    for (int i = 0; i < kMaxValues; ++i) out[i] *= correction;
    for (int j = 0; j < kKeys; ++j) {
      const float weight = __shfl_sync(kAllLanes, p, j);
#pragma unroll
      for (int i = 0; i < kMaxValues; ++i) {
        const int d = lane + i * kWarp;
        if (d < a.v) out[i] = fmaf(weight, values[j * a.v + d], out[i]);
      }
    }
  }
  if (token >= a.tokens) return;
#pragma unroll
  for (int i = 0; i < kMaxValues; ++i) {
    const int d = lane + i * kWarp;
    if (d < a.v) a.o[token * a.o_stride + head * a.v + d] = out[i] / sum;
  }
  if (a.lse != nullptr && lane == 0) a.lse[token * a.lse_stride + head] = largest + logf(sum);
}

}  // namespace

void mla_attention(Context& ctx, Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& dims,
                   float scale, Tensor lse, Precision precision) {
  if (q.rows() == 0) return;
  const Expanded call{.o = o.f32(),
                      .q = q.f32(),
                      .kv = kv.f32(),
                      .k_rope = k_rope.f32(),
                      .lse = lse ? lse.f32() : nullptr,
                      .seq_offsets = seq_offsets.i32(),
                      .o_stride = o.row_stride,
                      .q_stride = q.row_stride,
                      .kv_stride = kv.row_stride,
                      .k_rope_stride = k_rope.row_stride,
                      .lse_stride = lse.row_stride,
                      .tokens = static_cast<int>(q.rows()),
                      .n_sequences = static_cast<int>(seq_offsets.size() - 1),
                      .nope = static_cast<int>(dims.qk_nope_head_dim),
                      .rope = static_cast<int>(dims.qk_rope_head_dim),
                      .v = static_cast<int>(dims.v_head_dim),
                      .scale = scale};
  if (precision == Precision::bf16) return attention_expanded_bf16(ctx, call, dims.n_heads);
  FATHOM_CHECK(dims.v_head_dim <= kMaxValues * kWarp, "values of {} numbers", dims.v_head_dim);
  const int64_t dim = dims.qk_nope_head_dim + dims.qk_rope_head_dim;
  const int64_t floats = kQueries * dim + kKeys * (dim | 1) + kKeys * dims.v_head_dim;
  launch(ctx, expanded_kernel,
         dim3(static_cast<unsigned>(ceil_div(q.rows(), int64_t{kQueries})), static_cast<unsigned>(dims.n_heads)),
         dim3(kQueries * kWarp), static_cast<size_t>(floats) * sizeof(float), call);
}

}  // namespace fathom::cuda
