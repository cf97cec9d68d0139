// The latent caches and absorbed attention over them: what is written, the steps of attention, and how work is divided.
#include <math.h>

#include <algorithm>

#include "number/panels.h"
#include "ops/attention.h"
#include "ops/cuda/attention_hopper.h"
#include "ops/cuda/attention_tiles.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kWriteThreads = 128;
constexpr int kWriteWarps = kWriteThreads / kWarp;

struct WriteCache {
  CachedRows cache;
  RowShape row;
  float* latent;
  float* k_rope;
  int64_t latent_stride, k_rope_stride;
};

// A block a token; a warp for what shares a scale.
__global__ void __launch_bounds__(kWriteThreads) write_rows(const WriteCache call) {
  wait_for_inputs();
  start_next();
  const int64_t token = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const RowShape& shape = call.row;
  uint8_t* row = call.cache.of_sequence(call.cache.sequence[token]) +
                 static_cast<int64_t>(call.cache.positions[token]) * shape.bytes;
  float* c = call.latent + token * call.latent_stride;
  float* k = call.k_rope + token * call.k_rope_stride;
  const int rank = shape.rank;

  if (shape.format == Format::f8_e4m3) {
    for (int begin = warp * kFp8Block; begin < rank; begin += kWriteWarps * kFp8Block) {
      const int end = min(begin + kFp8Block, rank);
      float amax = 0;
      for (int i = begin + lane; i < end; i += kWarp) amax = fmaxf(amax, fabsf(c[i]));
      amax = warp_max(amax);
      float scale = amax / 448.0f;
      if (scale == 0) scale = 1;
      for (int i = begin + lane; i < end; i += kWarp) {
        const uint8_t code = round_to_fp8(c[i] / scale);
        row[i] = code;
        c[i] = widen_fp8(code) * scale;
      }
      if (lane == 0) store_f32(row + rank + 4 * (begin / kFp8Block), scale);
    }
  } else if (shape.format == Format::q8_0) {
    for (int block = warp; block * kQ8Block < rank; block += kWriteWarps) {
      const int i = block * kQ8Block + lane;
      const float x = i < rank ? c[i] : 0.0f;
      const float d = fminf(warp_max(fabsf(x)) / 127.0f, 65504.0f);
      const float twice_inverse = d > 0x1p-126f ? 1 / d * 2 : 0.0f;
      const int twice = static_cast<int>(fminf(fmaxf(x * twice_inverse, -254.0f), 254.0f));
      const auto code = static_cast<int8_t>((twice + (twice < 0 ? -1 : 1)) / 2);
      const uint16_t stored_d = round_to_f16(d);
      uint8_t* to = row + block * kQ8BlockBytes;
      if (lane == 0) store_u16(to, stored_d);
      to[2 + lane] = static_cast<uint8_t>(code);
      if (i < rank) c[i] = static_cast<float>(code) * f16_to_float(stored_d);
    }
  } else {
    for (int i = thread; i < rank; i += kWriteThreads) {
      if (shape.format == Format::f32) {
        reinterpret_cast<float*>(row)[i] = c[i];
      } else {
        const bool bf16 = shape.format == Format::bf16;
        const uint16_t code = bf16 ? round_to_bf16(c[i]) : round_to_f16(c[i]);
        reinterpret_cast<uint16_t*>(row)[i] = code;
        c[i] = bf16 ? widen_bf16(code) : f16_to_float(code);
      }
    }
  }
  for (int i = thread; i < shape.rope; i += kWriteThreads) {
    if (shape.format == Format::f32) {
      reinterpret_cast<float*>(row)[rank + i] = k[i];
    } else {
      const bool f16 = shape.format == Format::f16;
      const uint16_t code = f16 ? round_to_f16(k[i]) : round_to_bf16(k[i]);
      store_u16(row + shape.rope_at + 2 * i, code);
      k[i] = f16 ? f16_to_float(code) : widen_bf16(code);
    }
  }
}

constexpr int kMergeThreads = 256;
constexpr int kMergeWarps = kMergeThreads / kWarp;
constexpr int kMaxSplits = kMergeThreads;
constexpr int kMergeColumns = 2 * kWarp;

struct Merge {
  float* out;  // [tokens, heads, rank]
  const float* parts;
  const float* maxima;
  const float* sums;
  int64_t n_queries;
  int rank, n_splits;
};

// A block some columns of a query, two of a lane; warps share its splits.
__global__ void __launch_bounds__(kMergeThreads) merge_splits(const Merge call) {
  __shared__ float weights[kMaxSplits];
  __shared__ float of_warps[2][kMergeWarps];
  __shared__ float parts[kMergeWarps][kMergeColumns];
  wait_for_inputs();
  start_next();
  const int64_t query = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const float maximum = thread < call.n_splits ? call.maxima[thread * call.n_queries + query] : -INFINITY;
  const float largest = warp_max(maximum);
  if (lane == 0) of_warps[0][warp] = largest;
  __syncthreads();
  float top = -INFINITY;
  for (int w = 0; w < kMergeWarps; ++w) top = fmaxf(top, of_warps[0][w]);
  const float weight = exp2f(maximum - finite(top));
  weights[thread] = weight;
  const float part_of_sum = warp_sum(weight > 0 ? weight * call.sums[thread * call.n_queries + query] : 0.0f);
  if (lane == 0) of_warps[1][warp] = part_of_sum;
  __syncthreads();

  const int first = static_cast<int>(blockIdx.y) * kMergeColumns + lane;
  const bool has[2] = {first < call.rank, first + kWarp < call.rank};
  float x[2] = {0, 0};
#pragma unroll 4
  for (int split = warp; split < call.n_splits; split += kMergeWarps) {
    const float w = weights[split];
    const float* part = call.parts + (split * call.n_queries + query) * call.rank + first;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float y = w > 0 && has[i] ? part[i * kWarp] : 0.0f;  // of no weight, perhaps never written
      x[i] = fmaf(w, y, x[i]);
    }
  }
  parts[warp][lane] = x[0];
  parts[warp][lane + kWarp] = x[1];
  __syncthreads();
  if (thread >= kMergeColumns || thread - lane + first >= call.rank) return;
  float sum = 0, total = 0;
  for (int w = 0; w < kMergeWarps; ++w) {
    sum += of_warps[1][w];
    total += parts[w][thread];
  }
  call.out[query * call.rank + first + thread - lane] = sum > 0 ? total / sum : 0.0f;
}

constexpr int kRowsThreads = 128;

// Products of every head with f32 numbers of a weight that is not in panels, whose rows may be its columns:
//   y[t, h, o] = sum_i x[t, h, i] w[h, o, i]
struct HeadsTimesRows {
  float* y;
  const float* x;
  const float* w;
  int64_t y_stride, y_step, x_stride, x_step;  // from token to token, from head to head
  int64_t w_step, w_stride_out, w_stride_in;
  int out, in;
};

__global__ void __launch_bounds__(kRowsThreads) heads_times_rows(const HeadsTimesRows call) {
  wait_for_inputs();
  start_next();
  const int64_t token = blockIdx.x, head = blockIdx.y;
  const float* x = call.x + token * call.x_stride + head * call.x_step;
  for (int o = static_cast<int>(threadIdx.x); o < call.out; o += kRowsThreads) {
    const float* w = call.w + head * call.w_step + o * call.w_stride_out;
    float sum = 0;
    for (int i = 0; i < call.in; ++i) sum = fmaf(x[i], w[i * call.w_stride_in], sum);
    call.y[token * call.y_stride + head * call.y_step + o] = sum;
  }
}

// q_latent[t, h] = W_UK[h]^T q_nope[t, h]
void absorb_queries(Context& ctx, Tensor q_latent, Tensor q, Tensor kv_b, Tensor k_b, const MlaDims& dims) {
  const int64_t nope = dims.qk_nope_head_dim, v_dim = dims.v_head_dim, rank = dims.kv_lora_rank;
  const int64_t q_step = nope + dims.qk_rope_head_dim;
  if (kv_b.panels) {
    return heads_linear(ctx, {q_latent.columns(0, rank), rank, q.columns(0, nope), q_step, k_b[0],
                              (rank + kPanelRows - 1) / kPanelRows * k_b.row_stride, dims.n_heads});
  }
  launch(ctx, heads_times_rows, dim3(static_cast<unsigned>(q.rows()), static_cast<unsigned>(dims.n_heads)),
         dim3(kRowsThreads), 0,
         HeadsTimesRows{q_latent.f32(), q.f32(), kv_b.f32(), q_latent.row_stride, rank, q.row_stride, q_step,
                        (nope + v_dim) * kv_b.row_stride, 1, kv_b.row_stride, static_cast<int>(rank),
                        static_cast<int>(nope)});
}

// o[t, h] = W_UV[h] latents[t, h]
void project_values(Context& ctx, Tensor o, Tensor latents, Tensor kv_b, const MlaDims& dims) {
  const int64_t nope = dims.qk_nope_head_dim, v_dim = dims.v_head_dim, rank = dims.kv_lora_rank;
  if (kv_b.panels) {
    return heads_linear(ctx, {o.columns(0, v_dim), v_dim, latents.columns(0, rank), rank, kv_b.slice(nope, v_dim),
                              (nope + v_dim) / kPanelRows * kv_b.row_stride, dims.n_heads});
  }
  launch(ctx, heads_times_rows, dim3(static_cast<unsigned>(o.rows()), static_cast<unsigned>(dims.n_heads)),
         dim3(kRowsThreads), 0,
         HeadsTimesRows{o.f32(), latents.f32(), kv_b.f32_row(nope), o.row_stride, v_dim, latents.row_stride, rank,
                        (nope + v_dim) * kv_b.row_stride, kv_b.row_stride, 1, static_cast<int>(v_dim),
                        static_cast<int>(rank)});
}

// [q_latent | q_rope] of every token and head, rounded to bf16.
struct PackQueries {
  uint32_t* out;  // [tokens, heads, rank + rope], two numbers each
  const float* q_latent;
  const float* q_rope;
  int64_t q_rope_stride, q_rope_step;
  int rank, rope;
};

__global__ void __launch_bounds__(kRowsThreads) pack_queries(const PackQueries call) {
  wait_for_inputs();
  start_next();
  const int64_t head = blockIdx.x, token = blockIdx.y, query = token * gridDim.x + head;
  const float* rope = call.q_rope + token * call.q_rope_stride + head * call.q_rope_step;
  const int cols = call.rank + call.rope;
  for (int i = 2 * static_cast<int>(threadIdx.x); i < cols; i += 2 * kRowsThreads) {
    const float* from = i < call.rank ? call.q_latent + query * call.rank + i : rope + i - call.rank;
    call.out[(query * cols + i) / 2] = pack_bf16(from[0], from[1]);
  }
}

// false: there is no kernel of Hopper's for this.
bool attend_hopper(Context& ctx, Tensor latents, Tensor q_latent, Tensor q, const DeviceCaches& caches,
                   const MlaDims& dims, float scale) {
  constexpr int64_t kHeads = 64;  // that it takes at least
  const int64_t tokens = q.rows(), heads = dims.n_heads, rank = dims.kv_lora_rank, rope = dims.qk_rope_head_dim;
  if (heads % kHeads != 0 || caches.layout.format != Format::bf16 || rank != 512 || rope != 64) return false;
  const Tensor packed = new_tensor(ctx, Format::bf16, {tokens, heads, rank + rope});
  const HopperDecode call{Tensor(latents.data, Format::f32, {tokens, heads, rank}), packed, caches, scale};
  launch(ctx, pack_queries, dim3(static_cast<unsigned>(heads), static_cast<unsigned>(tokens)), dim3(kRowsThreads), 0,
         PackQueries{static_cast<uint32_t*>(packed.data), q_latent.f32(), q.f32() + dims.qk_nope_head_dim, q.row_stride,
                     dims.qk_nope_head_dim + rope, static_cast<int>(rank), static_cast<int>(rope)});
  return mla_decode_hopper(ctx, call);
}

// About as many blocks as processors where few tiles are divided often; else twice as many, for lengths differ.
int splits_for(int n_processors, int n_tiles) {
  constexpr int kMany = 8;
  const int once = n_processors / n_tiles;
  return std::clamp(once >= kMany ? once : 2 * n_processors / n_tiles, 1, kMaxSplits);
}

// latents[t, h] = sum_j softmax_j(...) c_j. q: [tokens, heads * (nope + rope)]
void attend(Context& ctx, Tensor latents, Tensor q_latent, Tensor q, const DeviceCaches& caches, const MlaDims& dims,
            float scale) {
  const int64_t heads = dims.n_heads, rank = dims.kv_lora_rank, n_queries = q.rows() * heads;
  if (attend_hopper(ctx, latents, q_latent, q, caches, dims, scale)) return;
  AbsorbedAttention a{};
  a.cache = cached_rows(caches);
  a.row = row_shape(caches.layout);
  a.q_latent = q_latent.f32();
  a.q_rope = q.f32() + dims.qk_nope_head_dim;
  a.q_rope_step = dims.qk_nope_head_dim + dims.qk_rope_head_dim;
  a.q_rope_stride = q.row_stride;
  a.n_tokens = static_cast<int>(q.rows());
  a.n_heads = static_cast<int>(heads);
  a.n_sequences = static_cast<int>(caches.rows.size());
  a.scale_log2 = scale * 1.44269504088896f;
  // Pairs of numbers are read as one.
  const bool even = a.q_rope_step % 2 == 0 && a.q_rope_stride % 2 == 0 && dims.qk_nope_head_dim % 2 == 0;
  const bool products = even && plan_bf16_attention(a);
  if (!products) plan_f32_attention(a);
  a.n_splits = splits_for(ctx.device->n_processors, a.n_tiles());
  a.out = latents.f32();
  if (a.n_splits > 1) {
    a.out = new_f32(ctx, {a.n_splits, n_queries, rank}).f32();
    a.maxima = new_f32(ctx, {a.n_splits, n_queries}).f32();
    a.sums = new_f32(ctx, {a.n_splits, n_queries}).f32();
  }
  products ? attend_bf16(ctx, a) : attend_f32(ctx, a);
  if (a.n_splits == 1) return;
  launch(ctx, merge_splits,
         dim3(static_cast<unsigned>(n_queries), static_cast<unsigned>((rank + kMergeColumns - 1) / kMergeColumns)),
         dim3(kMergeThreads), 0,
         Merge{latents.f32(), a.out, a.maxima, a.sums, n_queries, static_cast<int>(rank), a.n_splits});
}

}  // namespace

void write_cache(Context& ctx, const DeviceCaches& caches, Tensor latent, Tensor k_rope) {
  const LatentRowLayout& layout = caches.layout;
  const int64_t tokens = latent.rows();
  FATHOM_CHECK(latent.cols() == layout.kv_lora_rank && k_rope.cols() == layout.rope && k_rope.rows() == tokens);
  FATHOM_CHECK(caches.sequence.size() == tokens && caches.positions.size() == tokens);
  if (tokens == 0) return;
  launch(ctx, write_rows, dim3(static_cast<unsigned>(tokens)), dim3(kWriteThreads), 0,
         WriteCache{cached_rows(caches), row_shape(layout), latent.f32(), k_rope.f32(), latent.row_stride,
                    k_rope.row_stride});
}

void mla_attention_absorbed(Context& ctx, Tensor o, Tensor q, Tensor kv_b, Tensor k_b, const DeviceCaches& caches,
                            const MlaDims& dims, float scale) {
  constexpr int64_t kRound = 65536;  // queries in memory at a time, or one token's
  const int64_t heads = dims.n_heads, nope = dims.qk_nope_head_dim, rope = dims.qk_rope_head_dim;
  const int64_t v_dim = dims.v_head_dim, rank = dims.kv_lora_rank, tokens = q.rows();
  FATHOM_CHECK(q.cols() == heads * (nope + rope) && o.cols() == heads * v_dim && o.rows() == tokens);
  FATHOM_CHECK(caches.layout.kv_lora_rank == rank && caches.layout.rope == rope);
  FATHOM_CHECK(caches.sequence.size() == tokens && caches.positions.size() == tokens);
  FATHOM_CHECK(!kv_b.panels || (k_b.panels && nope % kPanelRows == 0 && v_dim % kPanelRows == 0));
  FATHOM_CHECK(kv_b.rows() == heads * (nope + v_dim) && kv_b.cols() == rank);
  const int64_t tokens_of_round = std::max<int64_t>(1, kRound / heads);
  for (int64_t begin = 0; begin < tokens; begin += tokens_of_round) {
    const ArenaScope scope(ctx.arena);
    const int64_t n = std::min(tokens_of_round, tokens - begin);
    const Tensor q_part = q.slice(begin, n);
    DeviceCaches part = caches;
    part.sequence = caches.sequence.slice(begin, n);
    part.positions = caches.positions.slice(begin, n);
    const Tensor q_latent = new_f32(ctx, {n, heads * rank}), latents = new_f32(ctx, {n, heads * rank});
    absorb_queries(ctx, q_latent, q_part, kv_b, k_b, dims);
    attend(ctx, latents, q_latent, q_part, part, dims, scale);
    project_values(ctx, o.slice(begin, n), latents, kv_b, dims);
  }
}

}  // namespace fathom::cuda
