// The backward pass of expanded attention, here in f32 throughout. Two sweeps over the tiles of scores, which both make
// again from the saved log-sum-exp: one gives every block some queries, whose dq it sums over their keys, one some
// keys, whose dk and dv it sums over the queries that see them. So nothing is added by two blocks at once, and every
// sum runs over tokens in their order, wherever tiles begin.
#include <math.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "ops/cuda/attention_backward.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = kBackwardTile;  // queries, keys, and the columns that are multiplied at a time: a slice
constexpr int kSide = kTile / 4;      // threads along a tile's side, each with 4 of its rows and 4 of its columns
constexpr int kPitch = kTile + 4;     // floats from row to row in shared memory: a warp's rows lie in different banks
constexpr int kSliceFloats = kTile * kPitch;
constexpr int kStageFloats = 2 * kSliceFloats;  // a slice of the block's rows, one of those they meet
constexpr int64_t kBlocksAtOnce = 1024;         // of a launch, and so the heads of which there are parts of dk_rope
static_assert(kSide * kSide == kThreads && kTile % 4 == 0 && kTile <= kThreads);

// ---- What both sweeps read

// A warp a token and head: delta; and of the first head, the token's sequence.
__global__ void __launch_bounds__(kThreads) prepare_kernel(Backward a) {
  wait_for_inputs();
  start_next();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (i >= static_cast<int64_t>(a.tokens) * a.n_heads) return;
  const int64_t token = i / a.n_heads;
  const int head = static_cast<int>(i % a.n_heads);
  const float* d_o = a.d_o + token * a.d_o_stride + static_cast<int64_t>(head) * a.v;
  const float* o = a.o + token * a.o_stride + static_cast<int64_t>(head) * a.v;
  float sum = 0;
  for (int k = lane; k < a.v; k += kWarp) sum = fmaf(d_o[k], o[k], sum);
  sum = warp_sum(sum);
  if (lane != 0) return;
  a.delta[i] = sum;
  if (head != 0) return;
  int s = 0, behind = a.n_sequences;  // the last sequence that does not begin behind the token
  while (behind - s > 1) {
    const int middle = (s + behind) / 2;
    (a.seq_offsets[middle] <= token ? s : behind) = middle;
  }
  a.begins[token] = a.seq_offsets[s];
  a.ends[token] = a.seq_offsets[s + 1];
}

// ---- Slices

// Up to kTile columns of a matrix.
template <class T>
struct Slice {
  T* rows;
  int64_t stride;
  int width;
};
template <class T>
__device__ __forceinline__ Slice<T> slice_of(T* matrix, int64_t stride, int cols, int i) {
  return {matrix + i * kTile, stride, min(kTile, cols - i * kTile)};
}
// Of a matrix [tokens, nope] and one [tokens, rope].
template <class T>
__device__ __forceinline__ Slice<T> slice_of_both(const Backward& a, T* nope, int64_t nope_stride, T* rope,
                                                  int64_t rope_stride, int i) {
  return i < a.nope_slices() ? slice_of(nope, nope_stride, a.nope, i)
                             : slice_of(rope, rope_stride, a.rope, i - a.nope_slices());
}

// q, or dq.
template <class T>
__device__ __forceinline__ Slice<T> query_slice(const Backward& a, T* q, int64_t stride, int head, int i) {
  T* const of_head = q + static_cast<int64_t>(head) * (a.nope + a.rope);
  return slice_of_both(a, of_head, stride, of_head + a.nope, stride, i);
}
// The keys in kv and k_rope, or their gradients.
template <class T>
__device__ __forceinline__ Slice<T> key_slice(const Backward& a, T* kv, int64_t stride, T* k_rope,
                                              int64_t k_rope_stride, int head, int i) {
  return slice_of_both(a, kv + static_cast<int64_t>(head) * (a.nope + a.v), stride, k_rope, k_rope_stride, i);
}
template <class T>
__device__ __forceinline__ Slice<T> value_slice(const Backward& a, T* kv, int64_t stride, int head, int i) {
  return slice_of(kv + static_cast<int64_t>(head) * (a.nope + a.v) + a.nope, stride, a.v, i);
}
__device__ __forceinline__ Slice<const float> d_o_slice(const Backward& a, int head, int i) {
  return slice_of(a.d_o + static_cast<int64_t>(head) * a.v, a.d_o_stride, a.v, i);
}

// Rows [first, end) to shared memory, zeros behind them and up to a whole float4.
__device__ __forceinline__ void copy_slice(float* shared, const Slice<const float>& slice, int first, int end,
                                           bool in_fours) {
  const int thread = static_cast<int>(threadIdx.x);
  if (in_fours) {
    const int column = thread % kSide * 4;
    if (column >= slice.width) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = thread / kSide + i * kSide;
      const int64_t token = min(first + row, end - 1);
      copy_async(shared + row * kPitch + column, slice.rows + token * slice.stride + column, first + row < end);
    }
  } else {
    const int column = thread % kTile;
    if (column >= (slice.width + 3) / 4 * 4) return;
#pragma unroll 4
    for (int row = thread / kTile; row < kTile; row += kThreads / kTile) {
      const bool there = first + row < end && column < slice.width;
      const int64_t token = first + row;
      shared[row * kPitch + column] = there ? slice.rows[token * slice.stride + column] : 0.0f;
    }
  }
}

__device__ __forceinline__ void write_row(const Slice<float>& slice, int64_t token, int column, const float (&sums)[4],
                                          bool in_fours) {
  float* to = slice.rows + token * slice.stride + column;
  if (in_fours) {
    if (column < slice.width) *reinterpret_cast<float4*>(to) = make_float4(sums[0], sums[1], sums[2], sums[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i < slice.width) to[i] = sums[i];
  }
}

// ---- Products of a thread: rows y, y + kSide, ..

__device__ __forceinline__ float4 load_four(const float* p) { return *reinterpret_cast<const float4*>(p); }

// sums[i][j] += row y + i kSide of `a` . row x + j kSide of `b`, which begin at rows y and x
__device__ __forceinline__ void add_dots(float (&sums)[4][4], const float* a, const float* b, int width) {
#pragma unroll 1
  for (int k = 0; k < width; k += 4) {
    float4 of_a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) of_a[i] = load_four(a + i * kSide * kPitch + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 of_b = load_four(b + j * kSide * kPitch + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i][j] = fmaf(of_a[i].x, of_b.x, sums[i][j]);
        sums[i][j] = fmaf(of_a[i].y, of_b.y, sums[i][j]);
        sums[i][j] = fmaf(of_a[i].z, of_b.z, sums[i][j]);
        sums[i][j] = fmaf(of_a[i].w, of_b.w, sums[i][j]);
      }
    }
  }
}

__device__ __forceinline__ void add_scaled(float (&sums)[4], float factor, const float4& row) {
  sums[0] = fmaf(factor, row.x, sums[0]);
  sums[1] = fmaf(factor, row.y, sums[1]);
  sums[2] = fmaf(factor, row.z, sums[2]);
  sums[3] = fmaf(factor, row.w, sums[3]);
}

// sums[i] += row y + i kSide of `a` [kTile, kTile] times 4 columns of `b`, of which n rows count; they begin at row y
// and at the first of the columns.
__device__ __forceinline__ void add_product(float (&sums)[4][4], const float* a, const float* b, int n) {
#pragma unroll 1
  for (int k = 0; k < n; k += 4) {
    float4 of_a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) of_a[i] = load_four(a + i * kSide * kPitch + k);
    const float4 b0 = load_four(b + k * kPitch), b1 = load_four(b + (k + 1) * kPitch);
#pragma unroll
    for (int i = 0; i < 4; ++i) add_scaled(sums[i], of_a[i].x, b0);
#pragma unroll
    for (int i = 0; i < 4; ++i) add_scaled(sums[i], of_a[i].y, b1);
    const float4 b2 = load_four(b + (k + 2) * kPitch), b3 = load_four(b + (k + 3) * kPitch);
#pragma unroll
    for (int i = 0; i < 4; ++i) add_scaled(sums[i], of_a[i].z, b2);
#pragma unroll
    for (int i = 0; i < 4; ++i) add_scaled(sums[i], of_a[i].w, b3);
  }
}

// ---- The sweeps

// A block a tile of rows and a head, heads innermost. The rows are queries, which meet the keys they see, or (kOfKeys)
// keys, which meet the queries that see them; of these a tile at a time, in steps: the slices of keys and queries for
// the scores, those of values and d_o for dp, and again those that the sums are made of. A step's slices are copied
// during the one before. kKey, kValue: the most slices of a key and of a value.
template <bool kOfKeys, int kKey, int kValue, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) sweep_kernel(const Backward a) {
  constexpr int kValueSums = kOfKeys ? kValue : 0, kSums = kValueSums + kKey;
  __shared__ float lse[kTile], delta[kTile];  // of the queries
  __shared__ int bounds[kTile];               // of the rows' sequences: a query's begin, a key's end
  wait_for_inputs();
  start_next();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  // A warp has 4 x 8 of the 16 x 16 threads: its reads of shared memory are 64 and 128 bytes.
  const int x = warp % 2 * 8 + lane % 8, y = warp / 2 * 4 + lane / 8;
  // Those that meet the most come first, where there is one sequence.
  const int block = static_cast<int>(kOfKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
  const int first = block / a.heads_at_once * kTile, head = a.first_head + block % a.heads_at_once;
  const int last = min(first + kTile, a.tokens) - 1;
  const int begin = kOfKeys ? first : a.begins[first], end = kOfKeys ? a.ends[last] : last + 1;
  const int key_slices = a.key_slices(), value_slices = a.value_slices();
  const int n_dots = key_slices + value_slices, n_steps = n_dots + key_slices + (kOfKeys ? value_slices : 0);
  auto* const stages = shared_memory<float>();      // 2
  float* const p_tile = stages + 2 * kStageFloats;  // [rows, those they meet]
  float* const ds_tile = p_tile + (kOfKeys ? kSliceFloats : 0);

  const auto read_queries = [&](int from) {  // by the first kTile threads
    const int64_t token = from + thread;
    const bool there = token < a.tokens;
    lse[thread] = there ? a.lse[token * a.lse_stride + head] : 0;
    delta[thread] = there ? a.delta[token * a.n_heads + head] : 0;
  };
  const auto query = [&](int i) { return query_slice(a, a.q, a.q_stride, head, i); };
  const auto key = [&](int i) { return key_slice(a, a.kv, a.kv_stride, a.k_rope, a.k_rope_stride, head, i); };
  const auto value = [&](int i) { return value_slice(a, a.kv, a.kv_stride, head, i); };
  const auto start_step = [&](int step, int met, float* stage) {
    Slice<const float> of_rows{}, of_met{};
    bool both = true;
    if (step < key_slices) {
      of_rows = kOfKeys ? key(step) : query(step);
      of_met = kOfKeys ? query(step) : key(step);
    } else if (step < n_dots) {
      const int i = step - key_slices;
      of_rows = kOfKeys ? value(i) : d_o_slice(a, head, i);
      of_met = kOfKeys ? d_o_slice(a, head, i) : value(i);
    } else {
      const int i = step - n_dots;
      both = false;
      if (kOfKeys) {
        of_met = i < value_slices ? d_o_slice(a, head, i) : query(i - value_slices);
      } else {
        of_met = key(i);
      }
    }
    if (both) copy_slice(stage, of_rows, first, last + 1, a.in_fours);
    copy_slice(stage + kSliceFloats, of_met, met, end, a.in_fours);
    commit_copies();
  };
  // Where a step's slices are. All have done with the step before: its place takes those of the next.
  int turn = 0;
  const auto next_step = [&](int step, int met) {
    wait_copies<0>();
    __syncthreads();
    const float* const stage = stages + turn * kStageFloats;
    turn ^= 1;
    const bool last_step = step + 1 == n_steps;
    const int then = last_step ? 0 : step + 1, then_met = last_step ? met + kTile : met;
    if (then_met < end) start_step(then, then_met, stages + turn * kStageFloats);
    return stage;
  };

  if (thread < kTile) {
    if (!kOfKeys) read_queries(first);
    const int row = first + thread;
    bounds[thread] = kOfKeys ? (row <= last ? a.ends[row] : 0) : (row <= last ? a.begins[row] : a.tokens);
  }
  start_step(0, begin, stages);
  float sums[kSums][4][4] = {};
  for (int met = begin; met < end; met += kTile) {
    float scores[4][4] = {};
    for (int step = 0; step < n_dots; ++step) {
      const float* const stage = next_step(step, met);
      if (kOfKeys && step == 0 && thread < kTile) read_queries(met);  // there behind the next step's barrier
      add_dots(scores, stage + y * kPitch, stage + kSliceFloats + x * kPitch,
               step < key_slices ? query(step).width : d_o_slice(a, head, step - key_slices).width);
      if (step != key_slices - 1) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = y + i * kSide, bound = bounds[row];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = x + j * kSide, token = met + column;
          const bool seen = kOfKeys ? token >= first + row && token < bound : token >= bound && token <= first + row;
          p_tile[row * kPitch + column] = seen ? expf(fmaf(scores[i][j], a.scale, -lse[kOfKeys ? column : row])) : 0.0f;
          scores[i][j] = 0;  // from here on dp
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = y + i * kSide;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = x + j * kSide, place = row * kPitch + column;  // whose p is this thread's own
        ds_tile[place] = p_tile[place] * (scores[i][j] - delta[kOfKeys ? column : row]) * a.scale;
      }
    }
    const int n_met = min(kTile, end - met);
    for (int step = n_dots; step < n_steps; ++step) {
      const float* const stage = next_step(step, met);
      const int i = step - n_dots, of_key = i - (kOfKeys ? value_slices : 0);
      const int width = of_key < 0 ? d_o_slice(a, head, i).width : query(of_key).width;
      if (4 * x >= width) continue;
      const float* const factors = (of_key < 0 ? p_tile : ds_tile) + y * kPitch;
#pragma unroll
      for (int n = 0; n < kSums; ++n) {
        if (n != (of_key < 0 ? i : kValueSums + of_key)) continue;
        add_product(sums[n], factors, stage + kSliceFloats + 4 * x, n_met);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int n = i < kValueSums ? i : i - kValueSums;
    if (n >= (i < kValueSums ? value_slices : key_slices)) continue;
    Slice<float> out;
    if (i < kValueSums) {
      out = value_slice(a, a.dkv, a.dkv_stride, head, n);
    } else if (kOfKeys) {
      float* const d_rope = a.dk_rope_of_head + static_cast<int64_t>(head - a.first_head) * a.tokens * a.rope;
      out = key_slice(a, a.dkv, a.dkv_stride, d_rope, int64_t{a.rope}, head, n);
    } else {
      out = query_slice(a, a.dq, a.dq_stride, head, n);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int token = first + y + r * kSide;
      if (token <= last) write_row(out, token, 4 * x, sums[i][r], a.in_fours);
    }
  }
}

// ---- One rotary key serves all heads

struct SumOfHeads {
  float* dk_rope;
  const float* of_head;  // [heads, tokens, rope]
  int64_t stride, n;     // n: tokens times rope
  int n_heads, rope;
  bool accumulate;
};

__global__ void __launch_bounds__(kThreads) sum_heads_kernel(SumOfHeads s) {
  wait_for_inputs();
  start_next();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= s.n) return;
  float* to = s.dk_rope + i / s.rope * s.stride + i % s.rope;
  float sum = s.accumulate ? *to : 0;
#pragma unroll 8
  for (int h = 0; h < s.n_heads; ++h) sum += s.of_head[h * s.n + i];
  *to = sum;
}

template <bool kOfKeys>
void sweep(Context& ctx, const Backward& call) {
  const dim3 grid(static_cast<unsigned>(ceil_div(call.tokens, int64_t{kTile}) * call.heads_at_once));
  const size_t floats = 2 * kStageFloats + (kOfKeys ? 2 : 1) * kSliceFloats;
  const auto run = [&](auto* kernel) { launch(ctx, kernel, grid, dim3(kThreads), floats * sizeof(float), call); };
  const int keys = call.key_slices(), values = call.value_slices();
  if (keys <= 2 && values <= 1) return run(sweep_kernel<kOfKeys, 2, 1, 2>);
  if (keys <= 3 && values <= 2) return run(sweep_kernel<kOfKeys, 3, 2, (kOfKeys ? 1 : 2)>);
  return run(sweep_kernel<kOfKeys, 6, 4, 1>);
}

}  // namespace

void mla_attention_backward(Context& ctx, Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q,
                            Tensor kv, Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& dims, float scale,
                            Precision precision) {
  const int64_t tokens = q.rows(), heads = dims.n_heads, rope = dims.qk_rope_head_dim;
  if (tokens == 0) return;
  const auto whole = [](Tensor t) {
    return (reinterpret_cast<uintptr_t>(t.data) | static_cast<uintptr_t>(t.row_stride * 4)) % sizeof(float4) == 0;
  };
  const bool in_fours = (dims.qk_nope_head_dim | rope | dims.v_head_dim) % 4 == 0 && whole(dq) && whole(dkv) &&
                        whole(d_o) && whole(q) && whole(kv) && whole(k_rope);
  const ArenaScope scope(ctx.arena);
  const int64_t tiles = ceil_div(tokens, int64_t{kTile}),
                heads_at_once = std::clamp<int64_t>(kBlocksAtOnce / tiles, 1, heads);
  Backward call{.dq = dq.f32(),
                .dkv = dkv.f32(),
                .dk_rope_of_head = new_f32(ctx, {heads_at_once, tokens, rope}).f32(),
                .q = q.f32(),
                .kv = kv.f32(),
                .k_rope = k_rope.f32(),
                .d_o = d_o.f32(),
                .o = o.f32(),
                .lse = lse.f32(),
                .seq_offsets = seq_offsets.i32(),
                .delta = new_f32(ctx, {tokens, heads}).f32(),
                .begins = new_i32(ctx, {tokens}).i32(),
                .ends = new_i32(ctx, {tokens}).i32(),
                .dq_stride = dq.row_stride,
                .dkv_stride = dkv.row_stride,
                .q_stride = q.row_stride,
                .kv_stride = kv.row_stride,
                .k_rope_stride = k_rope.row_stride,
                .d_o_stride = d_o.row_stride,
                .o_stride = o.row_stride,
                .lse_stride = lse.row_stride,
                .tokens = static_cast<int>(tokens),
                .n_sequences = static_cast<int>(seq_offsets.size() - 1),
                .n_heads = static_cast<int>(heads),
                .nope = static_cast<int>(dims.qk_nope_head_dim),
                .rope = static_cast<int>(rope),
                .v = static_cast<int>(dims.v_head_dim),
                .first_head = 0,
                .heads_at_once = 0,
                .scale = scale,
                .in_fours = in_fours};
  // Both parts: what a sweep over keys reads of its queries is there behind the second slice's barrier.
  FATHOM_CHECK(call.nope > 0 && call.rope > 0 && call.key_slices() <= 6 && call.value_slices() <= 4,
               "heads of {} + {} and {} numbers", call.nope, call.rope, call.v);
  launch(ctx, prepare_kernel, dim3(static_cast<unsigned>(ceil_div(tokens * heads, int64_t{kWarps}))), dim3(kThreads), 0,
         call);
  for (int64_t head = 0; head < heads; head += heads_at_once) {
    call.first_head = static_cast<int>(head);
    call.heads_at_once = static_cast<int>(std::min(heads_at_once, heads - head));
    if (precision == Precision::bf16) {
      attention_backward_bf16(ctx, call);
    } else {
      sweep<false>(ctx, call);
      sweep<true>(ctx, call);
    }
    launch(ctx, sum_heads_kernel, dim3(static_cast<unsigned>(ceil_div(tokens * rope, int64_t{kThreads}))),
           dim3(kThreads), 0,
           SumOfHeads{dk_rope.f32(), call.dk_rope_of_head, dk_rope.row_stride, tokens * rope, call.heads_at_once,
                      call.rope, head > 0});
  }
}

}  // namespace fathom::cuda
